"""i-PI: xyz files of positions, forces and velocities with their units, and the table of properties."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from ase.cell import Cell

from dyntrain.data.formats.frames import (
    check_same_steps,
    common_length,
    missing_files,
    numbers_of,
    older_masses,
    one_cell,
)
from dyntrain.data.formats.text import head_of, plain_name, reading
from dyntrain.data.formats.xyz import XyzFrames, read_xyz
from dyntrain.data.raw import RawRun
from dyntrain.data.timestamps import settle_time_stamps, stride_of
from dyntrain.data.trajectory import FloatArray
from dyntrain.errors import UserError
from dyntrain.units import AUT, BOHR, FS, HARTREE

MARK = b"CELL(abcABC):"

_KEY = re.compile(r"(x_centroid|v_centroid|f_centroid|positions|velocities|forces)\{([^}]*)\}")
_WHAT = {"x_centroid": "positions", "v_centroid": "velocities", "f_centroid": "forces"}
_PREFIX = {
    "milli": 1e-3,
    "micro": 1e-6,
    "nano": 1e-9,
    "pico": 1e-12,
    "femto": 1e-15,
    "atto": 1e-18,
    "kilo": 1e3,
}
# i-PI's names of units, each in internal units.
_UNITS = {
    "length": {"atomic_unit": BOHR, "angstrom": 1.0, "meter": 1e10, "ase": 1.0},
    "velocities": {"atomic_unit": BOHR / AUT, "angstrom/ps": 1e-3 / FS, "m/s": 1e-5 / FS},
    "forces": {"atomic_unit": HARTREE / BOHR, "ev/ang": 1.0, "newton": 6.241509074460763e8},
    "energy": {"atomic_unit": HARTREE, "electronvolt": 1.0, "kelvin": 8.617333262e-5},
    "time": {"atomic_unit": AUT / FS, "second": 1e15},
}
_UNITS["positions"] = _UNITS["length"]


def read_ipi(file: Path) -> RawRun:
    """Read the run of which one of the xyz files is named; the others are found by their comment lines.

    Raises:
        UserError: files of the run that are missing or of other steps, or damaged content.
    """
    prefix = plain_name(file).split(".")[0]
    bead = _bead(file)
    named: dict[str, Path] = {}
    for other in sorted(file.parent.glob(f"{prefix}.*")):
        match = _KEY.search(_second_line(other))
        if match and _bead(other) == bead:
            named.setdefault(_WHAT.get(match[1], match[1]), other)
    properties = _find_properties(file, prefix)
    lacking = [f"{prefix}.{what}_{bead}.xyz" for what in ("positions", "forces") if what not in named]
    if properties is None:
        lacking.append(f"{prefix}.out (properties step, time and potential)")
    if lacking or properties is None:
        raise missing_files(file, lacking, "i-PI writes them where its <output> asks for them")
    return _assemble(
        file, {w: named[w] for w in ("positions", "forces", "velocities") if w in named}, properties
    )


def _assemble(file: Path, named: dict[str, Path], properties: Path) -> RawRun:
    read = {what: read_xyz(path) for what, path in named.items()}
    steps = {named[what].name: [_step(c, file) for c in xyz.comments] for what, xyz in read.items()}
    notes = [f"i-PI run read from {', '.join([*steps, properties.name])}."]
    n_frames = common_length(file, {name: len(found) for name, found in steps.items()}, notes)
    check_same_steps(file, steps, n_frames)
    chosen = next(iter(steps.values()))[:n_frames]
    times, energies = _read_properties(properties)
    absent = next((step for step in chosen if step not in energies), None)
    if absent is not None:
        raise UserError(
            f"{file}: {properties.name} has no line for step {absent}; write it at the same steps."
        )
    dt_fs, breaks, time_notes = settle_time_stamps([{"time_fs": times[s]} for s in chosen], str(file))
    values = {what: xyz.values[:n_frames] * _factor(xyz, what, file) for what, xyz in read.items()}
    labels = read["positions"].labels
    if any(xyz.labels != labels for xyz in read.values()):
        raise UserError(f"{file}: the files of the run hold different atoms.")
    cell = one_cell([_cell(comment, file) for comment in read["positions"].comments[:n_frames]])
    numbers = numbers_of(labels, file)
    return RawRun(
        file=str(file),
        reader="i-PI",
        positions=values["positions"],
        forces=values["forces"],
        energies=np.array([energies[step] for step in chosen]),
        cell=cell,
        pbc=np.full(3, bool(cell.any())),
        atomic_numbers=numbers,
        # i-PI's own table, unless the input sets others: then the check finds the motion too slow or fast.
        masses=older_masses(labels, numbers),
        velocities=values.get("velocities"),
        dt_fs=dt_fs,
        breaks=breaks,
        notes=notes + time_notes,
        stride=stride_of(chosen),
    )


def _second_line(file: Path) -> str:
    lines = head_of(file).decode("utf-8", errors="replace").splitlines()
    return lines[1] if len(lines) > 1 and "CELL" in lines[1] else ""


def _bead(file: Path) -> str:
    """The number of the bead in `run.pos_0.xyz`; empty for a centroid's file."""
    match = re.search(r"_(\d+)\.xyz$", plain_name(file))
    return match[1] if match else ""


def _step(comment: str, file: Path) -> int:
    if (match := re.search(r"Step:\s*(\d+)", comment)) is None:
        raise UserError(f"{file}: no step number in the comment line {comment.strip()!r}.")
    return int(match[1])


def _factor(xyz: XyzFrames, what: str, file: Path) -> float:
    match = _KEY.search(xyz.comments[0])
    return _unit(what, match[2] if match else "atomic_unit", file)


def _unit(quantity: str, name: str, file: Path) -> float:
    """The factor of one of i-PI's units, which may carry a prefix (picosecond)."""
    known = _UNITS[quantity]
    name = name.strip().lower() or "atomic_unit"
    if name == "automatic":
        name = "atomic_unit"
    for prefix, scale in (("", 1.0), *_PREFIX.items()):
        if name.startswith(prefix) and name.removeprefix(prefix) in known:
            return scale * known[name.removeprefix(prefix)]
    raise UserError(f"{file}: unknown i-PI unit {name!r} of the {quantity}; known are {', '.join(known)}.")


def _cell(comment: str, file: Path) -> FloatArray:
    number = r"\s+[-+]?\d+\.?\d*(?:[Ee][-+]?\d+)?"
    match = re.search(rf"CELL\(abcABC\):((?:{number}){{6}})\s", comment)
    unit = re.search(r"cell\{([^}]*)\}", comment)
    if match is None:
        raise UserError(f"{file}: no cell in the comment line {comment.strip()!r}.")
    lengths_angles = np.array(match[1].split(), dtype=np.float64)
    if (lengths_angles[:3] <= 0).any():
        return np.zeros((3, 3))  # i-PI's mark of a system without a cell
    scale = _unit("length", unit[1] if unit else "atomic_unit", file)
    return np.array(Cell.fromcellpar([*(lengths_angles[:3] * scale), *lengths_angles[3:]]))


def _find_properties(file: Path, prefix: str) -> Path | None:
    for other in sorted(file.parent.glob(f"{prefix}.*")):
        head = head_of(other)
        if head.startswith(b"#") and b"-->" in head and b"potential" in head:
            return other
    return None


def _read_properties(file: Path) -> tuple[dict[int, float], dict[int, float]]:
    """Time (fs) and potential energy (eV) by step."""
    columns: dict[str, tuple[int, str]] = {}
    times: dict[int, float] = {}
    energies: dict[int, float] = {}
    with reading(file, "i-PI properties") as lines:
        for line in lines:
            if match := re.match(
                r"#\s*(?:column|cols\.)\s+(\d+)(?:-\d+)?\s+-->\s+(\w+)(?:\{([^}]*)\})?", line
            ):
                columns[match[2]] = (int(match[1]) - 1, match[3] or "atomic_unit")
            elif not line.startswith("#") and line.strip():
                words = line.split()
                step, time, energy = (float(words[columns[n][0]]) for n in ("step", "time", "potential"))
                times[round(step)] = time * _unit("time", columns["time"][1], file)
                energies[round(step)] = energy * _unit("energy", columns["potential"][1], file)
    return times, energies
