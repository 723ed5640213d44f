"""Causes: why forces do not explain a run's motion, each tried on the run itself."""

from __future__ import annotations

import numpy as np

from dyntrain.data.constraints import Held
from dyntrain.data.thermostat import measure
from dyntrain.data.trajectory import IntArray, Trajectory

# A shift of the forces explains the motion if it leaves this share of what is unexplained without it.
_CLEARLY_BETTER = 0.1
_MOST_DECIMALS = 7


def lag_of_forces(run: Trajectory, held: Held) -> int:
    """0, or +1 (−1) where frame k holds the forces of frame k + 1 (k − 1): then they explain far more."""
    n = run.n_frames
    if n < 6:
        return 0
    breaks = tuple(b - 1 for b in run.breaks if 1 < b < n - 1)
    inner = run.slice(1, n - 1).replace(breaks=breaks)
    unexplained = {}
    for lag in (0, 1, -1):
        motion = measure(inner.replace(forces=run.forces[1 - lag : n - 1 - lag]), held)
        unexplained[lag] = motion.residual_after_friction if motion else np.inf
    best = min(unexplained, key=lambda lag: unexplained[lag])
    return best if unexplained[best] < _CLEARLY_BETTER * unexplained[0] else 0


def position_digits(run: Trajectory) -> tuple[str, float] | None:
    """How coarsely positions were written ("4 decimals", "single precision") and the step in Å, if so."""
    sample = run.positions[:: max(1, run.n_frames // 50)]
    sample = sample[np.abs(sample) > 0]
    for decimals in range(1, _MOST_DECIMALS + 1):
        scaled = sample * 10.0**decimals
        if sample.size and np.abs(scaled - np.rint(scaled)).max() < 1e-4:
            return f"{decimals} decimals", 10.0**-decimals
    if sample.size and (sample == sample.astype(np.float32)).all():
        return "single precision", float(np.spacing(np.abs(sample).max().astype(np.float32)))
    return None


def rounding_share(run: Trajectory, held: Held, step: float) -> float:
    """rms of δ²r that rounding the positions to `step` causes, over that of dt² F/m."""
    pulls = run.dt**2 * run.forces[:, held.atoms] / run.masses[held.atoms, None]
    size = float(np.sqrt((pulls**2).mean())) if pulls.size else 0.0
    return step * np.sqrt(6 / 12) / size if size > 0 else np.inf


def odd_forces(run: Trajectory, held: Held, step: float) -> IntArray:
    """Frames whose forces do not fit the motion, where rounding positions to `step` explains the others."""
    pulls = run.dt**2 * run.forces[1:-1, held.atoms] / run.masses[held.atoms, None]
    misfit = np.abs(np.diff(run.positions[:, held.atoms], n=2, axis=0) - pulls)
    # Rounding makes δ²r wrong by 1.2 steps in one of ten, and by two at most.
    if misfit.size == 0 or np.quantile(misfit, 0.9) > 1.3 * step:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero((misfit > 2.2 * step).any(axis=(1, 2))) + 1


def lattice_jumps(run: Trajectory) -> bool:
    """Whether atoms jump by cell vectors along directions that are not marked as periodic."""
    cell = run.cell_at(0)
    for axis in np.flatnonzero(~run.pbc):
        length = float(np.linalg.norm(cell[axis]))
        if length < 1.0:
            continue
        steps = np.diff(run.positions, axis=0) @ (cell[axis] / length)
        far = np.abs(steps) > 0.5 * length
        if far.any() and np.median(np.abs(np.abs(steps[far]) - length)) < 0.1 * length:
            return True
    return False
