"""The pairs of atoms that are near each other: by vesin, or by a compiled loop over small systems."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import vesin

from dyntrain import kernel
from dyntrain.errors import UserError

HAIR = 1e-6
"""Å by which the search looks beyond the asked radius, so that its rounding can never lose a pair."""

FEW_ATOMS = 200
"""Up to so many, looking at every pair is faster than vesin's cell lists."""

_FAR_CELLS = 1e6
"""Atoms further away are left to vesin: fractions of a cell would be rounded by more than a hair."""

_ASKEW = np.linalg.qr(np.array([[3.0, 1.0, 2.0], [1.0, 4.0, -1.0], [-2.0, 1.0, 5.0]]))[0]
"""A rotation that takes no axis and no plane of axes to another."""


class System(NamedTuple):
    """positions [n_atoms, 3], cell [3, 3] with vectors in all directions that repeat, pbc [3]."""

    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray


class Found(NamedTuple):
    """Pairs of one system in canonical order, as a search found them.

    i, j, shifts: [n_pairs], [n_pairs], [n_pairs, 3], int32
    all_within:   no pair lies so near the cutoff that its distance has to be looked at again
    """

    i: np.ndarray
    j: np.ndarray
    shifts: np.ndarray
    all_within: bool

    @property
    def nbytes(self) -> int:
        return self.i.nbytes + self.j.nbytes + self.shifts.nbytes


class FoundAtOnce(NamedTuple):
    """The same of a batch, with atoms numbered through it.

    i, j:       [n_pairs] int64
    shifts:     [n_pairs, 3] float64
    all_within: as of ``Found``
    """

    i: np.ndarray
    j: np.ndarray
    shifts: np.ndarray
    all_within: bool


@lru_cache(maxsize=256)
def _volume(cell: bytes) -> float:
    """Kept, because frames of a run mostly share a cell."""
    return float(abs(np.linalg.det(np.frombuffer(cell).reshape(3, 3))))


def periodic_cell(system: int, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The cell with vectors in all directions; refuses a periodic one without."""
    if not pbc.any() or (pbc.all() and _volume(cell.tobytes()) > 1.0):  # nearly always
        return cell
    lengths = np.linalg.norm(cell[pbc], axis=1)
    completed = _completed(cell, pbc)
    if lengths.min() < 1e-6 or abs(np.linalg.det(completed)) < 1e-6:
        axis = "abc"[int(np.flatnonzero(pbc)[lengths.argmin()])]
        raise UserError(
            f"system {system} is periodic along {axis} but its cell {cell.tolist()} has no volume "
            "along it: give the cell vectors, or pbc=False there"
        )
    return completed


def _completed(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The cell with missing vectors of non-periodic directions filled in by unit normals."""
    cell = cell.copy()
    for axis in np.flatnonzero(~pbc):
        if np.linalg.norm(cell[axis]) < 1e-6:
            others = [cell[a] for a in range(3) if a != axis and np.linalg.norm(cell[a]) > 1e-6]
            normal = np.linalg.svd(np.array(others))[2][-1] if others else np.eye(3)[axis]
            cell[axis] = normal
    return cell


def search_at_once(
    positions: np.ndarray, sizes: np.ndarray, cells: np.ndarray, pbc: np.ndarray, cutoff: float
) -> FoundAtOnce | None:
    """Pairs of a batch of small systems by a compiled loop over all their pairs; a hair too many.

    In a cell wider than twice the cutoff at most one image of an atom is near another. Along each vector of
    the cell it is less than half of it away, so that rounding the difference tells which image it is.

    Args:
        positions: [n_atoms, 3].
        sizes: atoms of each system, [n_systems].
        cells, pbc: [n_systems, 3, 3] and [n_systems, 3].

    Returns:
        None without numba, or where this would not do: large systems, narrow cells, atoms far away.
    """
    if not kernel.is_installed() or sizes.max(initial=0) > FEW_ATOMS:
        return None
    i, j, shifts, n_close = _compiled_search()(positions, sizes, cells, pbc, cutoff, HAIR, _FAR_CELLS)
    return None if n_close < 0 else FoundAtOnce(i, j, shifts, n_close == 0)


@cache
def _compiled_search() -> Callable[..., Any]:
    """Imported when it is first used: numba need not be there."""
    from dyntrain.neighbor_kernels import find_pairs

    return find_pairs


def _canonical_order(i: np.ndarray, j: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Indices that sort by i, then j, then shift."""
    n_atoms, span = int(j.max(initial=0)) + 1, int(shifts.max(initial=0)) - int(shifts.min(initial=0)) + 1
    if n_atoms**2 * span**3 >= 2**62:  # atoms an astronomical number of cells apart
        return np.lexsort((*shifts.T[::-1], j, i))
    # One whole number a pair instead of five: no two are equal, so that any sort will do.
    a, b, c = shifts.T
    key = (((i * n_atoms + j) * span + a) * span + b) * span + c
    return torch.from_numpy(key).argsort().numpy()  # in a third of numpy's time


def search(systems: list[System], cutoff: float) -> list[Found]:
    """Pairs of each system in canonical order, a hair too many, by vesin's cell lists.

    All but vesin's own search is done for all systems at once: each step costs by itself, too.
    """
    raw = [_in_any_order(system, cutoff + HAIR) for system in systems]
    starts = np.cumsum([0, *(len(system.positions) for system in systems)])[:-1]
    n_pairs = [len(found[0]) for found in raw]
    ends = np.cumsum(n_pairs)
    i, j, shifts, _ = (np.concatenate(column) for column in zip(*raw, strict=True))
    first = np.repeat(starts, n_pairs)
    i, j = i.astype(np.int64) + first, j.astype(np.int64) + first
    turned = i > j
    own = np.flatnonzero(i == j)
    if own.size:
        images = shifts[own]
        turned[own] = np.take_along_axis(images, (images != 0).argmax(1)[:, None], 1)[:, 0] < 0
    i, j = np.minimum(i, j), np.maximum(i, j)
    shifts = shifts * np.where(turned, -1, 1).astype(np.int32)[:, None]
    order = _canonical_order(i, j, shifts)
    i, j = (i - first).astype(np.int32).take(order), (j - first).astype(np.int32).take(order)
    shifts = shifts.take(order, axis=0)
    found = []
    for (*_, distances), n, end in zip(raw, n_pairs, ends, strict=True):
        part = slice(end - n, end)
        all_within = bool(distances.max(initial=0.0) < cutoff - HAIR)
        found.append(Found(i[part].copy(), j[part].copy(), shifts[part].copy(), all_within))
    return found


def _in_any_order(system: System, cutoff: float) -> tuple[np.ndarray, ...]:
    """Each pair once, as vesin finds it: i, j, shifts, distances."""
    positions, cell, pbc = system
    if not pbc.any():
        # vesin 0.6 divides by extents: it dies of far-spread atoms in a plane of the axes.
        positions = positions @ _ASKEW
    finder = vesin.NeighborList(cutoff=cutoff, full_list=False, n_threads=1)
    return tuple(finder.compute(positions, cell, pbc.tolist(), "ijSd"))
