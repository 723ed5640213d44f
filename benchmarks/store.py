"""Memory, windows per second and the share of a training step spent on data, for stores of growing size.

    python benchmarks/store.py [--frames 20000 200000]

prints the table and writes it to benchmarks/store.md. Each store is an exact velocity-Verlet run of nine
atoms; every number is measured in a process of its own, on one core. 10 000 000 frames take 13 GB of disk.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from ase.build import molecule

from dyntrain.data.diagnose import usable_runs
from dyntrain.data.readers import read_trajectories
from dyntrain.data.segments import Segments, collate, epoch_order, find_segments
from dyntrain.data.store import read_ahead, write_store
from dyntrain.data.trajectory import Trajectory
from dyntrain.integrators import VelocityVerlet
from dyntrain.models.egnn import EGNN
from dyntrain.potential import Conservative
from dyntrain.rollout import Full, rollout
from dyntrain.units import FS

LENGTH, BATCH_SIZE = 8, 16
_PIECE = 100_000


def write(n_frames: int, file: Path) -> None:
    """A store of independent oscillators (9–18 fs) about ethanol's structure, made piece by piece."""
    atoms, dt, random = molecule("CH3CH2OH"), 0.5 * FS, np.random.default_rng(0)
    shape = (len(atoms), 3)
    frequency = 2 * np.pi / (random.uniform(9, 18, shape) * FS)
    # Velocity Verlet of an oscillator is again a cosine, of this phase a step.
    phase = np.arccos(1 - 0.5 * (frequency * dt) ** 2)
    start, amplitude = random.uniform(0, 2 * np.pi, shape), random.uniform(0.01, 0.04, shape)
    stiffness = atoms.get_masses()[:, None] * frequency**2
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        arrays = {
            name: np.memmap(Path(folder) / name, np.float64, "w+", shape=(n_frames, *rest))
            for name, rest in (
                ("positions", shape),
                ("velocities", shape),
                ("forces", shape),
                ("energies", ()),
            )
        }
        for first in range(0, n_frames, _PIECE):
            steps = np.arange(first, min(first + _PIECE, n_frames))
            angle = phase * steps[:, None, None] + start
            away = amplitude * np.cos(angle)
            arrays["positions"][steps] = atoms.positions + away
            arrays["velocities"][steps] = -amplitude * np.sin(phase) / dt * np.sin(angle)
            arrays["forces"][steps] = -stiffness * away
            arrays["energies"][steps] = 0.5 * (stiffness * away**2).sum(axis=(1, 2))
        run = Trajectory(
            **arrays,
            cell=np.zeros((3, 3)),
            pbc=np.zeros(3, dtype=bool),
            atomic_numbers=atoms.numbers,
            masses=atoms.get_masses(),
            dt=dt,
        )
        write_store([run], file)


class Memory:
    """Memory of this process that is no page of a mapped file, MB (Linux): the most since `restart`."""

    def __init__(self) -> None:
        self.peak = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def restart(self) -> None:
        self.peak = self.now()

    @staticmethod
    def now() -> float:
        status = Path("/proc/self/status").read_text()
        return float(status.split("RssAnon:")[1].split()[0]) / 1000

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self.now())
            time.sleep(0.005)


def measure(file: Path) -> dict[str, float]:
    """Seconds until training could start, windows per second, memory, and the share of data in a step."""
    torch.set_num_threads(1)
    memory, before = Memory(), Memory.now()  # the libraries' own memory is not the store's
    memory.restart()
    begin = time.perf_counter()
    runs, _ = usable_runs(read_trajectories(file))
    segments = find_segments(runs, LENGTH)
    opened, opening = time.perf_counter() - begin, memory.peak - before
    memory.restart()
    order = epoch_order(len(segments), seed=0, epoch=0)
    with open(file, "rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def seconds_of(first: int, n_batches: int) -> float:
        begin = time.perf_counter()
        for number in range(first, first + n_batches):
            collate(segments.take(order[number * BATCH_SIZE : (number + 1) * BATCH_SIZE]), runs)
        return (time.perf_counter() - begin) / n_batches

    cold = seconds_of(0, 200)
    warm = min(seconds_of(0, 200) for _ in range(3))
    training = memory.peak - before
    return {
        "GB": file.stat().st_size / 1e9,
        "open": opened,
        "opening": opening,
        "training": training,
        "cold": BATCH_SIZE / cold,
        "warm": BATCH_SIZE / warm,
        "share": 100 * share_of_data(segments.take(order[-32 * BATCH_SIZE :]), runs),
    }


def share_of_data(segments: Segments, runs: list[Trajectory]) -> float:
    """Share of training that waits for data, where each step first asks for the next batch's windows."""
    torch.manual_seed(0)
    model = Conservative(EGNN([1, 6, 8]))
    batches = [segments[k : k + BATCH_SIZE] for k in range(0, len(segments), BATCH_SIZE)]
    waited, begin = 0.0, time.perf_counter()
    for windows, following in itertools.pairwise(batches):
        asked = time.perf_counter()
        batch = collate(windows, runs)
        read_ahead(following, runs)
        waited += time.perf_counter() - asked
        verlet = VelocityVerlet(batch.dt)
        frames = rollout(model, batch.state, verlet, LENGTH - 1, backprop=Full(), kicks=batch.kicks)
        loss = sum((f.prediction.forces - batch.targets.forces[f.step]).abs().mean() for f in frames)
        torch.as_tensor(loss).backward()
    return waited / (time.perf_counter() - begin)


def measure_apart(n_frames: int, folder: Path) -> dict[str, float]:
    file = folder / f"{n_frames}.h5"
    write(n_frames, file)
    command = [sys.executable, __file__, "--one", str(file)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    file.unlink()
    return json.loads(done.stdout)


def table(counts: list[int]) -> str:
    """The whole page, in Markdown."""
    lines = [
        "# Training from a store",
        "",
        f"Stores of nine atoms; windows of {LENGTH} frames in random order, {BATCH_SIZE} a batch. *Open*: "
        "reading, checking every number and diagnosing, until training could start. *Memory*: the most that "
        "the process took beyond its libraries, pages of the file aside (the system takes those back when it "
        "needs room). *Cold*: the file is not in the system's cache, nothing is read ahead. *Data*: "
        "share of training (default network, full back-propagation, one CPU core) spent on collating and on "
        "asking for the next batch (`read_ahead`), cold. "
        f"Python {platform.python_version()}, PyTorch {torch.__version__}, {platform.machine()}, one core. "
        f"Made by `python benchmarks/store.py --frames {' '.join(map(str, counts))}`.",
        "",
        "| frames | file, GB | open, s | memory opening, MB | memory collating, MB | windows/s, cold | "
        "windows/s, warm | data, % |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for n_frames in counts:
            m = measure_apart(n_frames, Path(folder))
            lines.append(
                f"| {n_frames} | {m['GB']:.2f} | {m['open']:.1f} | {m['opening']:.0f} | "
                f"{m['training']:.0f} | {m['cold']:.0f} | "
                f"{m['warm']:.0f} | {m['share']:.1f} |"
            )
            print(lines[-1], file=sys.stderr)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--one", metavar="FILE", help="measure in this process, print JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(Path(arguments.one))))
        return
    page = table(arguments.frames)
    Path(__file__).with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
