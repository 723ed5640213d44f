"""The AIMD generator: runs side by side, each resumed where it stopped, its file there only when complete."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.trajectory import Trajectory

from dyntrain.atomic import atomic_path
from dyntrain.errors import UserError
from dyntrain.reference.calculators import running_calculator
from dyntrain.reference.record import Record
from dyntrain.reference.runs import Piece, atoms_during, n_pieces_done, piece_path, plan
from dyntrain.reference.settings import AimdSettings


@dataclass(frozen=True)
class AimdProgress:
    """Where the generator stands; ``step`` is negative during thermalisation.

    ``steps_done`` and ``steps_total`` count all runs, thermalisation included.
    """

    run: int
    step: int
    energy_eV: float
    temperature_K: float
    steps_done: int
    steps_total: int


def generate_aimd(
    settings: AimdSettings,
    output: Path,
    *,
    n_runs: int = 1,
    workers: int = 1,
    progress: Callable[[AimdProgress], None] | None = None,
) -> list[Path]:
    """Make independent AIMD runs, or go on with those that an earlier call began.

    Every run is seeded by (``settings.seed``, its number), so neither the number of runs nor that of workers
    changes it; stopped at any moment and called again, it ends with the same digits.

    Args:
        output: folder; gets ``<name>_000.traj`` … and ``<name>_aimd.json`` (settings, versions, structure).
        n_runs: runs in all; more than before adds runs to a folder.
        workers: runs at the same time, each in a process of one thread.
        progress: called every ``settings.checkpoint_every`` steps of a run, from one thread at a time.

    Returns:
        The files: ASE trajectories of ``n_steps + 1`` frames with positions, momenta, energy and forces, all
        of the same time, float64; ``info`` has ``dt_fs`` and ``time_fs``, that of frame 0 ``aimd`` (JSON).

    Raises:
        UserError: unknown system, method or option, tblite missing, a failed calculation, or a folder that is
            not writable, is in use, or holds runs of other settings.
    """
    if n_runs < 1 or workers < 1:
        raise UserError(f"the numbers of runs and workers must be at least 1, got {n_runs} and {workers}")
    with running_calculator(settings.method, settings.calculator_options):
        pass  # a missing package or a wrong option is told once, and here
    record = Record.of(settings, output)
    files = [record.trajectory(run) for run in range(n_runs)]
    unfinished = [run for run, file in enumerate(files) if not file.exists()]
    try:
        output.mkdir(parents=True, exist_ok=True)
        _begin(record, files)
    except OSError as error:
        raise UserError(f"cannot write to the folder {output}: {error.strerror}") from error
    with _sole_user(record):
        jobs = _Jobs(record, n_runs, progress or (lambda _: None))
        jobs.run(unfinished, workers)
        for run in range(n_runs):
            shutil.rmtree(record.pieces_folder(run), ignore_errors=True)
    return files


def _begin(record: Record, files: list[Path]) -> None:
    """Write the record, or hold the one of an earlier call against the present settings."""
    present = [file.name for file in files if file.exists()]
    if record.path.exists():
        record.check_same(Record.read(record.path), unfinished=len(present) < len(files))
    elif present:
        raise UserError(
            f"{record.path.parent} holds {present[0]}, but no {record.path.name} that tells how it was made: "
            "choose another output folder"
        )
    else:
        record.write()


@contextmanager
def _sole_user(record: Record) -> Iterator[None]:
    """Hold the record locked; the lock goes with the process, however that ends."""
    with record.path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another dyntrain aimd is at work on {record.path}") from error
        yield


@dataclass
class _Jobs:
    """The processes that make the runs, and the count of what they have done."""

    record: Record
    n_runs: int
    progress: Callable[[AimdProgress], None]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: bool = False

    def __post_init__(self) -> None:
        total = self.record.settings.total_steps
        self.steps_done = {run: self._steps_on_disk(run) for run in range(self.n_runs)}
        self.steps_total = self.n_runs * total

    def _steps_on_disk(self, run: int) -> int:
        if self.record.trajectory(run).exists():
            return self.record.settings.total_steps
        tasks = plan(self.record.settings)
        n_done = n_pieces_done(tasks, self.record.pieces_folder(run))
        return sum(task.last - task.first for task in tasks[:n_done])

    def run(self, runs: list[int], workers: int) -> None:
        """Make the given runs; one that fails does not stop the others, an interrupt stops all."""
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(self._make, run) for run in runs]
            try:
                failures = [failure for future in futures if (failure := future.exception())]
            finally:
                self.stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                for process in self.processes:
                    process.terminate()
        if failures:
            raise failures[0]

    def _make(self, run: int) -> None:
        command = [sys.executable, "-P", "-m", "dyntrain.reference.worker", str(self.record.path), str(run)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            self.processes.append(process)
            assert process.stdout is not None
            for line in process.stdout:
                self._heard(run, json.loads(line))
        if process.returncode != 0:
            raise RuntimeError(f"the process of run {run} ended with code {process.returncode}")
        _assemble(self.record, run)

    def _heard(self, run: int, message: dict[str, float]) -> None:
        if "error" in message:
            raise UserError(str(message["error"]))
        if self.stopped:
            raise RuntimeError("stopped")  # closes the pipe, which ends the process
        step = int(message["step"])
        with self.lock:
            self.steps_done[run] = step + self.record.settings.thermalise_steps
            self.progress(
                AimdProgress(
                    run,
                    step,
                    message["energy_eV"],
                    message["temperature_K"],
                    sum(self.steps_done.values()),
                    self.steps_total,
                )
            )


def _assemble(record: Record, run: int) -> None:
    """Put the recorded pieces of a run together as one ASE trajectory."""
    settings, folder, path = record.settings, record.pieces_folder(run), record.trajectory(run)
    frame = 0
    with atomic_path(path) as part, Trajectory(part, "w") as trajectory:
        for number, task in enumerate(plan(settings)):
            if task.kind != "record":
                continue
            piece = Piece.read(piece_path(folder, number))
            for positions, momenta, forces, energy in piece.frames():
                atoms = atoms_during(task, settings, record.atoms)
                atoms.positions = positions
                atoms.set_momenta(momenta)
                atoms.info = {"dt_fs": settings.dt_fs, "time_fs": frame * settings.dt_fs}
                if frame == 0:
                    atoms.info["aimd"] = json.dumps({**record.content(), "run": run})
                atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
                trajectory.write(atoms)
                frame += 1
