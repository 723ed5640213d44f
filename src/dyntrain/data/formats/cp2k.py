"""CP2K: PROJECT-pos-1.xyz with the velocities, forces, energies and cells beside it, and the input or log."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ase.data import atomic_masses

from dyntrain.data.formats.cp2k_settings import Settings, find_settings
from dyntrain.data.formats.frames import (
    ase_stress,
    check_same_steps,
    common_length,
    missing_files,
    numbers_of,
    older_masses,
    one_cell,
)
from dyntrain.data.formats.text import beside, plain_name, reading
from dyntrain.data.formats.xyz import XyzFrames, read_xyz
from dyntrain.data.raw import RawRun
from dyntrain.data.timestamps import settle_time_stamps, stride_of
from dyntrain.data.trajectory import FloatArray, IntArray, check_cell, check_finite
from dyntrain.errors import UserError
from dyntrain.units import AUT, BOHR, HARTREE, KBAR

NAME = re.compile(r"(?P<project>.+)-(?P<what>pos|vel|frc)-(?P<run>\d+)\.xyz")

_BAR = KBAR / 1000
_STEP = re.compile(r"\bi\s*=\s*(\d+)")
_TIME = re.compile(r"\btime\s*=\s*([-+.\dEe]+)")
_ENERGY = re.compile(r"\bE\s*=\s*([-+.\dEe]+)")


def read_cp2k(file: Path) -> RawRun:
    """Read the run of which one of the files is named.

    Positions are Å, velocities bohr per atomic unit of time, forces hartree/bohr, energies hartree: CP2K's
    defaults for these files.

    Raises:
        UserError: files of the run that are missing or of other steps, or damaged content.
    """
    match = NAME.fullmatch(plain_name(file))
    if match is None:
        raise UserError(f"{file}: CP2K's trajectory files are named PROJECT-pos-1.xyz.")
    project, number = match["project"], match["run"]
    paths = {what: beside(file, f"{project}-{what}-{number}.xyz") for what in ("pos", "frc", "vel")}
    if paths["pos"] is None and beside(file, f"{project}-pos-{number}.dcd") is not None:
        raise UserError(
            f"{file}: a DCD holds positions in single precision, too coarse for second differences; write "
            "&TRAJECTORY with FORMAT XYZ."
        )
    if lacking := [what for what in ("pos", "frc") if paths[what] is None]:
        raise missing_files(
            file,
            [f"{project}-{what}-{number}.xyz" for what in lacking],
            "switch &TRAJECTORY and &FORCES on under &MOTION / &PRINT",
        )
    named = {path.name: read_xyz(path) for path in paths.values() if path is not None}
    settings = find_settings(file.parent, project)
    run = _assemble(file, named, settings, f"{project}-{number}")
    used = [*named, *settings.read_from]
    run.notes.insert(0, f"CP2K run read from {', '.join(used)}.")
    return run


def _assemble(file: Path, named: dict[str, XyzFrames], settings: Settings, stem: str) -> RawRun:
    notes = list(settings.notes)
    steps = {
        name: [_number(_STEP, c, file, "step number") for c in xyz.comments] for name, xyz in named.items()
    }
    n_frames = common_length(file, {name: len(found) for name, found in steps.items()}, notes)
    check_same_steps(file, steps, n_frames)
    positions, forces, *velocities = named.values()
    for name, xyz in named.items():
        if xyz.labels != positions.labels:
            raise UserError(f"{file}: the atoms of {name} are not those of the positions.")
    first_steps = [int(step) for step in next(iter(steps.values()))[:n_frames]]
    comments = positions.comments[:n_frames]
    times, energies = _times_and_energies(file, stem, first_steps, comments)
    dt_fs, breaks, time_notes = settle_time_stamps([{"time_fs": time} for time in times], str(file))
    numbers = numbers_of(positions.labels, file)
    run = RawRun(
        file=str(file),
        reader="CP2K",
        positions=positions.values[:n_frames],
        forces=forces.values[:n_frames] * (HARTREE / BOHR),
        energies=np.array(energies) * HARTREE,
        cell=_cell(file, stem, first_steps, settings, notes),
        pbc=settings.periodic,
        atomic_numbers=numbers,
        masses=_masses(numbers, settings, positions.labels, notes),
        velocities=velocities[0].values[:n_frames] * (BOHR / AUT) if velocities else None,
        dt_fs=dt_fs,
        breaks=breaks,
        notes=notes + time_notes,
        stride=stride_of(first_steps),
    )
    run.stress = _stress(run, stem, first_steps)
    return run


def _stress(run: RawRun, stem: str, steps: list[int]) -> FloatArray | None:
    """Of the .stress file, the pressure tensor, from which what the atoms' motion adds is taken off.

    None without that file, a frame that it lacks, or velocities.
    """
    if (path := beside(Path(run.file), f"{stem}.stress")) is None:
        return None
    with reading(path, "a CP2K .stress file") as lines:
        table = _rows(lines)
        pressures = {int(row[0]): np.array(row[2:11], dtype=np.float64).reshape(3, 3) for row in table}
    if run.velocities is None or not set(steps) <= pressures.keys():
        run.notes.append(
            f"No stress: {path.name} needs every frame, and velocities beside it to take off theirs."
        )
        return None
    check_finite(tensors := np.stack([pressures[step] for step in steps]), "stress", str(path))
    volumes = np.abs(np.linalg.det(run.cell)) * np.ones(len(steps))
    motion = np.einsum("i,kia,kib->kab", run.masses, run.velocities, run.velocities) / volumes[:, None, None]
    return ase_stress(list(tensors - motion / _BAR), _BAR, run.notes)


def _rows(lines: Iterable[str]) -> list[list[str]]:
    """The words of the lines of a table."""
    return [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _number(pattern: re.Pattern[str], comment: str, file: Path, what: str) -> int:
    if (match := pattern.search(comment)) is None:
        raise UserError(f"{file}: no {what} in the comment line {comment.strip()!r}; CP2K writes `i = …`.")
    return int(match[1])


def _times_and_energies(
    file: Path, stem: str, steps: list[int], comments: list[str]
) -> tuple[list[float], list[float]]:
    """fs and hartree: of the .ener file, which has more digits of the time, else of the comment lines."""
    if (ener := beside(file, f"{stem}.ener")) is not None:
        with reading(ener, "a CP2K .ener file") as lines:
            table = {int(row[0]): (float(row[1]), float(row[4])) for row in _rows(lines)}
        # After a restart a step may stand twice with another time: then the comments tell the order.
        if set(steps) <= table.keys() and len(set(steps)) == len(steps):
            return [table[step][0] for step in steps], [table[step][1] for step in steps]
    found = [(_TIME.search(comment), _ENERGY.search(comment)) for comment in comments]
    for frame, (time, energy) in enumerate(found):
        if time is None or energy is None:
            raise UserError(
                f"{file}, frame {frame}: no time and energy in the comment line, nor in {stem}.ener."
            )
    try:
        return [float(t[1]) for t, _ in found if t], [float(e[1]) for _, e in found if e]
    except ValueError as error:
        raise UserError(f"{file}: a time or energy in the comment lines is no number ({error}).") from error


def _cell(file: Path, stem: str, steps: list[int], settings: Settings, notes: list[str]) -> FloatArray:
    if (path := beside(file, f"{stem}.cell")) is not None:
        with reading(path, "a CP2K .cell file") as lines:
            cells = {int(row[0]): np.array(row[2:11], dtype=np.float64).reshape(3, 3) for row in _rows(lines)}
        if set(steps) <= cells.keys():
            return one_cell([cells[step] for step in steps])
    if settings.cell is None:
        needed = [f"{stem}.cell, the input (.inp, .restart) or the log (.out, .log)"]
        raise missing_files(file, needed, "the cell is in none of the trajectory files")
    check_cell(settings.cell, settings.periodic, str(file), 0)
    lengths = ", ".join(f"{length:.6g}" for length in np.linalg.norm(settings.cell, axis=1))
    notes.append(f"No {stem}.cell: the cell ({lengths} Å) is that of the input or log.")
    return settings.cell


def _masses(numbers: IntArray, settings: Settings, labels: list[str], notes: list[str]) -> FloatArray:
    """CP2K's own masses: of the log (four decimals), filled up by the older table that CP2K uses."""
    older = older_masses(labels, numbers)
    for number, label in enumerate(labels):
        older[number] = settings.kind_masses.get(label, older[number])
    if settings.kind_masses:
        notes.append(
            f"The input sets masses: {', '.join(f'{k} {m:g}' for k, m in settings.kind_masses.items())} u."
        )
    if settings.masses is None:
        current = np.array(atomic_masses[numbers])
        if not settings.kind_masses and not np.allclose(older, current, rtol=1e-6):
            notes.append(
                "Masses are those CP2K uses where the input sets none (H 1.00794 u); no log says them."
            )
        return older
    if settings.masses.shape != older.shape:
        return older
    return np.where(np.abs(older - settings.masses) <= 6e-5, older, settings.masses)
