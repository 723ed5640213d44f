"""Neighbour lists: searched on detached positions, in one canonical order, kept with a skin."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dyntrain import kernel
from dyntrain.neighbor_search import (
    HAIR,
    Found,
    FoundAtOnce,
    System,
    periodic_cell,
    search,
    search_at_once,
)
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


def detached_pair_vectors(state: State, neighbors: NeighborList) -> Tensor:
    """``pair_vectors`` without gradient."""
    if not kernel.is_of_use(state.positions):
        return pair_vectors(state.detach(), neighbors)
    from dyntrain.neighbor_kernels import fill_vectors

    vectors = state.positions.new_empty(neighbors.n_pairs, 3)
    system = kernel.reads(state.positions, state.system_idx, state.cell)
    pairs = kernel.reads(neighbors.i, neighbors.j, neighbors.shifts)
    fill_vectors(*system, bool(state.pbc.any()), *pairs, *kernel.writes(vectors))
    return vectors


def pair_forces(state: State, neighbors: NeighborList, slopes: Tensor) -> Tensor:
    """−∂E/∂x from dE/dr_ij [n_pairs, 3] eV/Å: what pulls i forth pulls j back. [n_atoms, 3], no gradient."""
    forces = state.positions.new_zeros(state.positions.shape)
    if kernel.is_of_use(forces):
        from dyntrain.neighbor_kernels import add_forces

        add_forces(*kernel.reads(neighbors.i, neighbors.j, slopes), *kernel.writes(forces))
        return forces
    return forces.index_add_(0, neighbors.i, slopes).index_add_(0, neighbors.j, slopes, alpha=-1)


class Neighbors(Protocol):
    """Anything that answers a state with its neighbour list."""

    def __call__(self, state: State) -> NeighborList: ...


def _within(state: State, candidates: NeighborList, cutoff: float) -> NeighborList:
    """The candidates closer than the cutoff: the one place where "within" is decided, always alike."""
    if state.device.type == "cpu" and kernel.is_installed():
        return _compiled_within(state, candidates, cutoff)
    vectors = pair_vectors(state, candidates)
    near = ((vectors * vectors).sum(-1) < cutoff**2).nonzero().squeeze(1)
    if near.shape[0] == candidates.n_pairs:
        return candidates
    return NeighborList(
        candidates.i.index_select(0, near),
        candidates.j.index_select(0, near),
        candidates.shifts.index_select(0, near),
    )


def _compiled_within(state: State, candidates: NeighborList, cutoff: float) -> NeighborList:
    from dyntrain.neighbor_kernels import keep_near

    system = kernel.reads(state.positions, state.system_idx, state.cell)
    pairs = kernel.reads(candidates.i, candidates.j, candidates.shifts)
    kept = keep_near(*system, bool(state.pbc.any()), *pairs, cutoff)
    if len(kept[0]) == candidates.n_pairs:
        return candidates
    return NeighborList(*(torch.from_numpy(array) for array in kept))


class _KnownPairs:
    """Pairs of structures met before, so that each epoch does not search them again.

    A structure is known by all its numbers, so what is found is exact. Forgets everything when full.
    """

    CAPACITY = 64 * 1024**2
    """Bytes."""

    def __init__(self) -> None:
        self._found: dict[tuple[bytes, ...], Found] = {}
        self._size = 0

    def get(self, structure: tuple[bytes, ...]) -> Found | None:
        return self._found.get(structure)

    def keep(self, structure: tuple[bytes, ...], pairs: Found) -> None:
        size = sum(len(part) for part in structure) + pairs.nbytes
        # Large systems: MD, which never comes back to a structure. Known: twice in one batch.
        if size > self.CAPACITY // 1000 or structure in self._found:
            return
        if self._size + size > self.CAPACITY:
            self._found, self._size = {}, 0
        self._found[structure] = pairs
        self._size += size


_known_pairs = _KnownPairs()


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
    candidates, all_within = _candidates(state, cutoff)
    return candidates if all_within else _within(state.detach(), candidates, cutoff)


def _candidates(state: State, cutoff: float) -> tuple[NeighborList, bool]:
    """All pairs closer than ``cutoff``, and some that are a hair further; whether surely none is."""
    arrays = state.positions, state.cell.detach(), state.pbc, state.n_atoms_per_system()
    positions, cells, pbcs, sizes = (array.cpu().contiguous().numpy() for array in arrays)
    found = search_at_once(positions, sizes, cells, pbcs, cutoff)
    if found is None:
        found = _by_systems(positions, sizes, cells, pbcs, cutoff)
    i, j, shifts = (torch.from_numpy(array).to(state.device) for array in found[:3])
    return NeighborList(i, j, shifts), found.all_within


def _by_systems(
    positions: np.ndarray, sizes: np.ndarray, cells: np.ndarray, pbcs: np.ndarray, cutoff: float
) -> FoundAtOnce:
    """One system after the other, those known before not again."""
    if not np.isfinite(positions).all():
        raise ValueError("neighbor_list got positions that are not finite")
    ends = np.cumsum(sizes)
    starts = ends - sizes
    systems = [System(positions[a:b], *box) for a, b, *box in zip(starts, ends, cells, pbcs, strict=True)]
    found = _found(systems, cutoff)
    parts = [(f.i + start, f.j + start, f.shifts) for f, start in zip(found, starts, strict=True)]
    i, j, shifts = (np.concatenate(column) for column in zip(*parts, strict=True))
    all_within = all(f.all_within for f in found)
    return FoundAtOnce(i.astype(np.int64), j.astype(np.int64), shifts.astype(np.float64), all_within)


def _found(systems: list[System], cutoff: float) -> list[Found]:
    """Pairs of each system, searched where they are not known."""
    radius = struct.pack("d", cutoff)
    keys = [(*(array.tobytes() for array in system), radius) for system in systems]
    found = [_known_pairs.get(key) for key in keys]
    missing = [number for number, pairs in enumerate(found) if pairs is None]
    if missing:
        wanted = [systems[k]._replace(cell=periodic_cell(k, *systems[k][1:])) for k in missing]
        for k, pairs in zip(missing, search(wanted, cutoff), strict=True):
            found[k] = pairs
            _known_pairs.keep(keys[k], pairs)
    return [pairs for pairs in found if pairs is not None]


class VerletNeighbors:
    """Exact neighbour lists of a moving batch: rebuilt when an atom has moved half a skin, filtered always.

    The answer is the same as ``neighbor_list(state, cutoff)`` to the last bit, whatever the skin and the
    history, because candidates keep the canonical order and are filtered by their exact distance.

    Attributes:
        n_rebuilds: how often it was searched for pairs so far.
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
            self._candidates = self._built(state)
            self._built_at = state
            self.n_rebuilds += 1
        # Without a skin the list stands for these very positions.
        return _within(state, self._candidates, self.cutoff) if self.skin > 0 else self._candidates

    def _built(self, state: State) -> NeighborList:
        if self.skin == 0:
            return neighbor_list(state, self.cutoff)
        candidates, _ = _candidates(state, self.cutoff + self.skin + HAIR)
        return candidates

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
        if kernel.is_of_use(state.positions):
            from dyntrain.neighbor_kernels import has_moved

            return not has_moved(*kernel.reads(built.positions, state.positions), 0.5 * self.skin)
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
