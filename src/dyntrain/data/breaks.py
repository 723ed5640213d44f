"""Breaks: where a run is not continuous (resets, restarts, jumps), and runs that respect it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dyntrain.data.motion import (
    common_directions,
    cosine,
    moving_atoms,
    orthonormal,
    remove,
    second_difference,
    strains,
)
from dyntrain.data.trajectory import FloatArray, IntArray, Trajectory
from dyntrain.data.velocities import verlet_velocities

# A step is a break where it differs from velocity Verlet by more than this fraction of dt² F/m …
_BREAK = 1e-3
# … and only worth a remark above this one (digits of the file, loosely converged forces) …
_REMARK = 1e-7
# … and in both cases by this many times more than the run's steps usually do.
_UNUSUAL = 10.0
# What happens at more than this share of the steps is a thermostat's work: collisions, rescaled velocities.
_FEW_COLLISIONS, _FEW_RESCALINGS = 0.15, 0.05
# Positions that jump at most of the steps are no broken run but no run at all (shuffled, far apart in time).
_FEW_JUMPS = 0.5
# In short runs, this many steps are few in any case.
_FEW_STEPS = 3
# Velocities count as rescaled when their change points along them but for this share of it.
_RESCALED = 0.35


def find_breaks(trajectory: Trajectory) -> tuple[int, ...]:
    """Frames b such that something other than the dynamics happened between b − 1 and b, ascending.

    Measured step by step against what the run usually does beside velocity Verlet, with and without what a
    friction common to all atoms explains: a thermostat that acts all the time makes no breaks. Known breaks
    of the trajectory are kept.
    """
    still = (trajectory.positions[1:] == trajectory.positions[:-1]).all(axis=(1, 2))
    if still.all():
        return trajectory.breaks
    found = _find(trajectory, _BREAK)
    repeated = 1 + np.flatnonzero(still)
    return tuple(sorted({*trajectory.breaks, *(int(b) for b in (*found, *repeated))}))


def find_irregular(trajectory: Trajectory) -> tuple[int, ...]:
    """Frames reached by steps far rougher than the run's usual, yet too little to be breaks, ascending."""
    found = {int(b) for b in _find(trajectory, _REMARK)}
    return tuple(sorted(found - set(trajectory.breaks)))


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


def describe_break(trajectory: Trajectory, b: int) -> str:
    """What seems to have happened between frames b − 1 and b of a run whose breaks are marked."""
    t, k = trajectory, b - 1
    atoms = moving_atoms(t.positions)
    root = np.sqrt(t.masses[atoms])[:, None]
    moved = root * (t.positions[b] - t.positions[k])[atoms]
    if not moved.any():
        return "a repeated frame"
    kicks = t.kicks(k, b + 1)
    before, after = (root * t.velocities[frame, atoms] * t.dt for frame in (k, b))
    jumped = root * kicks.positions.numpy()[0, atoms]
    turned = root * kicks.velocities.numpy()[0, atoms] * t.dt
    usual = float(np.linalg.norm(before))
    if np.linalg.norm(jumped) > 0.3 * usual:
        along = before + after
        n_steps = 2 * float((moved * along).sum() / (along * along).sum())
        if cosine(moved, along) > 0.95 and n_steps > 1.5:
            return f"about {round(n_steps) - 1} frame(s) missing"
        return "a jump to other positions (another run or a restart from elsewhere)"
    whole = [*common_directions(root), *_rotations(t.positions[b, atoms], root)]
    if whole and _share_beside(turned, whole) < 0.1:
        return "centre-of-mass motion or rotation taken out"
    if _share_beside(turned, [before]) < _RESCALED:
        return "velocities rescaled"
    if np.linalg.norm(turned) > 0.3 * usual:
        return "velocities drawn anew (a restart)"
    return "a small reset, or forces not converged"


def _share_beside(x: FloatArray, directions: list[FloatArray]) -> float:
    """How much of x [n_atoms, 3] lies beside the directions."""
    rest = remove(x[None], orthonormal(*(direction[None] for direction in directions)))
    return float(np.linalg.norm(rest) / np.linalg.norm(x)) if x.any() else 0.0


def spacing(breaks: tuple[int, ...]) -> int | None:
    """The number of frames between breaks that come periodically (at least three of them), else None."""
    gaps = np.diff(breaks)
    return int(gaps[0]) if gaps.size >= 2 and (gaps == gaps[0]).all() else None


def _rotations(r: FloatArray, root: FloatArray) -> list[FloatArray]:
    arms = r - (root**2 * r).sum(0) / (root**2).sum()
    return [root * np.cross(axis, arms) for axis in np.eye(3)] if r.shape[0] > 2 else []


def _find(trajectory: Trajectory, smallest: float) -> IntArray:
    if trajectory.n_frames < 3:
        return np.empty(0, np.int64)
    smallest *= _scale(trajectory)
    if trajectory.velocities_origin == "rebuilt":
        return _from_centres(trajectory, smallest)
    return _from_steps(trajectory, smallest)


def _from_steps(trajectory: Trajectory, smallest: float) -> IntArray:
    """Breaks by the kicks of each step, as they are and without what a friction explains."""
    root = np.sqrt(trajectory.masses)[:, None]
    kicks = trajectory.kicks()
    moved, turned = (
        _without_barostat(trajectory, kick, trajectory.positions[:-1], root)
        for kick in (root * kicks.positions.numpy(), root * kicks.velocities.numpy() * trajectory.dt)
    )
    velocities, pulls = root * trajectory.velocities[:-1], trajectory.forces / root
    # Friction at both ends of a step, v' = v + ½dt (a + a' − ξv − ξ'v'), acts in the plane of v and a + a'.
    moved_rest = remove(moved, orthonormal(velocities))
    turned_rest = remove(turned, orthonormal(velocities, pulls[1:] + pulls[:-1]))
    odd = _if_few(_jumps(moved, velocities * trajectory.dt), _FEW_JUMPS)
    odd |= _if_few(_unusual(moved_rest, smallest) | _unusual(turned_rest, smallest), _FEW_COLLISIONS)
    odd |= _if_few(_unusual(turned, smallest), _FEW_RESCALINGS)
    return 1 + np.flatnonzero(odd)


def _from_centres(trajectory: Trajectory, smallest: float) -> IntArray:
    """Breaks by the second differences around each inner frame, where no velocities are recorded.

    A velocity reset makes one frame odd: it begins the new stretch. A jump between two frames makes both
    odd: the later one begins the new stretch. One wrong frame makes three odd: it stands alone.
    """
    atoms = moving_atoms(trajectory.positions)  # forces on fixed atoms move nothing
    r, root = trajectory.positions[:, atoms], np.sqrt(trajectory.masses[atoms])[:, None]
    gap = root * second_difference(r) - trajectory.dt**2 * trajectory.forces[1:-1, atoms] / root
    gap = _without_barostat(trajectory, gap, r[1:-1], root)
    path = 0.5 * root * (r[2:] - r[:-2])
    odd = _if_few(_jumps(gap, path), _FEW_JUMPS)
    odd |= _if_few(_unusual(remove(gap, orthonormal(path)), smallest), _FEW_COLLISIONS)
    odd |= _if_few(_unusual(gap, smallest), _FEW_RESCALINGS)
    frames = 1 + np.flatnonzero(odd)
    groups = np.split(frames, 1 + np.flatnonzero(np.diff(frames) > 1))
    return np.concatenate([group if group.size == 1 else group[1:] for group in groups])


def _without_barostat(run: Trajectory, x: FloatArray, r: FloatArray, root: FloatArray) -> FloatArray:
    """x without the homogeneous strain that a changing cell imposes at all steps."""
    if run.fixed_cell:
        return x
    return remove(x, orthonormal(*common_directions(root), *strains(r, root)))


def _size(x: FloatArray) -> FloatArray:
    """Length of each frame's vector of [n, n_atoms, 3], [n]."""
    return np.asarray(np.linalg.norm(x.reshape(x.shape[0], -1), axis=1))


def _unusual(misfit: FloatArray, smallest: float) -> np.ndarray:
    size = _size(misfit)
    return np.asarray(size > max(smallest, _UNUSUAL * float(np.median(size))))


def _jumps(misfit: FloatArray, steps: FloatArray) -> np.ndarray:
    """Where atoms are displaced several times further than they usually move in a step."""
    return np.asarray(_size(misfit) > 3 * np.median(_size(steps)))


def _if_few(odd: np.ndarray, share: float) -> np.ndarray:
    return odd if odd.sum() <= max(_FEW_STEPS, share * odd.size) else np.zeros_like(odd)


def _scale(trajectory: Trajectory) -> float:
    """Typical size of √m dt² F/m over a frame."""
    pulls = trajectory.forces / np.sqrt(trajectory.masses)[:, None] * trajectory.dt**2
    return float(np.median(np.linalg.norm(pulls.reshape(trajectory.n_frames, -1), axis=1)))
