"""Runs and potentials that are known, and made-up results, that tests of evaluation and report share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dyntrain.data.trajectory import Trajectory
from dyntrain.evaluate import FailureCriterion, FreeRuns, ModelResult, OneStepErrors, RolloutErrors
from dyntrain.models.analytic import Morse
from dyntrain.neighbors import NeighborList
from dyntrain.potential import Conservative, Potential, Prediction
from dyntrain.simulate import simulate
from dyntrain.state import State
from dyntrain.units import FS, KB

TRUE = Conservative(Morse(depth=4.7, a=1.9, d0=1.0, cutoff=10.0))
NEAR = Conservative(Morse(depth=4.6, a=1.9, d0=1.0, cutoff=10.0))
FAR = Conservative(Morse(depth=4.0, a=1.9, d0=1.0, cutoff=10.0))

POSITIONS = np.array([[0, 0, 0], [1, 0, 0], [0.5, 0.866, 0], [0.5, 0.29, 0.8165]])
NUMBERS, MASSES = np.array([6, 1, 8, 1]), np.array([12.0, 1.0, 16.0, 1.0])


def record(
    n_steps: int = 120, dt_fs: float = 0.5, thermostat: float = 0.0, seed: int = 0, **fields: Any
) -> Trajectory:
    """A run of four atoms with the true potential; ``thermostat`` > 0 shakes and brakes it (Langevin)."""
    random = np.random.default_rng(seed)
    positions, velocities = POSITIONS.copy(), random.normal(size=(4, 3)) * 0.08
    frames = []
    dt = dt_fs * FS
    for _ in range(n_steps + 1):
        state = State.from_arrays(positions, NUMBERS, MASSES, velocities=velocities)
        first, second = simulate(TRUE, state, dt, 1)
        energy, forces = first.prediction
        frames.append((positions, velocities, forces.numpy(), float(energy[0])))
        shake = np.sqrt(2 * thermostat * KB * 300.0 * dt / MASSES)[:, None]
        positions = second.state.positions.numpy()
        velocities = second.state.velocities.numpy() * (1 - thermostat * dt)
        velocities = velocities + shake * random.normal(size=(4, 3))
    columns = [np.array(column) for column in zip(*frames, strict=True)]
    settings: dict[str, Any] = {
        "cell": np.zeros((3, 3)), "pbc": [False] * 3, "dt": dt, "file": f"run{seed}", **fields
    }  # fmt: skip
    return Trajectory(*columns, atomic_numbers=NUMBERS, masses=MASSES, **settings)


def made_up(
    name: str, errors: Any, n_failed: int = 0, n_runs: int = 8, failure_fs: float = 500.0
) -> ModelResult:
    """A result with the given force error [n_times, n_starts] at 0, 10, 25, 50 fs and failed free runs."""
    errors = np.asarray(errors, dtype=float)
    times = np.array([0.0, 10.0, 25.0, 50.0])[: len(errors)]
    rollout = RolloutErrors(
        times, errors, errors, {"H": errors}, errors, errors,
        tuple((f"run{k}", 0) for k in range(errors.shape[1])), 50.0, 0.0, np.full_like(errors, np.nan), None,
        OneStepErrors(1, 0.1, 0.1, {"H": 0.1}, 1.0, 1.0),
    )  # fmt: skip
    failed = np.arange(n_runs) < n_failed
    free = FreeRuns(
        np.array([0.0, 1000.0]), np.zeros((2, n_runs)), np.ones((2, n_runs)),
        np.where(failed, failure_fs, 1000.0), failed, {int(k): "burst" for k in np.flatnonzero(failed)},
        1000.0, 0.5, FailureCriterion(), 1.0, np.ones(n_runs),
    )  # fmt: skip
    return ModelResult(name, rollout, free)


class BreaksBeyond(Potential):
    """The true potential, until an atom is further than ``limit`` from where its system started."""

    cutoff = 10.0

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, state: State, neighbors: NeighborList) -> Prediction:
        energy, forces = TRUE(state, neighbors)
        far = state.positions.norm(dim=-1) > self.limit
        return Prediction(energy, torch.where(far[:, None], torch.nan, forces))


def dimer(speed: float = 0.0) -> State:
    return State.from_arrays(
        [[0, 0, 0], [0, 0, 0.75]], [1, 1], [1.0, 1.0], velocities=[[0, 0, -speed], [0, 0, speed]]
    )


class Nothing(Potential):
    """No forces at all, or a constant energy gain ``rate`` (eV/Å) with the way along z."""

    cutoff = 5.0

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, state: State, neighbors: NeighborList) -> Prediction:
        along = self.rate * state.positions[:, 2]
        energy = torch.zeros(state.n_systems, dtype=torch.float64).index_add(0, state.system_idx, along)
        return Prediction(energy, torch.zeros_like(state.positions))
