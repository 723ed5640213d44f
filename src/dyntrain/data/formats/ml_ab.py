"""VASP's ML_AB: the structures its machine learning chose from MD, mostly not consecutive ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dyntrain.data.formats.frames import CUT_OFF, numbers_of, one_cell
from dyntrain.data.formats.text import Lines, floats, reading
from dyntrain.data.raw import RawRun
from dyntrain.errors import UserError

_SECTIONS = (
    "The number of configurations",
    "Configuration num.",
    "The atom types in the data file",
    "Atomic mass",
    "Atom types and atom numbers",
    "Primitive lattice vectors (ang.)",
    "Atomic positions (ang.)",
    "Total energy (eV)",
    "Forces (eV ang.^-1)",
)


def read_ml_ab(file: Path) -> RawRun:
    """Read an ML_AB or ML_ABN file.

    Raises:
        UserError: damaged content, or atoms that change along the file.
    """
    first, *others = read_ml_ab_structures(file)
    if others:
        raise UserError(
            f"{file}: the atoms change along the file; an ML_AB of several systems is no run, name it under "
            "`data.structures`."
        )
    return first


def read_ml_ab_structures(file: Path) -> list[RawRun]:
    """The same of several systems, those of the same atoms together.

    Raises:
        UserError: damaged content.
    """
    header: dict[str, list[str]] = {}
    frames: list[dict[str, list[str]]] = []
    with reading(file, "an ML_AB") as lines:
        for title, content in _sections(lines):
            if title == "Configuration num.":
                frames.append({})
            (frames[-1] if frames else header)[title] = content
        whole = bool(frames) and _is_whole(frames[-1]) and not lines.cut
        if len(frames) < (1 if whole else 2):
            raise UserError(f"{file} holds no complete configuration.")
        alike: dict[tuple[str, ...], list[dict[str, list[str]]]] = {}
        for frame in frames if whole else frames[:-1]:
            composition = tuple(" ".join(row.split()) for row in frame["Atom types and atom numbers"])
            alike.setdefault(composition, []).append(frame)
        runs = [_raw(file, header, group) for group in alike.values()]
        if not whole:
            runs[0].notes.append(CUT_OFF)
        if (stated := header.get("The number of configurations")) and int(stated[0]) != len(frames):
            runs[0].notes.append(f"The file states {int(stated[0])} configurations, but has {len(frames)}.")
    return runs


def _is_whole(frame: dict[str, list[str]]) -> bool:
    """Whether a configuration has its forces, the last of what is needed."""
    forces, positions = (frame.get(title, []) for title in _SECTIONS[-1:-4:-2])
    return 0 < len(forces) == len(positions)


def _sections(lines: Lines) -> list[tuple[str, list[str]]]:
    """(title, lines of content) of each known section; a title stands over a ruler, its content below."""
    found: list[tuple[str, list[str]]] = []
    open_now = False
    for line in lines:
        text = line.strip()
        if text[:3] in ("***", "==="):
            open_now = False
        elif text[:3] == "---":
            continue
        elif title := next((known for known in _SECTIONS if text.startswith(known)), None):
            found.append((title, []))
            open_now = title != "Configuration num."
        elif open_now and text:
            found[-1][1].append(line)
    return found


def _raw(file: Path, header: dict[str, list[str]], frames: list[dict[str, list[str]]]) -> RawRun:
    types = " ".join(header["The atom types in the data file"]).split()
    masses = dict(zip(types, " ".join(header["Atomic mass"]).split(), strict=True))
    composition = [row.split() for row in frames[0]["Atom types and atom numbers"]]
    labels = [label for label, count in composition for _ in range(int(count))]
    positions = [floats(frame["Atomic positions (ang.)"]) for frame in frames]
    forces = [floats(frame["Forces (eV ang.^-1)"]) for frame in frames]
    return RawRun(
        file=str(file),
        reader="VASP ML_AB",
        positions=np.stack(positions),
        forces=np.stack(forces),
        energies=np.array([float(frame["Total energy (eV)"][0]) for frame in frames]),
        cell=one_cell([floats(frame["Primitive lattice vectors (ang.)"]) for frame in frames]),
        pbc=np.ones(3, dtype=bool),
        atomic_numbers=numbers_of(labels, file),
        masses=np.array([float(masses[label]) for label in labels]),
        notes=["VASP chooses the structures of an ML_AB: they are consecutive frames only by chance."],
    )
