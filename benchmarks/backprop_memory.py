"""Memory and time of one training step against the segment length S, for each way of going backward.

    python benchmarks/backprop_memory.py

prints the table and writes it to benchmarks/backprop_memory.md. Every number is measured in a process of
its own, on one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from ase.build import molecule

from dyntrain.integrators import VelocityVerlet
from dyntrain.models.egnn import EGNN
from dyntrain.potential import Conservative, Potential
from dyntrain.rollout import Adjoint, Backprop, Full, StopGradient, rollout
from dyntrain.state import State, concatenate
from dyntrain.units import FS, KB

WAYS: dict[str, Backprop] = {"StopGradient": StopGradient(), "Full": Full(), "Adjoint": Adjoint()}
LENGTHS = (1, 4, 16, 64, 256)
BATCH_SIZE = 8

# The network is untrained; in so short a time it cannot tear the molecules apart. Memory and time of a
# step do not depend on dt.
DT = 0.01 * FS


def start() -> State:
    """A batch of ethanol molecules at 300 K."""
    systems = []
    for number in range(BATCH_SIZE):
        atoms = molecule("CH3CH2OH")
        random = np.random.default_rng(number)
        atoms.positions += random.normal(scale=0.03, size=atoms.positions.shape)
        speed = np.sqrt(KB * 300.0 / atoms.get_masses())[:, None]
        atoms.set_velocities(speed * random.normal(size=atoms.positions.shape))
        systems.append(State.from_ase(atoms))
    return concatenate(systems)


def potential() -> Potential:
    """What is measured; put your own here."""
    torch.manual_seed(0)
    return Conservative(EGNN([1, 6, 8]))


def training_step(model: Potential, state: State, backprop: Backprop, length: int) -> None:
    """Roll out S frames, a loss of the forces in each, and the gradient of the parameters."""
    pending = torch.zeros((), dtype=torch.float64)
    for frame in rollout(model, state, VelocityVerlet(DT), length - 1, backprop=backprop):
        pending = pending + frame.prediction.forces.pow(2).sum()
        if backprop.block is not None:
            pending.backward()
            pending = torch.zeros((), dtype=torch.float64)
    if pending.requires_grad:
        pending.backward()


def peak_bytes() -> int:
    """Most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measure(way: str, length: int) -> dict[str, float]:
    """Seconds of a training step, and MB beyond what the process holds before it."""
    torch.set_num_threads(1)
    model, state = potential(), start()
    # One molecule and two frames load all code and buffers that have nothing to do with S.
    training_step(model, state.select([0]), WAYS[way], 2)
    model.zero_grad()
    before, begin = peak_bytes(), time.perf_counter()
    training_step(model, state, WAYS[way], length)
    return {"seconds": time.perf_counter() - begin, "MB": (peak_bytes() - before) / 1e6}


def measure_apart(way: str, length: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", way, str(length)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def table() -> str:
    """The whole page, in Markdown."""
    state = start()
    lines = [
        "# Memory and time against the segment length",
        "",
        f"One training step (roll-out of S frames, force loss, gradient) of the default network on "
        f"{state.n_systems} ethanol molecules ({state.n_atoms} atoms), one core. Memory is what the process "
        "took beyond what it held before the step; each number comes from a process of its own. "
        f"Python {platform.python_version()}, PyTorch {torch.__version__}, {platform.machine()}. "
        "Made by `python benchmarks/backprop_memory.py`.",
        "",
        "| S | " + " | ".join(f"{way}, MB | {way}, s" for way in WAYS) + " |",
        "|--:" * (1 + 2 * len(WAYS)) + "|",
    ]
    for length in LENGTHS:
        row = [measure_apart(way, length) for way in WAYS]
        cells = [f"{one['MB']:.0f} | {one['seconds']:.2f}" for one in row]
        lines.append(f"| {length} | " + " | ".join(cells) + " |")
        print(lines[-1], file=sys.stderr)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, metavar=("WAY", "S"), help="measure in this process, print JSON")
    arguments = parser.parse_args()
    if arguments.one:
        way, length = arguments.one
        print(json.dumps(measure(way, int(length))))
        return
    page = table()
    Path(__file__).with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
