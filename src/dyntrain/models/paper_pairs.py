"""Pairs of atoms in blocks that stay in the processor's cache, as rows of arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dyntrain.neighbors import NeighborList
from dyntrain.state import State


class PairBlock(NamedTuple):
    """Some pairs as rows of one array: all i→j, then all j→i.

    Where both directions have the same row, as in the lowest layer between atoms of one element, it is
    there once: ``mirrored`` then names who receives it beside ``receivers``.

    pairs, rows: where they lie among all pairs, and among the rows of all blocks
    """

    pairs: slice
    rows: slice
    receivers: Tensor
    senders: Tensor
    mirrored: Tensor | None

    def rows_of(self, of_pairs: Tensor, of_ends: Tensor | None) -> Tensor:
        """What each row gets from its pair, its receiver and its sender.

        Args:
            of_ends: for all atoms as receivers, then for all as senders, [2 n_atoms, width]; None: nothing.
        """
        if of_ends is None:
            return self.repeated(of_pairs)
        ends = torch.stack([self.receivers, self.senders + of_ends.shape[0] // 2], dim=1)
        rows = functional.embedding_bag(ends, of_ends, mode="sum")  # a sum of two rows in one pass
        rows.view(-1, *of_pairs.shape).add_(of_pairs)
        return rows

    def repeated(self, of_pairs: Tensor) -> Tensor:
        """For each row what its pair has, [n_rows, …] from that of these pairs."""
        return of_pairs if self.mirrored is not None else torch.cat([of_pairs, of_pairs])

    def to_pairs(self, rows: Tensor) -> Tensor:
        """Sum of both directions."""
        if self.mirrored is not None:
            return rows
        n = rows.shape[0] // 2
        return rows[:n] + rows[n:]

    def add_received(self, out: Tensor, rows: Tensor) -> None:
        out.index_add_(0, self.receivers, rows)
        if self.mirrored is not None:
            out.index_add_(0, self.mirrored, rows)

    def received(self, per_atom: Tensor) -> Tensor:
        """The transpose of ``add_received``."""
        rows = per_atom.index_select(0, self.receivers)
        if self.mirrored is not None:
            rows += per_atom.index_select(0, self.mirrored)
        return rows

    def scaled(self, per_atom: Tensor, scale: Tensor) -> Tensor:
        """``received`` times ``scale`` [n_rows, 1], in one pass."""
        ends = [self.receivers] if self.mirrored is None else [self.receivers, self.mirrored]
        weights = scale.expand(-1, len(ends)).contiguous()
        return functional.embedding_bag(
            torch.stack(ends, dim=1), per_atom, mode="sum", per_sample_weights=weights
        )


@dataclass(frozen=True, eq=False)
class Pairs:
    """Who is paired with whom; pairs of one element come first.

    i, j: [n_pairs]; n_alike: how many are of one element; system_idx: [n_atoms].
    """

    i: Tensor
    j: Tensor
    n_alike: int
    system_idx: Tensor
    n_systems: int

    PAIRS_IN_CACHE = 4096

    @classmethod
    def of(cls, state: State, neighbors: NeighborList, columns: Tensor) -> tuple[Pairs, Tensor]:
        """Those of a neighbour list, and which of its pairs they are, [n_pairs].

        Args:
            columns: [n_atoms], number of each atom's element.
        """
        i, j = neighbors.i, neighbors.j
        unlike = columns.index_select(0, i) != columns.index_select(0, j)
        order = unlike.int().argsort(stable=True)
        n_alike = i.shape[0] - int(unlike.sum())
        return cls(i[order], j[order], n_alike, state.system_idx, state.n_systems), order

    def n_rows(self, fold: bool) -> int:
        """Of all blocks."""
        return 2 * self.i.shape[0] - (self.n_alike if fold else 0)

    def blocks(self, fold: bool) -> Iterator[PairBlock]:
        """On a CPU blocks that stay in its cache, elsewhere one (or two).

        Args:
            fold: rows that are the same in both directions are there once.
        """
        n_pairs = self.i.shape[0]
        size = self.PAIRS_IN_CACHE if self.i.device.type == "cpu" else max(n_pairs, 1)
        n_folded = self.n_alike if fold else 0
        for first, last, once in ((0, n_folded, True), (n_folded, n_pairs, False)):
            n_blocks = math.ceil((last - first) / (2 * size if once else size))
            for k in range(n_blocks):  # as large as each other
                part = slice(*(first + (last - first) * m // n_blocks for m in (k, k + 1)))
                i, j = self.i[part], self.j[part]
                if once:
                    yield PairBlock(part, part, i, j, j)
                else:
                    rows = slice(2 * part.start - n_folded, 2 * part.stop - n_folded)
                    yield PairBlock(part, rows, torch.cat([i, j]), torch.cat([j, i]), None)
