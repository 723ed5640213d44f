"""Neighbour lists: built by vesin on detached positions, in one canonical order, kept with a skin."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import vesin
from torch import Tensor

from dyntrain.errors import UserError
from dyntrain.state import State


@dataclass(frozen=True, eq=False)
class NeighborList:
    """Every pair of atoms within the cutoff, once: r_ij = x_j − x_i + shifts · cell.

    Canonical order: by system, then i, then j, then shift, with i < j (or, for an atom and its own
    image, the first non-zero shift positive). The list is therefore a function of the positions alone,
    not of when or with which skin it was built, and sums over it are reproducible.

    i, j:   [n_pairs] int64
    shifts: [n_pairs, 3] float64, whole numbers of lattice vectors
    """

    i: Tensor
    j: Tensor
    shifts: Tensor

    @property
    def n_pairs(self) -> int:
        return int(self.i.shape[0])

    def both_directions(self) -> tuple[Tensor, Tensor, Tensor]:
        """(i, j, shifts) with each pair in both directions: first all i→j, then all j→i."""
        return (
            torch.cat([self.i, self.j]),
            torch.cat([self.j, self.i]),
            torch.cat([self.shifts, -self.shifts]),
        )


def pair_vectors(state: State, neighbors: NeighborList) -> Tensor:
    """r_ij = x_j − x_i + shifts · cell, [n_pairs, 3] Å, differentiable in the positions.

    index_select is used because its gradient (index_add) is summed in a fixed order on CPU.
    """
    positions = state.positions
    vectors = positions.index_select(0, neighbors.j) - positions.index_select(0, neighbors.i)
    if bool(state.pbc.any()):
        cells = state.cell
        if state.n_systems > 1:
            cells = cells.index_select(0, state.system_idx.index_select(0, neighbors.i))
        # Three products of columns: as a product of small matrices it took ten times longer.
        offsets = neighbors.shifts[:, :1] * cells[:, 0]
        offsets = torch.addcmul(offsets, neighbors.shifts[:, 1:2], cells[:, 1])
        vectors = vectors + torch.addcmul(offsets, neighbors.shifts[:, 2:], cells[:, 2])
    return vectors


class Neighbors(Protocol):
    """Anything that answers a state with its neighbour list."""

    def __call__(self, state: State) -> NeighborList: ...


_HAIR = 1e-6
"""Å by which the search looks beyond the asked radius, so that its rounding can never lose a pair."""


def _within(state: State, candidates: NeighborList, cutoff: float) -> NeighborList:
    """The candidates closer than the cutoff: the one place where "within" is decided, always alike."""
    vectors = pair_vectors(state, candidates)
    near = ((vectors * vectors).sum(-1) < cutoff**2).nonzero().squeeze(1)
    if near.shape[0] == candidates.n_pairs:
        return candidates
    return NeighborList(
        candidates.i.index_select(0, near),
        candidates.j.index_select(0, near),
        candidates.shifts.index_select(0, near),
    )


_ASKEW = np.linalg.qr(np.array([[3.0, 1.0, 2.0], [1.0, 4.0, -1.0], [-2.0, 1.0, 5.0]]))[0]
"""A rotation that takes no axis and no plane of axes to another."""


_Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""i, j [n_pairs] and shifts [n_pairs, 3] of one system, int32."""


def _sorted_pairs(i: np.ndarray, j: np.ndarray, shifts: np.ndarray) -> _Pairs:
    """By i, then j, then shift."""
    lowest = shifts.min(0, initial=0)
    at, span = shifts - lowest, shifts.max(0, initial=0) - lowest + 1
    # Two keys of whole numbers instead of five.
    images = (at[:, 0] * span[1] + at[:, 1]) * span[2] + at[:, 2]
    order = np.lexsort((images, i * (j.max(initial=0) + 1) + j))
    return i[order].astype(np.int32), j[order].astype(np.int32), shifts[order].astype(np.int32)


def _pairs_of_system(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> _Pairs:
    """Pairs of one system in canonical order; a hair too many."""
    finder = vesin.NeighborList(cutoff=cutoff + _HAIR, full_list=False, n_threads=1)
    if not pbc.any():
        # vesin 0.6 divides by extents: it dies of far-spread atoms in a plane of the axes.
        positions = positions @ _ASKEW
    i, j, shifts = finder.compute(positions, cell, [bool(p) for p in pbc], "ijS")
    i, j, shifts = i.astype(np.int64), j.astype(np.int64), shifts.astype(np.int64)
    first_nonzero = np.take_along_axis(shifts, (shifts != 0).argmax(1)[:, None], 1)[:, 0]
    turned = (i > j) | ((i == j) & (first_nonzero < 0))
    i, j = np.where(turned, j, i), np.where(turned, i, j)
    return _sorted_pairs(i, j, np.where(turned[:, None], -shifts, shifts))


class _KnownPairs:
    """Pairs of structures met before, so that each epoch does not search them again.

    A structure is known by all its numbers, so what is found is exact. Forgets everything when full.
    """

    CAPACITY = 64 * 1024**2
    """Bytes."""

    def __init__(self) -> None:
        self._found: dict[tuple[bytes, ...], _Pairs] = {}
        self._size = 0

    def get(self, structure: tuple[bytes, ...]) -> _Pairs | None:
        return self._found.get(structure)

    def keep(self, structure: tuple[bytes, ...], pairs: _Pairs) -> None:
        size = sum(len(part) for part in structure) + sum(part.nbytes for part in pairs)
        if size > self.CAPACITY // 1000:  # large systems: MD, which never comes back to a structure
            return
        if self._size + size > self.CAPACITY:
            self._found, self._size = {}, 0
        self._found[structure] = pairs
        self._size += size


_known_pairs = _KnownPairs()


def _periodic_cell(system: int, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The cell with vectors in all directions; refuses a periodic one without."""
    if not pbc.any():
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


def neighbor_list(state: State, cutoff: float) -> NeighborList:
    """All pairs of a batch closer than ``cutoff`` (Å), in canonical order.

    Raises:
        ValueError: the positions carry a gradient (a neighbour list cannot pass one on, so it must be
            given detached positions), or are not finite.
        UserError: a periodic direction has no cell vector.
    """
    if state.positions.requires_grad:
        raise ValueError(
            "neighbor_list got positions that carry a gradient, which it cannot pass on: detach the state "
            "first and compute r_ij from the list with pair_vectors"
        )
    return _within(state.detach(), _candidates(state, cutoff), cutoff)


def _candidates(state: State, cutoff: float) -> NeighborList:
    """All pairs closer than ``cutoff``, and some that are a hair further."""
    if not bool(torch.isfinite(state.positions).all()):
        raise ValueError("neighbor_list got positions that are not finite")
    positions = state.positions.cpu().numpy()
    cells, pbcs = state.cell.detach().cpu().numpy(), state.pbc.cpu().numpy()
    ends = np.cumsum(state.n_atoms_per_system().cpu().numpy())
    parts = []
    for system, end in enumerate(ends):
        start = int(ends[system - 1]) if system else 0
        here, cell, pbc = positions[start:end], cells[system], pbcs[system]
        structure = (here.tobytes(), cell.tobytes(), pbc.tobytes(), struct.pack("d", cutoff))
        pairs = _known_pairs.get(structure)
        if pairs is None:
            pairs = _pairs_of_system(here, _periodic_cell(system, cell, pbc), pbc, cutoff)
            _known_pairs.keep(structure, pairs)
        i, j, shifts = pairs
        parts.append((i + start, j + start, shifts))
    first, second, images = (
        torch.from_numpy(np.concatenate(column)).to(state.device) for column in zip(*parts, strict=True)
    )
    return NeighborList(first.long(), second.long(), images.double())


def _completed(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The cell with missing vectors of non-periodic directions filled in by unit normals."""
    cell = cell.copy()
    for axis in np.flatnonzero(~pbc):
        if np.linalg.norm(cell[axis]) < 1e-6:
            others = [cell[a] for a in range(3) if a != axis and np.linalg.norm(cell[a]) > 1e-6]
            normal = np.linalg.svd(np.array(others))[2][-1] if others else np.eye(3)[axis]
            cell[axis] = normal
    return cell


class VerletNeighbors:
    """Exact neighbour lists of a moving batch: rebuilt when an atom has moved half a skin, filtered always.

    The answer is the same as ``neighbor_list(state, cutoff)`` to the last bit, whatever the skin and the
    history, because candidates keep the canonical order and are filtered by their exact distance.

    Attributes:
        n_rebuilds: how often vesin was called so far.
    """

    def __init__(self, cutoff: float, skin: float = 1.0) -> None:
        if cutoff <= 0 or skin < 0:
            raise ValueError(f"need cutoff > 0 and skin >= 0 Å, got {cutoff} and {skin}")
        self.cutoff = cutoff
        self.skin = skin
        self.n_rebuilds = 0
        self._built_at: State | None = None
        self._candidates: NeighborList | None = None

    def __call__(self, state: State) -> NeighborList:
        state = state.detach()
        if self._candidates is None or not self._still_valid(state):
            self._candidates = _candidates(state, self.cutoff + self.skin + _HAIR)
            self._built_at = state
            self.n_rebuilds += 1
        return _within(state, self._candidates, self.cutoff)

    def _still_valid(self, state: State) -> bool:
        built = self._built_at
        if built is None or built.n_atoms != state.n_atoms or built.n_systems != state.n_systems:
            return False
        same_box = built.cell is state.cell or torch.equal(built.cell, state.cell)
        same_numbering = built.system_idx is state.system_idx or torch.equal(
            built.system_idx, state.system_idx
        )
        if not (same_box and same_numbering and torch.equal(built.pbc, state.pbc)):
            return False
        moved = ((state.positions - built.positions) ** 2).sum(-1)
        # Written so that NaN counts as moved: the rebuild then refuses it.
        return bool((moved <= (0.5 * self.skin) ** 2).all())


class FrozenNeighbors:
    """The neighbour list of the first state seen, kept for all later ones.

    Only for parity with the published code, which keeps the list of a segment's first frame.
    """

    def __init__(self, cutoff: float) -> None:
        self.cutoff = cutoff
        self._list: NeighborList | None = None
        self._n_atoms = 0

    def __call__(self, state: State) -> NeighborList:
        if self._list is None:
            self._list = neighbor_list(state.detach(), self.cutoff)
            self._n_atoms = state.n_atoms
        if state.n_atoms != self._n_atoms:
            raise ValueError(
                f"a neighbour list frozen at {self._n_atoms} atoms was asked for {state.n_atoms}: it cannot "
                "follow a batch that loses systems; use VerletNeighbors there"
            )
        return self._list
