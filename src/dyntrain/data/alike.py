"""Alike: two runs of the same atoms held against each other where their structures come closest."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

from dyntrain.data.motion import complete
from dyntrain.data.trajectory import FloatArray, IntArray, Trajectory

# Frames of each run that are compared: this many, and of large systems so many that pairs × atoms stay below.
_SAMPLED_FRAMES, _AFFORDABLE, _PAIRS = 200, 2_000_000, 20
# More orders of like atoms than this are not tried: the files' order counts.
_MOST_ORDERS = 2000
# A molecule in a box is turned onto another where its atoms stay within this share of the box.
_ALONE = 0.5


class Offset(NamedTuple):
    """Energy of one run above another's at the same structure, eV.

    mean, scatter: over the pairs of frames; `distance`: rms of what their atoms are apart, Å.
    """

    mean: float
    scatter: float
    distance: float


def energy_offset(run: Trajectory, other: Trajectory) -> Offset | None:
    """What is left of E_run − E_other at the closest structures when the forces' work between them is added.

    E_run − E_other + ½ (F_run + F_other)·(r_run − r_other): the trapezoid rule along the line between the two
    structures, whose error is of third order in their distance. Zero for runs on one energy surface, whatever
    their temperatures. The structures are shifted and, where no lattice forbids it, turned onto each other,
    like atoms in the order that fits best.

    Returns:
        None for runs of fewer than `_PAIRS` frames, or whose atoms are not the same.
    """
    a, b = _by_element(run), _by_element(other)
    if min(a.n_frames, b.n_frames) < _PAIRS or (a.atomic_numbers != b.atomic_numbers).any():
        return None
    alone = _is_alone(a) and _is_alone(b)
    if not alone and not (a.fixed_cell and b.fixed_cell and np.allclose(a.cell, b.cell, atol=1e-3)):
        return None
    orders = _orders(a.atomic_numbers) if alone else np.arange(a.n_atoms)[None]
    offsets, apart = [], []
    for i, j in _closest(a, b, alone):
        r, s = (t.positions[k] - t.positions[k].mean(axis=0) for t, k in ((a, i), (b, j)))
        pulls = b.forces[j]
        if alone:
            order, turn = _onto(r, s, orders)
            s, pulls = s[order] @ turn, pulls[order] @ turn
        gap = r - s if alone else _nearest_image(r - s, a)
        work = 0.5 * float(((a.forces[i] + pulls) * gap).sum())
        offsets.append(float(a.energies[i] - b.energies[j]) + work)
        apart.append(float(np.sqrt((gap**2).sum() / a.n_atoms)))
    return Offset(float(np.mean(offsets)), float(np.std(offsets)), float(np.mean(apart)))


def _by_element(run: Trajectory) -> Trajectory:
    """A sample of the run's frames, its atoms in the order of their elements."""
    n_sampled = int(np.clip((_AFFORDABLE / run.n_atoms) ** 0.5, _PAIRS, _SAMPLED_FRAMES))
    frames = np.unique(np.linspace(0, run.n_frames - 1, n_sampled).astype(int))
    order = np.argsort(run.atomic_numbers, kind="stable")
    positions, velocities, forces = (
        np.asarray(x[frames])[:, order] for x in (run.positions, run.velocities, run.forces)
    )
    return Trajectory(
        positions,
        velocities,
        forces,
        energies=np.asarray(run.energies[frames]),
        cell=run.cell_at(0) if run.fixed_cell else run.cell[frames],
        pbc=run.pbc,
        atomic_numbers=run.atomic_numbers[order],
        masses=run.masses[order],
        dt=run.dt,
    )


def _is_alone(run: Trajectory) -> bool:
    """Whether a molecule is far from its images, so that it may be turned."""
    if not run.pbc.any():
        return True
    widest = max(float(np.ptp(r, axis=0).max()) for r in run.positions[::20])
    lengths = np.linalg.norm(run.cell.reshape(-1, 3, 3), axis=2)[:, run.pbc]
    return widest < _ALONE * float(lengths.min())


def _closest(a: Trajectory, b: Trajectory, alone: bool) -> list[tuple[int, int]]:
    """The frames of b nearest to those of a, by sorted distances between atoms or by the atoms' places."""
    if alone:
        x, y = _sorted_distances(a), _sorted_distances(b)
        apart = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T
    else:
        r, s = (t.positions - t.positions.mean(axis=1, keepdims=True) for t in (a, b))
        apart = np.array([(_nearest_image(row - s, a) ** 2).sum(axis=(1, 2)) for row in r])
    nearest = apart.argmin(axis=1)
    best = np.argsort(apart.min(axis=1))[:_PAIRS]
    return [(int(i), int(nearest[i])) for i in best]


def _sorted_distances(run: Trajectory) -> FloatArray:
    """Distances of all pairs, sorted within each pair of elements, [n_frames, n_pairs] Å."""
    i, j = np.triu_indices(run.n_atoms, k=1)
    distances = np.linalg.norm(run.positions[:, i] - run.positions[:, j], axis=2)
    kinds = run.atomic_numbers[i] * 200 + run.atomic_numbers[j]
    return np.concatenate([np.sort(distances[:, kinds == k], axis=1) for k in np.unique(kinds)], axis=1)


def _nearest_image(gap: FloatArray, run: Trajectory) -> FloatArray:
    cell = complete(run.cell, run.pbc)
    return gap - np.where(run.pbc, np.rint(gap @ np.linalg.inv(cell)), 0.0) @ cell


def _orders(numbers: IntArray) -> IntArray:
    """All orders of like atoms, [n_orders, n_atoms]; the given one alone where these are too many."""
    members = [np.flatnonzero(numbers == z) for z in np.unique(numbers)]
    if math.prod(math.factorial(m.size) for m in members) > _MOST_ORDERS:
        return np.arange(numbers.size)[None]
    every = itertools.product(*(itertools.permutations(m) for m in members))
    return np.array([list(itertools.chain(*order)) for order in every])


def _onto(r: FloatArray, s: FloatArray, orders: IntArray) -> tuple[IntArray, FloatArray]:
    """The order and the rotation (or reflection: no energy minds) that bring s nearest to r (Kabsch)."""
    u, values, v = np.linalg.svd(np.einsum("pia,ib->pab", s[orders], r))
    best = int(values.sum(axis=1).argmax())
    return orders[best], u[best] @ v[best]
