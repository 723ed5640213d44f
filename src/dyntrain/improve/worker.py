"""The process that continues the model's motion: ``python -m dyntrain.improve.worker FOLDER STORE SHARE N``.

In FOLDER: ``task.json`` and ``starts.traj``; this process takes every N-th start from SHARE on. Each leaves
``NNN.traj`` (the new run) or ``NNN.json`` (why there is none); the reference's results are kept in STORE.
A process of its own with one thread, because tblite's sums depend on the number of threads. It ends when the
process that started it does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.trajectory import Trajectory

from dyntrain.atomic import atomic_path, write_text
from dyntrain.errors import UserError
from dyntrain.evaluate.audit import to_atoms
from dyntrain.improve.reference import ReferencePotential
from dyntrain.improve.task import Task, n_frames, read_starts, state_of
from dyntrain.integrators import VelocityVerlet
from dyntrain.rollout import BurstGuard, Full, rollout
from dyntrain.units import FS


def main() -> None:
    """Do one share of a task."""
    # An interrupt from the keyboard is for the process that started us, which then ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder, store = (Path(word).resolve() for word in sys.argv[1:3])
    share, workers = (int(word) for word in sys.argv[3:5])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    say = _messages()
    try:
        work(folder, store, share, workers, say)
    except UserError as error:
        say(json.dumps({"error": str(error)}))
        sys.exit(2)


def work(folder: Path, store: Path, share: int, workers: int, say: Callable[[str], None]) -> None:
    """Continue the starts of one share that have neither a run nor a reason yet.

    Args:
        say: told the number of each start that is done.

    Raises:
        UserError: the reference cannot be used at all.
    """
    task = Task.read(folder)
    labels = task.reference.labels(store)
    with _empty_folder():
        for number, atoms in enumerate(read_starts(folder)):
            if number % workers == share and not task.is_done(folder, number):
                _continue(task, folder, number, atoms, ReferencePotential(labels))
                say(str(number))


def _end_with_parent() -> None:
    """Standard input ends with the process at its other end, however that ends."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def _messages() -> Callable[[str], None]:
    """A channel of our own: calculators print to stdout, which from here on is stderr."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(line: str) -> None:
        print(line, file=channel, flush=True)

    return say


@contextlib.contextmanager
def _empty_folder() -> Iterator[None]:
    """Work in a new folder: calculators write files where they stand, and read those that they find."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield


def _continue(task: Task, folder: Path, number: int, atoms: Atoms, potential: ReferencePotential) -> None:
    """Let the reference move the atoms on from a start; leaves a run, or the reason why there is none."""
    frames: list[Atoms] = []
    reason = None
    try:
        for moved in _motion(task, atoms, potential):
            frames.append(moved)
            if (force := _largest_force(moved)) > task.largest_force:
                reason = f"dropped: a force of {force:.3g} eV/Å (limit {task.largest_force:.3g}) is not sane"
                break
    except RuntimeError as error:
        reason = f"failed: {' '.join(str(error).split())[:200]}"
    if reason is None and len(frames) < n_frames(atoms):
        reason = "dropped: under the reference itself the atoms fly apart"
    if reason is not None:
        told = {"reason": reason, "calls": potential.n_asked}
        write_text(task.reason(folder, number), json.dumps(told) + "\n")
        return
    with atomic_path(task.run(folder, number)) as part, Trajectory(part, "w") as file:
        for moved in frames:
            file.write(moved)


def _largest_force(atoms: Atoms) -> float:
    return float(np.linalg.norm(atoms.get_forces(), axis=1).max())


@torch.no_grad()
def _motion(task: Task, atoms: Atoms, potential: ReferencePotential) -> Iterator[Atoms]:
    """The frames of the reference's own motion from a start (velocity Verlet), the start included."""
    frames = rollout(
        potential,
        state_of(atoms),
        VelocityVerlet(task.dt_fs * FS),
        n_frames(atoms) - 1,
        backprop=Full(),
        guard=BurstGuard(),
    )
    for frame in frames:
        moved = to_atoms(frame.state)
        moved.info = {"dt_fs": task.dt_fs, "time_fs": frame.step * task.dt_fs}
        moved.calc = SinglePointCalculator(
            moved, energy=float(frame.prediction.energy[0]), forces=frame.prediction.forces.numpy()
        )
        yield moved


if __name__ == "__main__":
    main()
