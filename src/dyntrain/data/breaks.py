"""Breaks: where a run is not continuous (resets, restarts, jumps), and runs that respect it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dyntrain.data.motion import moving_atoms, orthonormal, remove, second_difference
from dyntrain.data.trajectory import FloatArray, IntArray, Trajectory
from dyntrain.data.velocities import verlet_velocities

# A step is a break where it differs from velocity Verlet by more than this fraction of dt² F/m …
_SMALLEST = 1e-3
# … and by this many times more than the run's steps usually do.
_UNUSUAL = 10.0
# What happens at more than this share of the steps is a thermostat's work, not a series of resets.
_FEW = 0.05


def find_breaks(trajectory: Trajectory) -> tuple[int, ...]:
    """Frames b such that something other than the dynamics happened between b − 1 and b, ascending.

    Measured step by step against what the run usually does beside velocity Verlet, with and without what a
    friction common to all atoms explains: a thermostat that acts all the time makes no breaks. Known breaks
    of the trajectory are kept.
    """
    if not moving_atoms(trajectory.positions).size:
        return trajectory.breaks
    found = (
        _from_centres(trajectory) if trajectory.velocities_origin == "rebuilt" else _from_steps(trajectory)
    )
    repeated = 1 + np.flatnonzero((trajectory.positions[1:] == trajectory.positions[:-1]).all(axis=(1, 2)))
    return tuple(sorted({*trajectory.breaks, *(int(b) for b in (*found, *repeated))}))


def with_breaks(trajectory: Trajectory, breaks: Iterable[int]) -> Trajectory:
    """The same run with these breaks added; rebuilt velocities are rebuilt again on each side of them."""
    every = tuple(sorted({*trajectory.breaks, *breaks}))
    if every == trajectory.breaks:
        return trajectory
    if trajectory.velocities_origin != "rebuilt":
        return trajectory.replace(breaks=every)
    t = trajectory
    velocities = verlet_velocities(t.positions, t.forces, t.masses, t.dt, every)
    return trajectory.replace(breaks=every, velocities=velocities)


def _from_steps(trajectory: Trajectory) -> IntArray:
    """Breaks by the kicks of each step, as they are and without what a friction explains."""
    root = np.sqrt(trajectory.masses)[:, None]
    kicks = trajectory.kicks()
    moved = root * kicks.positions.numpy()
    turned = root * kicks.velocities.numpy() * trajectory.dt
    velocities, pulls = root * trajectory.velocities[:-1], trajectory.forces / root
    # Friction at both ends of a step, v' = v + ½dt (a + a' − ξv − ξ'v'), acts in the plane of v and a + a'.
    moved_rest = remove(moved, orthonormal(velocities))
    turned_rest = remove(turned, orthonormal(velocities, pulls[1:] + pulls[:-1]))
    scale = _scale(trajectory)
    odd = _jumps(trajectory, moved_rest)
    for kick in (moved_rest, turned_rest, turned):
        odd |= _if_few(_unusual(kick, scale))
    return 1 + np.flatnonzero(odd)


def _from_centres(trajectory: Trajectory) -> IntArray:
    """Breaks by the second differences around each inner frame, where no velocities are recorded.

    A velocity reset makes one frame odd: it begins the new stretch. A jump between two frames makes both
    odd: the later one begins the new stretch. One wrong frame makes three odd: it stands alone.
    """
    r, root = trajectory.positions, np.sqrt(trajectory.masses)[:, None]
    gap = root * second_difference(r) - trajectory.dt**2 * trajectory.forces[1:-1] / root
    rest = remove(gap, orthonormal(root * (r[2:] - r[:-2])))
    scale = _scale(trajectory)
    odd = _if_few(_unusual(rest, scale)) | _if_few(_unusual(gap, scale))
    frames = 1 + np.flatnonzero(odd)
    groups = np.split(frames, 1 + np.flatnonzero(np.diff(frames) > 1))
    return np.concatenate([group if group.size == 1 else group[1:] for group in groups])


def _unusual(misfit: FloatArray, scale: float) -> np.ndarray:
    """Which of the frames' misfits [n, n_atoms, 3] are far above the run's usual."""
    size = np.linalg.norm(misfit.reshape(misfit.shape[0], -1), axis=1)
    return np.asarray(size > max(_SMALLEST * scale, _UNUSUAL * float(np.median(size))))


def _jumps(trajectory: Trajectory, moved: FloatArray) -> np.ndarray:
    """Steps that displace the atoms several times further than their velocities do."""
    steps = np.sqrt(trajectory.masses)[:, None] * trajectory.velocities[:-1] * trajectory.dt
    usual = float(np.median(np.linalg.norm(steps.reshape(steps.shape[0], -1), axis=1)))
    size = np.linalg.norm(moved.reshape(moved.shape[0], -1), axis=1)
    return np.asarray(size > max(3 * usual, _UNUSUAL * float(np.median(size))))


def _if_few(odd: np.ndarray) -> np.ndarray:
    return odd if odd.mean() <= _FEW else np.zeros_like(odd)


def _scale(trajectory: Trajectory) -> float:
    """Typical size of √m dt² F/m over a frame."""
    pulls = trajectory.forces / np.sqrt(trajectory.masses)[:, None] * trajectory.dt**2
    return float(np.median(np.linalg.norm(pulls.reshape(trajectory.n_frames, -1), axis=1)))
