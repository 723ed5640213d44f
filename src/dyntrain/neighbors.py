"""Neighbour lists: built by vesin on detached positions, in one canonical order, kept with a skin."""

from __future__ import annotations

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
        cell = state.cell.index_select(0, state.system_idx.index_select(0, neighbors.i))
        vectors = vectors + torch.einsum("ps,psx->px", neighbors.shifts, cell)
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


def _pairs_of_system(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of one system in canonical order: i, j [n_pairs], shifts [n_pairs, 3]; a hair too many."""
    finder = vesin.NeighborList(cutoff=cutoff + _HAIR, full_list=False, n_threads=1)
    if not pbc.any():
        # vesin 0.6 divides by extents: it dies of far-spread atoms in a plane of the axes.
        positions = positions @ _ASKEW
    i, j, shifts = finder.compute(positions, cell, [bool(p) for p in pbc], "ijS")
    i, j, shifts = i.astype(np.int64), j.astype(np.int64), shifts.astype(np.int64)
    first_nonzero = np.take_along_axis(shifts, (shifts != 0).argmax(1)[:, None], 1)[:, 0]
    turned = (i > j) | ((i == j) & (first_nonzero < 0))
    i, j = np.where(turned, j, i), np.where(turned, i, j)
    shifts = np.where(turned[:, None], -shifts, shifts)
    order = np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], j, i))
    return i[order], j[order], shifts[order]


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
    if not bool(torch.isfinite(state.positions).all()):
        raise ValueError("neighbor_list got positions that are not finite")
    positions = state.positions.cpu().numpy()
    cells, pbcs = state.cell.detach().cpu().numpy(), state.pbc.cpu().numpy()
    ends = np.cumsum(state.n_atoms_per_system().cpu().numpy())
    parts = []
    for system, end in enumerate(ends):
        start = int(ends[system - 1]) if system else 0
        cell, pbc = cells[system], pbcs[system]
        if pbc.any():
            lengths = np.linalg.norm(cell[pbc], axis=1)
            if lengths.min() < 1e-6 or abs(np.linalg.det(_completed(cell, pbc))) < 1e-6:
                axis = "abc"[int(np.flatnonzero(pbc)[lengths.argmin()])]
                raise UserError(
                    f"system {system} is periodic along {axis} but its cell {cell.tolist()} has no volume "
                    "along it: give the cell vectors, or pbc=False there"
                )
            cell = _completed(cell, pbc)
        i, j, shifts = _pairs_of_system(positions[start:end], cell, pbc, cutoff)
        parts.append((i + start, j + start, shifts))
    i, j, shifts = (np.concatenate([part[column] for part in parts]) for column in range(3))
    device = state.device
    candidates = NeighborList(
        torch.from_numpy(i).to(device),
        torch.from_numpy(j).to(device),
        torch.from_numpy(shifts.astype(np.float64)).to(device),
    )
    return _within(state.detach(), candidates, cutoff)


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
            self._candidates = neighbor_list(state, self.cutoff + self.skin + _HAIR)
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
