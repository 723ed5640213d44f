"""Quantum ESPRESSO cp.x: PREFIX.pos with .vel, .for, .evp and .cel, and the input for elements and dt."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from dyntrain.data.formats.frames import check_same_steps, common_length, missing_files, numbers_of, one_cell
from dyntrain.data.formats.text import beside, head_of, plain_name, reading
from dyntrain.data.raw import RawRun
from dyntrain.data.timestamps import settle_time_stamps, stride_of
from dyntrain.data.trajectory import FloatArray
from dyntrain.errors import UserError
from dyntrain.units import AUT, BOHR, FS, HARTREE

SUFFIXES = (".pos", ".vel", ".for", ".evp", ".cel")


def read_cpx(file: Path) -> RawRun:
    """Read the run of which one of the files is named; all of it in hartree atomic units.

    Raises:
        UserError: files of the run that are missing or of other steps, or damaged content.
    """
    prefix = plain_name(file).rpartition(".")[0]
    paths = {suffix: beside(file, prefix + suffix) for suffix in SUFFIXES}
    if lacking := [prefix + s for s in (".pos", ".for", ".evp", ".cel") if paths[s] is None]:
        raise missing_files(file, lacking, "cp.x writes them all into its outdir")
    settings = _find_input(file, prefix)
    labels, masses = settings.labels, settings.masses
    steps: dict[str, list[int]] = {}
    blocks: dict[str, FloatArray] = {}
    for suffix, path in paths.items():
        if path is not None and suffix != ".evp":
            n_rows = 3 if suffix == ".cel" else len(labels)
            steps[path.name], blocks[suffix] = _read_blocks(path, n_rows)
    energies = _read_energies(paths[".evp"] or file)
    steps[prefix + ".evp"] = list(energies)
    notes = [f"cp.x run read from {', '.join([*steps, settings.file.name])}."]
    notes.append(
        "Masses are the input's: " + ", ".join(f"{k} {m:g}" for k, m in settings.species.items()) + " u."
    )
    n_frames = common_length(file, {name: len(found) for name, found in steps.items()}, notes)
    check_same_steps(file, steps, n_frames)
    chosen = next(iter(steps.values()))[:n_frames]
    times = [{"time_fs": step * settings.dt * AUT / FS} for step in chosen]
    dt_fs, breaks, time_notes = settle_time_stamps(times, str(file))
    velocities = blocks.get(".vel")
    return RawRun(
        file=str(file),
        reader="Quantum ESPRESSO cp.x",
        positions=blocks[".pos"][:n_frames] * BOHR,
        forces=blocks[".for"][:n_frames] * (HARTREE / BOHR),
        energies=np.array([energies[step] for step in chosen]) * HARTREE,
        # The file's columns are the lattice vectors.
        cell=one_cell(blocks[".cel"][:n_frames].swapaxes(1, 2) * BOHR),
        pbc=np.ones(3, dtype=bool),
        atomic_numbers=numbers_of(labels, file),
        masses=masses,
        velocities=velocities[:n_frames] * (BOHR / AUT) if velocities is not None else None,
        dt_fs=dt_fs,
        breaks=breaks,
        notes=notes + time_notes,
        stride=stride_of(chosen),
    )


def _read_blocks(file: Path, n_rows: int) -> tuple[list[int], FloatArray]:
    """Step numbers and numbers [n_frames, n_rows, 3] of a file of blocks headed by step and time (ps)."""
    steps: list[int] = []
    frames: list[FloatArray] = []
    with reading(file, "a cp.x trajectory file") as lines:
        for head in lines:
            words = head.split()
            if len(words) != 2:
                raise ValueError(f"expected step and time, then {n_rows} lines, got {head.strip()!r}")
            if (rows := lines.floats(n_rows)) is None:
                break
            steps.append(int(words[0]))
            frames.append(rows)
    return steps, np.array(frames).reshape(-1, n_rows, 3)


def _read_energies(file: Path) -> dict[int, float]:
    """etot in hartree by step: the sixth column of the .evp file."""
    with reading(file, "a cp.x .evp file") as lines:
        rows = [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        for row in rows:
            if len(row) < 8:
                raise ValueError(f"expected at least 8 columns, got {len(row)}")
        return {int(row[0]): float(row[5]) for row in rows}


class _Input:
    """What the cp.x input says: labels [n_atoms], masses [n_atoms] u, dt in atomic units."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.species: dict[str, float] = {}
        self.labels: list[str] = []
        self.dt = 1.0  # cp.x's default
        card = ""
        with reading(file, "a cp.x input") as lines:
            for line in lines:
                words = re.split(r"[!#]", line)[0].split()
                if not words:
                    continue
                if words[0].isupper() and words[0].split("(")[0] in _CARDS:
                    card = words[0].split("(")[0]
                elif card == "ATOMIC_SPECIES" and len(words) >= 3:
                    self.species[words[0]] = _float(words[1])
                elif card == "ATOMIC_POSITIONS" and len(words) >= 4:
                    self.labels.append(words[0])
                elif match := re.search(r"\bdt\s*=\s*([-+.\dEeDd]+)", line):
                    self.dt = _float(match[1])
            if not self.labels or not set(self.labels) <= self.species.keys():
                raise ValueError("ATOMIC_SPECIES and ATOMIC_POSITIONS must name every atom")
            self.masses = np.array([self.species[label] for label in self.labels])


_CARDS = (
    "ATOMIC_SPECIES",
    "ATOMIC_POSITIONS",
    "CELL_PARAMETERS",
    "AUTOPILOT",
    "ATOMIC_VELOCITIES",
    "K_POINTS",
)


def _float(text: str) -> float:
    """A Fortran number: 2.0d0."""
    return float(text.lower().replace("d", "e"))


def _find_input(file: Path, prefix: str) -> _Input:
    """The input of the run: PREFIX.in, else the only one of the folder that names the prefix."""
    if (own := beside(file, f"{prefix}.in")) is not None:
        return _Input(own)
    inputs = [
        f for f in sorted(file.parent.iterdir()) if plain_name(f).endswith((".in", ".inp")) and f.is_file()
    ]
    pattern = rf"\bprefix\s*=\s*['\"]{re.escape(prefix)}['\"]"
    named = [f for f in inputs if re.search(pattern, head_of(f, 65536).decode("utf-8", "replace"))]
    if len(named) != 1:
        found = f"{len(named)} inputs beside it name" if named else "no input beside it names"
        raise UserError(
            f"{file}: {found} the prefix {prefix}; put one there ({prefix}.in): elements, masses and dt are "
            "in none of the other files."
        )
    return _Input(named[0])
