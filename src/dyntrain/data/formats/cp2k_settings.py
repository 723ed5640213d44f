"""CP2K's input, restart file and log: the cell, its periodicity and the masses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase.cell import Cell

from dyntrain.data.formats.text import Lines, head_of, plain_name, reading
from dyntrain.data.trajectory import FloatArray
from dyntrain.units import BOHR

_LENGTH = {"[angstrom]": 1.0, "[bohr]": BOHR}


@dataclass
class Settings:
    """cell: [3, 3] Å or None; periodic: [3]; masses: [n_atoms] u of the log; kind_masses: u, by label."""

    cell: FloatArray | None = None
    periodic: np.ndarray = field(default_factory=lambda: np.ones(3, dtype=bool))
    masses: FloatArray | None = None
    kind_masses: dict[str, float] = field(default_factory=dict)
    read_from: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_settings(folder: Path, project: str) -> Settings:
    """Look through the inputs and logs of the folder for those of the project (a restart file last)."""
    settings = Settings()
    files = sorted(file for file in folder.iterdir() if file.is_file())
    for file in files:
        if plain_name(file).endswith((".out", ".log")) and _names(file, "GLOBAL| Project name", project):
            _read_log(file, settings)
    inputs = [f for f in files if plain_name(f).endswith((".inp", ".in"))]
    restarts = [f for f in files if plain_name(f).endswith(".restart")]
    for file in (*restarts, *inputs):
        if _names(file, "PROJECT", project) and not settings.kind_masses:
            _read_input(file, settings)
    if not settings.read_from:
        settings.notes.append(
            f"No input or log of the project {project} lies beside it: periodic in all directions is assumed."
        )
    return settings


def _names(file: Path, key: str, project: str) -> bool:
    """Whether the beginning of a file has the key with the project's name behind it."""
    head = head_of(file, 65536).decode("utf-8", errors="replace")
    pattern = rf"^\s*{re.escape(key)}(_NAME)?\s+{re.escape(project)}\s*$"
    return re.search(pattern, head, re.MULTILINE | re.IGNORECASE) is not None


def _read_log(file: Path, settings: Settings) -> None:
    vectors: list[list[float]] = []
    with reading(file, "a CP2K log") as lines:
        for line in lines:
            if line.startswith(" CELL| Vector") and len(vectors) < 3:
                vectors.append([float(number) for number in re.findall(r"-?\d+\.\d+", line)])
            elif line.startswith(" CELL| Periodicity"):
                _set_periodic(settings, line.split()[-1])
            elif re.search(r"Atom\s+Kind\s+Element\s+X\s+Y\s+Z\s+Z\(eff\)\s+Mass", line):
                settings.masses = _read_masses(lines)
                break
    settings.read_from.append(file.name)
    if len(vectors) == 3 and all(len(vector) == 4 for vector in vectors):
        cell = np.array(vectors)
        # Vectors have three decimals, lengths six: those of a right-angled cell are the better ones.
        right_angled = np.count_nonzero(cell[:, :3] - np.diag(np.diag(cell[:, :3]))) == 0
        settings.cell = np.diag(cell[:, 3]) if right_angled else cell[:, :3]


def _read_masses(lines: Lines) -> FloatArray:
    masses: list[float] = []
    for line in lines:
        words = line.split()
        if len(words) < 9 and masses:
            break
        if len(words) >= 9:
            masses.append(float(words[-1]))
    return np.array(masses)


def _read_input(file: Path, settings: Settings) -> None:
    with reading(file, "a CP2K input") as lines:
        for path, words in _entries(lines):
            if path[-1:] == ["CELL"] and "SUBSYS" in path:
                _cell_key(words, settings)
            elif path[-1:] == ["KIND"] and words[0] == "MASS":
                settings.kind_masses[words[-1]] = float(words[1])
    if file.name not in settings.read_from:
        settings.read_from.append(file.name)


def _entries(lines: Lines) -> Iterator[tuple[list[str], list[str]]]:
    """(open sections, words of the line); the label of a KIND is added to its lines as the last word."""
    path: list[str] = []
    kind = ""
    for line in lines:
        words = re.split(r"[!#]", line)[0].split()
        if not words:
            continue
        name = words[0].upper()
        if name.startswith("&END"):
            path = path[:-1]
        elif name.startswith("&"):
            path.append(name[1:])
            kind = words[1] if name == "&KIND" and len(words) > 1 else kind
        else:
            yield path, [name, *words[1:], *([kind] if path[-1:] == ["KIND"] else [])]


def _cell_key(words: list[str], settings: Settings) -> None:
    key, values = words[0], words[1:]
    if key == "PERIODIC" and values:
        _set_periodic(settings, values[0])
        return
    if key not in ("ABC", "A", "B", "C", "ALPHA_BETA_GAMMA"):
        return
    scale = _LENGTH.get(values[0].lower()) if values[0].startswith("[") else 1.0
    numbers = [word for word in values if not word.startswith("[")]
    if len(numbers) != 3 or scale is None or any(word.startswith("$") for word in numbers):
        return
    three = np.array(numbers, dtype=np.float64)
    if key == "ABC":
        settings.cell = np.diag(three * scale)
    elif key == "ALPHA_BETA_GAMMA" and settings.cell is not None:
        settings.cell = np.array(Cell.fromcellpar([*np.diag(settings.cell), *three]))
    elif key in "ABC":
        cell = np.zeros((3, 3)) if settings.cell is None else settings.cell
        cell["ABC".index(key)] = three * scale
        settings.cell = cell


def _set_periodic(settings: Settings, axes: str) -> None:
    settings.periodic = np.array([axis in axes.upper() for axis in "XYZ"]) & (axes.upper() != "NONE")
