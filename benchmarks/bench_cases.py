"""What `bench.py` measures of dyntrain itself: a worker that runs one case at a time on demand.

    echo '{"case": "train", "network": "paper", "length": 3}' | python benchmarks/bench_cases.py

One line of JSON in, one out: CPU and wall seconds of the case.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.io import read

from dyntrain import kernel
from dyntrain.data.readers import read_trajectory
from dyntrain.data.segments import Batch, Segment, collate
from dyntrain.data.trajectory import Trajectory
from dyntrain.integrators import VelocityVerlet
from dyntrain.kernel import MOST_THREADS
from dyntrain.loss import Loss, StepWeights, Term, counts
from dyntrain.models.egnn import EGNN
from dyntrain.models.paper_egnn import PaperEGNN
from dyntrain.models.paper_plain import PlainPaperEGNN
from dyntrain.neighbors import VerletNeighbors
from dyntrain.potential import Conservative
from dyntrain.rollout import Adjoint, Full, StopGradient, rollout
from dyntrain.state import State, concatenate
from dyntrain.threads import keep_freed_memory
from dyntrain.training.learner import Learner
from dyntrain.training.step import SKIN, loss_and_gradient
from dyntrain.units import FS

FRAMES = Path(__file__).resolve().parents[1] / "tests" / "data" / "h2pd6gra_80.traj"
"""H2 on Pd6 at a graphene vacancy: 57 atoms, periodic, 0.5 fs."""
ELEMENTS = (1, 6, 46)
BATCH_SIZE = 8
WAYS = {"StopGradient": StopGradient(), "Adjoint": Adjoint(), "Full": Full()}
LOSS = Loss([Term("forces", per_element=True)], StepWeights(50.0, 1.0))


@cache
def structures() -> list[Atoms]:
    return read(FRAMES, ":")


@cache
def potential(network: str) -> Conservative:
    """The paper's network (fast, with tables or plain) or the default one, untrained, single precision."""
    torch.manual_seed(0)
    if network == "egnn":
        return Conservative(EGNN(ELEMENTS))
    paper = PaperEGNN(ELEMENTS)
    if network == "paper with tables":
        return Conservative(paper).eval()  # as a model file is loaded
    return Conservative(paper if network == "paper" else PlainPaperEGNN(paper))


@cache
def trajectory() -> Trajectory:
    return read_trajectory(FRAMES, dt_fs=0.5)


@cache
def start(n_systems: int) -> State:
    return concatenate([State.from_ase(structures()[5 * k]) for k in range(n_systems)])


@cache
def batch(length: int) -> Batch:
    # The frames are 80: longer windows are unrolled from the same starts without labels of their own.
    return collate([Segment(0, 5 * k, min(length, 20)) for k in range(BATCH_SIZE)], [trajectory()])


def training_step(network: str, length: int, way: str) -> None:
    """Roll-out of `length` frames, the paper's loss, and the gradient of the weights."""
    model, of, backprop = potential(network), batch(length), WAYS[way]
    model.zero_grad()
    n_frames = of.length
    pending = torch.zeros((), dtype=torch.float64)
    frames = rollout(
        model,
        of.state,
        # Untrained forces would tear the slab apart in a long roll-out; the cost does not depend on dt.
        VelocityVerlet(0.01 * FS),
        length - 1,
        backprop=backprop,
        neighbors=VerletNeighbors(model.cutoff, SKIN if length > 1 else 0.0),
    )
    totals = counts(of.state)
    for frame in frames:
        difference = frame.prediction.forces - of.targets.forces[frame.step % n_frames]
        pending = pending + LOSS.step_weights.at(frame.step, length) * difference.abs().sum() / totals.sum()
        if backprop.block is not None:
            pending.backward()
            pending = torch.zeros((), dtype=torch.float64)
    if pending.requires_grad:
        pending.backward()


def md(network: str, n_steps: int, n_systems: int = BATCH_SIZE) -> None:
    """Batched velocity Verlet without gradient."""
    model = potential(network)
    with torch.no_grad():
        for _ in rollout(
            model, start(n_systems), VelocityVerlet(0.01 * FS), n_steps, backprop=StopGradient()
        ):
            pass


@cache
def learner(network: str) -> Learner:
    return Learner(potential(network), gradient_clip=1.0, ema=0.99)


def whole_training_step(network: str, met_before: bool) -> None:
    """All that a step of `dyntrain train` does at S = 1: batch, neighbours, loss, gradient, update.

    Frames met before have their neighbours from then, as in all epochs but the first; others are searched.
    """
    of = collate([Segment(0, 5 * k, 1) for k in range(BATCH_SIZE)], [trajectory()])
    if not met_before:
        of = replace(of, state=of.state.replace(positions=of.state.positions + 1e-9 * random.random()))
    learning = learner(network)
    loss_and_gradient(learning.potential, of, LOSS, StopGradient(), counts(of.state))
    learning.update(1e-6, 100)
    learning.optimizer.zero_grad()


@cache
def _ready(network: str, n_systems: int) -> tuple[State, Any]:
    state = start(n_systems)
    return state, VerletNeighbors(potential(network).cutoff)(state)


def bare_training_step(network: str) -> None:
    """The network alone: forces and the gradient of a loss of them, neighbours ready."""
    model, (state, neighbors) = potential(network), _ready(network, BATCH_SIZE)
    model.zero_grad()
    model(state, neighbors).forces.abs().sum().backward()


def bare_evaluations(network: str, n_steps: int) -> None:
    model, (state, neighbors) = potential(network), _ready(network, BATCH_SIZE)
    with torch.no_grad():
        for _ in range(n_steps + 1):
            model(state, neighbors)


def repeated(network: str, times: int) -> None:
    """One evaluation of the slab repeated `times` × `times` in its plane, neighbours included."""
    model = potential(network)
    state = State.from_ase(structures()[0].repeat((times, times, 1)))
    with torch.no_grad():
        model(state, VerletNeighbors(model.cutoff)(state))


CASES: dict[str, Callable[..., None]] = {
    "train": training_step,
    "md": md,
    "whole_training_step": whole_training_step,
    "bare_training_step": bare_training_step,
    "bare_evaluations": bare_evaluations,
    "repeated": repeated,
}


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def run(order: dict[str, Any]) -> dict[str, float]:
    """One case, on so many "threads" (1), without compiled loops if "compiled" is false.

    Bytes: what it took beyond what the process held before.
    """
    case = CASES[order.pop("case")]
    torch.set_num_threads(order.pop("threads", 1))
    kernel.MOST_THREADS = MOST_THREADS if order.pop("compiled", True) else 0
    before, cpu, wall = peak_bytes(), time.process_time(), time.perf_counter()
    case(**order)
    return {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "bytes": peak_bytes() - before,
    }


def main() -> None:
    keep_freed_memory()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
