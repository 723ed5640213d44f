"""What the paper's network without gradient does with a block of pairs in one layer, forwards and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dyntrain import kernel
from dyntrain.models.normed_silu import FirstOrder
from dyntrain.models.paper_pairs import PairBlock
from dyntrain.models.paper_weights import LayerWeights
from dyntrain.models.splines import SplineBasis, weighted_rows


def rows_of(where: PairBlock, weights: LayerWeights) -> Rows:
    return _forms(weights.gain1).rows(where, weights)


def table_rows_of(where: PairBlock, table: Tensor, basis: SplineBasis, begins: Tensor) -> TableRows:
    return _forms(table).table_rows(where, table, basis, begins)


def first_order_of(rows: Tensor, gain: Tensor, shift: Tensor) -> tuple[FirstOrder, Tensor]:
    """``FirstOrder.of`` in the form that is of use here."""
    return _forms(rows).first_order.of(rows, gain, shift)


class _Forms(NamedTuple):
    rows: type[Rows]
    table_rows: type[TableRows]
    first_order: type[FirstOrder]


def _forms(like: Tensor) -> _Forms:
    if like.dtype != torch.float32 or not kernel.is_of_use(like):
        return _Forms(Rows, TableRows, FirstOrder)
    from dyntrain.models.paper_kernels import CompiledFirstOrder, CompiledRows, CompiledTableRows

    return _Forms(CompiledRows, CompiledTableRows, CompiledFirstOrder)


class Rows:
    """m = SiLU(LN(W2 SiLU(LN(a)) + b2)) of each direction of some pairs; the caller multiplies by W2."""

    def __init__(self, where: PairBlock, weights: LayerWeights) -> None:
        self.where, self.weights = where, weights

    def first(self, of_pairs: Tensor, of_ends: Tensor) -> Tensor:
        """m1 [n_rows, width] from W1's shares of features and of both ends (``PairBlock.rows_of``)."""
        rows = self.where.rows_of(of_pairs, of_ends)
        self._first, m = FirstOrder.of(rows, self.weights.gain1, self.weights.shift1)
        return m

    def second(self, rows: Tensor, received: Tensor) -> None:
        """Adds m to what the atoms receive, from W2 m1, which is overwritten."""
        self._second, m = FirstOrder.of(
            rows.add_(self.weights.bias2), self.weights.gain2, self.weights.shift2
        )
        self.where.add_received(received, m)

    def reverse_second(self, upper: Tensor) -> Tensor:
        """Gradient of W2's rows times the first site's ρ, from that of what the atoms receive."""
        # Both sites' ρ belong to whole rows: they are multiplied in when the rows are fetched.
        scaled = self.where.scaled(upper, self._first.scale * self._second.scale)
        return self._second.reverse(scaled, self.weights.gain2)

    def reverse_first(self, scaled: Tensor, to_atoms: tuple[Tensor, Tensor] | None) -> Tensor:
        """Gradient of ``of_pairs``; those of the receivers' and senders' shares are added to ``to_atoms``."""
        bar = self._first.reverse(scaled, self.weights.gain1)
        if to_atoms is not None:
            to_atoms[0].index_add_(0, self.where.receivers, bar)
            to_atoms[1].index_add_(0, self.where.senders, bar)
        return self.where.to_pairs(bar)

    def first_of_splines(self, table: Tensor, basis: SplineBasis, of_ends: Tensor) -> Tensor:
        """``first`` where the features' share comes from a table; each direction has its own row.

        Args:
            table: see ``splines.spline_table``. basis: of these pairs.
        """
        return self.first(weighted_rows(basis.begins, basis.weights, table[0]), of_ends)

    def reverse_first_of_splines(
        self,
        scaled: Tensor,
        to_atoms: tuple[Tensor, Tensor],
        table: Tensor,
        basis: SplineBasis,
        slopes: Tensor,
    ) -> None:
        """``reverse_first``, and adds to dE/dd [n_pairs] of these pairs; ``scaled`` may be overwritten."""
        bar = self.reverse_first(scaled, to_atoms)
        slopes += weighted_rows(basis.begins, basis.slope_weights, table[1]).mul_(bar).sum(-1)


class TableRows:
    """m of each direction of some pairs from a table.

    Args:
        table: see ``splines.spline_table``. basis: of all pairs.
        begins: [n_rows], where in the table the splines of a row's two elements begin.
    """

    def __init__(self, where: PairBlock, table: Tensor, basis: SplineBasis, begins: Tensor) -> None:
        self.where, self.table = where, table
        self.basis = basis[where.pairs]
        self.begins = where.repeated(self.basis.begins) + begins

    def add_received(self, received: Tensor) -> None:
        """Adds m to what the atoms receive."""
        m = self._weighted(self.basis.weights, self.table[0])
        self.where.add_received(received, m)

    def add_slopes(self, upper: Tensor, slopes: Tensor) -> None:
        """Adds to dE/dd of all pairs, from the gradient of what the atoms receive."""
        m_slopes = self._weighted(self.basis.slope_weights, self.table[1])
        bar = m_slopes.mul_(self.where.received(upper)).sum(-1)
        slopes[self.where.pairs] += self.where.to_pairs(bar)

    def _weighted(self, weights: Tensor, table: Tensor) -> Tensor:
        return weighted_rows(self.begins, self.where.repeated(weights), table)
