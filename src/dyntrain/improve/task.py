"""What the reference is to do in a folder, and what it has done there: starts in, new runs out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from ase.io.trajectory import Trajectory as TrajectoryFile

from dyntrain.atomic import atomic_path, write_text
from dyntrain.data.keys import AUTOMATIC, KeyMap
from dyntrain.data.readers import read_trajectories
from dyntrain.data.structures import read_structure
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.improve.reference import Reference
from dyntrain.state import State

_TASK, _STARTS = "task.json", "starts.traj"


@dataclass(frozen=True)
class Task:
    """Continue every start for as many frames as its ``info`` says, itself included; of one frame: label it.

    reference:     what continues
    dt_fs:         time step, fs
    largest_force: a structure with a larger force on an atom is not sane, eV/Å
    """

    reference: Reference
    dt_fs: float
    largest_force: float

    @classmethod
    def read(cls, folder: Path) -> Task:
        values = json.loads((folder / _TASK).read_text(encoding="utf-8"))
        return cls(**{**values, "reference": Reference(**values["reference"])})

    @staticmethod
    def run(folder: Path, number: int) -> Path:
        """The new run of a start."""
        return folder / f"{number:03d}.traj"

    @staticmethod
    def reason(folder: Path, number: int) -> Path:
        """Why a start has no new run."""
        return folder / f"{number:03d}.json"

    def answer(self, file: Path, start: Atoms, keys: KeyMap = AUTOMATIC) -> list[Trajectory]:
        """The runs in a file that holds what the reference made of a start (one, if all is well)."""
        if n_frames(start) > 1:
            return read_trajectories([file], self.dt_fs, keys)
        fixed = state_of(start).fixed
        held = () if fixed is None else fixed.nonzero().flatten().tolist()
        return [read_structure(file, start.get_velocities(), self.dt_fs, held, keys)]

    @classmethod
    def is_done(cls, folder: Path, number: int) -> bool:
        return cls.run(folder, number).exists() or cls.reason(folder, number).exists()


@dataclass(frozen=True)
class Outcome:
    """What became of one start: its new run, or the reason why there is none; and the calls it took."""

    run: Path | None
    reason: str | None
    calls: int


def write_task(folder: Path, task: Task, starts: Sequence[Atoms]) -> None:
    """Put a task into a folder; the starts are written last: with them the task is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / _TASK, json.dumps(asdict(task)) + "\n")
    with atomic_path(folder / _STARTS) as part, TrajectoryFile(part, "w") as file:
        for atoms in starts:
            file.write(atoms)


def is_written(folder: Path) -> bool:
    """Whether a folder holds a complete task."""
    return (folder / _STARTS).exists()


def read_starts(folder: Path) -> list[Atoms]:
    """The starts of a task."""
    found: Any = ase.io.read(folder / _STARTS, ":")
    return list(found)


def n_frames(start: Atoms) -> int:
    """Frames of the new run that begins at a start, and so many calls.

    Raises:
        UserError: an older version wrote the start, which does not say it.
    """
    if "n_frames" not in start.info:
        raise UserError(
            "output: an older version of dyntrain stopped in the middle of a round's segments, and this one "
            "cannot go on with them: remove the round's folder, or choose another output"
        )
    return int(start.info["n_frames"])


def state_of(atoms: Atoms) -> State:
    """One system with the atoms fixed that ASE's ``FixAtoms`` holds."""
    fixed = np.zeros(len(atoms), dtype=np.bool_)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed[constraint.index] = True
    state = State.from_ase(atoms)
    return state.replace(fixed=torch.from_numpy(fixed)) if fixed.any() else state


def outcomes(folder: Path) -> list[Outcome]:
    """What became of each start; call it once all are done."""
    found = []
    for number, start in enumerate(read_starts(folder)):
        if (run := Task.run(folder, number)).exists():
            found.append(Outcome(run, None, n_frames(start)))
        else:
            told = json.loads(Task.reason(folder, number).read_text(encoding="utf-8"))
            found.append(Outcome(None, told["reason"], told["calls"]))
    return found


def carry_out(folder: Path, store: Path, workers: int, progress: Callable[[int, int], None]) -> list[Outcome]:
    """Let processes continue the starts that are not done yet; the same call after a stop goes on.

    Args:
        store: folder of the reference's results.
        workers: processes at the same time, one thread each.
        progress: called with (starts done, starts in all).

    Raises:
        UserError: the reference cannot be used at all.
    """
    n_starts = len(read_starts(folder))
    done = [Task.is_done(folder, number) for number in range(n_starts)]
    progress(sum(done), n_starts)
    if not all(done):
        with _workers(folder, store, workers) as lines:
            for n_done, line in enumerate(lines, sum(done) + 1):
                if line.startswith("{"):
                    raise UserError(f"improve.reference: {json.loads(line)['error']}")
                progress(n_done, n_starts)
    missing = [number for number in range(n_starts) if not Task.is_done(folder, number)]
    if missing:
        raise RuntimeError(f"the reference's processes ended without doing the starts {missing} of {folder}")
    return outcomes(folder)


@contextmanager
def _workers(folder: Path, store: Path, workers: int) -> Iterator[Iterator[str]]:
    """Processes at work on a task, and the lines they print; leaving ends those that still work."""
    command = [sys.executable, "-P", "-m", "dyntrain.improve.worker", str(folder), str(store)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    reading, writing = os.pipe()  # one for all of them: each line is a start that is done
    processes = [
        subprocess.Popen(
            [*command, str(share), str(workers)], env=environment, stdin=subprocess.PIPE, stdout=writing
        )
        for share in range(workers)
    ]
    os.close(writing)
    try:
        with os.fdopen(reading, encoding="utf-8") as lines:
            yield lines
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()  # which ends a process that is still at work
            process.wait()
