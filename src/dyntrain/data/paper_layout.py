"""The paper's layout: `traj_<i>.traj` (ASE) beside `velall-<i>`, VASP's fractional velocities times dt."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np

from dyntrain.data.ase_files import read_ase
from dyntrain.data.keys import AUTOMATIC, KeyMap
from dyntrain.data.raw import RawRun
from dyntrain.errors import UserError


def velocity_file(file: Path) -> Path | None:
    """The `velall-<i>` beside a `traj_<i>.traj`, or None where there is none."""
    match = re.fullmatch(r"traj_(\w+)\.traj", file.name)
    beside = file.with_name(f"velall-{match[1]}") if match else None
    return beside if beside is not None and beside.is_file() else None


def read_paper_layout(file: Path, velocities: Path, keys: KeyMap = AUTOMATIC) -> RawRun:
    """Read a run whose velocities stand in a text file: a line of 3 numbers per atom per frame.

    The numbers are displacements per step in fractions of the cell vectors, so that
    v [Å/fs] = (numbers / dt) @ cell.

    Raises:
        UserError: as `read_ase`, or a text file that is not numbers or has another number of lines.
    """
    if keys.velocities or "velocities" in keys.units:
        raise UserError(
            f"{file}: its velocities are those of {velocities.name}, fractions of the cell a step; take it "
            "away to read others, or leave the key or unit of velocities out."
        )
    run = read_ase(file, keys)
    n_frames, n_atoms = run.positions.shape[:2]
    numbers = _read_numbers(velocities)
    if numbers.shape[0] != n_frames * n_atoms:
        raise UserError(
            f"{velocities} has {numbers.shape[0]} lines; {file.name} with {n_frames} frames of {n_atoms} "
            f"atoms needs {n_frames * n_atoms}."
        )
    fractional = numbers.reshape(n_frames, n_atoms, 3)
    if run.velocities is not None:
        run.notes.append(f"Velocities taken from {velocities.name}, not from the momenta in {file.name}.")
    run.velocities = None
    run.displacements = fractional @ run.cell
    run.reader = "paper layout"
    return run


def _read_numbers(file: Path) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty file warns; the line count below says more
            numbers = np.loadtxt(file, ndmin=2)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as lines of 3 numbers ({error}).") from error
    if numbers.size == 0:
        return np.empty((0, 3))
    if numbers.shape[1] != 3:
        raise UserError(f"{file} must have 3 numbers a line, got {numbers.shape[1]}.")
    return numbers
