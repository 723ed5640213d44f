"""How fast models move the same batch, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dyntrain.potential import Potential
from dyntrain.simulate import device_of, simulate
from dyntrain.state import State
from dyntrain.units import FS


@dataclass(frozen=True)
class Speed:
    """ms_per_step: of the batch of ``n_systems`` (median over the rounds); ns_per_day: of each system."""

    ms_per_step: float
    ns_per_day: float
    n_systems: int
    n_atoms: int
    device: str


_N_ROUNDS, _SECONDS_A_ROUND = 5, 0.06


def measure_speed(potentials: Sequence[Potential], starts: State, dt: float) -> list[Speed]:
    """Time free NVE steps of each model in turns, so that what else the machine does hits all alike.

    Args:
        starts: the batch, the same for all.
        dt: time step in ASE time.

    Returns:
        One for each model; a model that bursts within the steps is timed up to there.
    """
    first = [_seconds_per_step(potential, starts, dt, 2) for potential in potentials]  # warms up
    steps = [max(2, min(200, int(_SECONDS_A_ROUND / seconds))) for seconds in first]
    rounds = [
        [_seconds_per_step(potential, starts, dt, n) for potential, n in zip(potentials, steps, strict=True)]
        for _ in range(_N_ROUNDS)
    ]
    seconds = np.median(np.array(rounds), axis=0)
    return [
        Speed(
            ms_per_step=1e3 * float(each),
            ns_per_day=86400.0 / float(each) * dt / FS * 1e-6,
            n_systems=starts.n_systems,
            n_atoms=starts.n_atoms,
            device=str(device_of(potential)),
        )
        for potential, each in zip(potentials, seconds, strict=True)
    ]


def _seconds_per_step(potential: Potential, starts: State, dt: float, n_steps: int) -> float:
    begun, done = time.perf_counter(), 0
    for frame in simulate(potential, starts.to(device_of(potential)), dt, n_steps):
        done = frame.step + 1
        if frame.state.device.type == "cuda":
            torch.cuda.synchronize()
    return (time.perf_counter() - begun) / max(done, 1)
