"""A reference that the user runs elsewhere: structures written out, finished runs taken in."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from dyntrain.atomic import atomic_path, write_text
from dyntrain.data.keys import KeyMap
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.improve.task import Task, n_frames, read_starts
from dyntrain.units import FS

ASKED, FINISHED = "to_compute", "finished"

_SAME_POSITION = 1e-3
"""Å; files give positions to 1e-6 or better."""

_README = """\
Each file NNN.extxyz here is one structure with velocities; `n_steps` in its second line says what to
calculate, with the method that the training runs were made with:

    n_steps=0   energy and forces of the structure (a single point);
    else        ab initio MD, NVE (microcanonical), time step {dt_fs:g} fs, so many steps (and one frame more,
                the first), starting from exactly these positions and velocities.

Velocities are in the column `velocities`, in Å/fs; ASE reads them from `momenta`, in its own units.
Put the finished calculation of NNN.extxyz into {finished},
as NNN.* (any file that dyntrain reads: NNN.extxyz, NNN.traj, NNN.xml …) or as a folder NNN with the code's
own files. Where a calculation fails, put an empty file NNN.failed there.
Then give the `dyntrain improve` command again.
"""


def ask(folder: Path) -> None:
    """Write the structures to compute, once."""
    task, asked, finished = Task.read(folder), folder / ASKED, folder / FINISHED
    finished.mkdir(exist_ok=True)
    asked.mkdir(exist_ok=True)
    for number, atoms in enumerate(read_starts(folder)):
        if (path := asked / f"{number:03d}.extxyz").exists():
            continue
        atoms.info = {"dt_fs": task.dt_fs, "n_steps": n_frames(atoms) - 1}
        atoms.arrays["velocities"] = atoms.get_velocities() * FS
        with atomic_path(path) as part:
            ase.io.write(part, atoms, format="extxyz")
    text = _README.format(dt_fs=task.dt_fs, finished=finished.resolve())
    write_text(asked / "README.txt", text)


def waiting_for(folder: Path) -> list[int]:
    """Numbers of the structures whose run is not there yet."""
    return [n for n in range(len(read_starts(folder))) if _answer(folder, n) is None]


def collect(folder: Path, keys: KeyMap) -> tuple[list[Trajectory], list[str]]:
    """The finished runs, and a sentence for each that failed.

    Raises:
        UserError: a run that does not begin at its structure, or has another time step.
    """
    task, runs, failures = Task.read(folder), [], []
    for number, atoms in enumerate(read_starts(folder)):
        answer = _answer(folder, number)
        assert answer is not None
        if answer.suffix == ".failed":
            failures.append(f"segment {number:03d} failed, as {answer} says")
        else:
            runs.append(_checked(answer, atoms, task, keys))
    return runs, failures


def _answer(folder: Path, number: int) -> Path | None:
    found = sorted((folder / FINISHED).glob(f"{number:03d}")) + sorted(
        (folder / FINISHED).glob(f"{number:03d}.*")
    )
    return found[0] if found else None


def _checked(answer: Path, atoms: Atoms, task: Task, keys: KeyMap) -> Trajectory:
    runs = task.answer(answer, atoms, keys)
    if len(runs) != 1:
        raise UserError(
            f"{answer} holds {len(runs)} runs, where the one that continues a structure is expected"
        )
    run = runs[0]
    if not np.array_equal(run.atomic_numbers, atoms.numbers):
        raise UserError(
            f"{answer} is a run of {run.formula} (or in another order of atoms), but its structure is "
            f"{atoms.get_chemical_formula()}: keep the order of the atoms"
        )
    apart = run.positions[0] - atoms.positions
    if atoms.pbc.any():
        scaled = np.linalg.solve(atoms.cell.complete().T, apart.T).T
        apart = (scaled - np.round(scaled) * atoms.pbc) @ atoms.cell.complete()
    if not (far := float(np.abs(apart).max())) <= _SAME_POSITION:
        raise UserError(
            f"{answer} does not begin at the structure it should continue (an atom is {far:.3g} Å away): "
            f"start the calculation from {task_input(answer)}"
        )
    return run.slice(0, min(run.n_frames, n_frames(atoms)))


def task_input(answer: Path) -> Path:
    """The structure that a finished run continues."""
    return answer.parent.parent / ASKED / f"{answer.name.split('.')[0]}.extxyz"
