"""The paper network where no gradient is recorded: energies and slopes at once, lowest messages from tables.

The sums are those of the first two sweeps of ``paper_sweeps``. As no others follow, each place keeps the
slope of its function alone, fewer passes are made over memory, and weights are made ready once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dyntrain.models.chebyshev import chebyshev_slopes, chebyshev_values
from dyntrain.models.normed_silu import FirstOrder
from dyntrain.models.paper_pairs import PairBlock, Pairs
from dyntrain.models.paper_sweeps import LayerWeights, ReadOutSweeps, ReadOutWeights
from dyntrain.models.paper_tables import Tables
from dyntrain.models.splines import DEGREE, SplineBasis, weighted_rows
from dyntrain.neighbors import NeighborList, pair_vectors
from dyntrain.potential import PairSlopes
from dyntrain.state import State

PAIRS_AT_A_TIME = 2048
"""More than in training: fewer arrays are in use at once."""

# --- edge features of a block of pairs ----------------------------------------------------------------


class _Features(Protocol):
    where: PairBlock

    def rows(self, of_ends: Tensor, pair: Tensor) -> Tensor:
        """W1 ϕ, [n_rows, width], of the features and of both ends (see ``PairBlock.rows_of``)."""
        ...

    def add_gradient(self, pair: Tensor, bar: Tensor) -> None:
        """Take in the energy's gradient with respect to these rows."""
        ...


class _ChebyshevFeatures:
    """In a basis of Chebyshev polynomials.

    Args:
        basis, gradient: [n_pairs, n_terms] of all pairs; the second is added to.
    """

    def __init__(self, where: PairBlock, basis: Tensor, gradient: Tensor) -> None:
        self.where, self.basis, self.gradient = where, basis[where.pairs], gradient[where.pairs]

    def rows(self, of_ends: Tensor, pair: Tensor) -> Tensor:
        return self.where.rows_of(self.basis @ pair, of_ends)

    def add_gradient(self, pair: Tensor, bar: Tensor) -> None:
        self.gradient.addmm_(self.where.to_pairs(bar), pair.T)


class _SplineFeatures:
    """From tables; ``pair`` is one of ``Tables.features``.

    Args:
        slopes: [n_pairs] of all pairs, dE/dd; added to.
    """

    def __init__(self, where: PairBlock, basis: SplineBasis, slopes: Tensor, n_atoms: int) -> None:
        self.where, self.slopes = where, slopes[where.pairs]
        self.slope_rows = basis.rows[where.pairs, :DEGREE].contiguous()
        self.slope_weights = basis.slope_weights[where.pairs]
        # The rows of both ends and those of the spline are summed in one pass.
        ends = torch.stack([where.receivers, where.senders + n_atoms], dim=1)
        self.all_rows = torch.cat([ends, where.repeated(basis.rows) + 2 * n_atoms], dim=1)
        ones = basis.weights.new_ones(ends.shape)
        self.all_weights = torch.cat([ones, where.repeated(basis.weights)], dim=1)

    def rows(self, of_ends: Tensor, pair: Tensor) -> Tensor:
        return weighted_rows(self.all_rows, self.all_weights, torch.cat([of_ends, pair[0]]))

    def add_gradient(self, pair: Tensor, bar: Tensor) -> None:
        slopes = weighted_rows(self.slope_rows, self.slope_weights, pair[1])
        self.slopes += slopes.mul_(self.where.to_pairs(bar)).sum(-1)


# --- layers -------------------------------------------------------------------------------------------


class _Block(NamedTuple):
    """What is kept of one block of pairs."""

    features: _Features
    first: FirstOrder
    second: FirstOrder


class _Update:
    """u_i of all atoms from W3's rows, which are overwritten: ``output`` is h_i + u_i."""

    def __init__(self, w: LayerWeights, h: Tensor, rows: Tensor) -> None:
        self.weights = w
        self.third, m = FirstOrder.of(rows, w.gain3, w.shift3)
        self.fourth, u = FirstOrder.of(torch.addmm(w.bias4, m, w.w4.T), w.gain4, w.shift4)
        self.output = u.add_(h)

    def reverse(self, upper: Tensor) -> Tensor:
        """Gradient of W3's rows."""
        w = self.weights
        m_bar = self.fourth.reverse(upper * self.fourth.scale, w.gain4) @ w.w4
        return self.third.reverse(m_bar.mul_(self.third.scale), w.gain3)


class _Layer:
    """One layer, evaluated on construction."""

    def __init__(self, w: LayerWeights, h: Tensor, features: Sequence[_Features], lowest: bool) -> None:
        self.weights, self.lowest = w, lowest
        self.blocks: list[_Block] = []
        received = torch.zeros_like(h)
        of_ends = torch.cat([torch.addmm(w.bias1, h, w.centre.T), h @ w.neighbor.T])
        for of_block in features:
            first, m = FirstOrder.of(of_block.rows(of_ends, w.pair), w.gain1, w.shift1)
            second, m = FirstOrder.of(torch.addmm(w.bias2, m, w.w2.T), w.gain2, w.shift2)
            of_block.where.add_received(received, m)
            self.blocks.append(_Block(of_block, first, second))
        rows = torch.addmm(w.bias3, torch.cat([h, received], dim=-1), w.w3.T)
        self.update = _Update(w, h, rows)

    def reverse(self, upper: Tensor) -> Tensor:
        """h̄ from the layer above's (of the lowest: no use); gives the features their gradient."""
        w, width = self.weights, upper.shape[1]
        x_bar = self.update.reverse(upper) @ w.w3
        received = x_bar[:, width:].contiguous()
        to_centre, to_neighbor = torch.zeros_like(upper), torch.zeros_like(upper)
        for features, first, second in self.blocks:
            where = features.where
            # Both sites' ρ belong to whole rows: they are multiplied in when the rows are fetched.
            bar = second.reverse(where.scaled(received, first.scale * second.scale), w.gain2)
            bar = first.reverse(bar @ w.w2, w.gain1)
            features.add_gradient(w.pair, bar)
            if not self.lowest:
                to_centre.index_add_(0, where.receivers, bar)
                to_neighbor.index_add_(0, where.senders, bar)
        if self.lowest:
            return upper
        return (upper + x_bar[:, :width]).addmm_(to_centre, w.centre).addmm_(to_neighbor, w.neighbor)


class _TabulatedLayer:
    """The lowest layer with W3's share of its messages from their table.

    Args:
        h: [n_elements, width].
    """

    def __init__(
        self, w: LayerWeights, tables: Tables, pairs: Pairs, columns: Tensor, h: Tensor, basis: SplineBasis
    ) -> None:
        self.messages, self.basis = tables.messages, basis
        self.blocks: list[tuple[PairBlock, Tensor]] = []
        rows = torch.addmm(w.bias3, h, w.w3[:, : h.shape[1]].T).index_select(0, columns)
        for where in pairs.blocks(fold=True, size=PAIRS_AT_A_TIME):
            begins = tables.begins[columns[where.receivers], columns[where.senders]]
            table_rows = where.repeated(basis.rows) + begins[:, None]
            m = weighted_rows(table_rows, where.repeated(basis.weights), self.messages[0])
            where.add_received(rows, m)
            self.blocks.append((where, table_rows))
        self.update = _Update(w, h.index_select(0, columns), rows)

    def reverse(self, upper: Tensor, slopes: Tensor) -> None:
        """Adds to dE/dd of the pairs."""
        bar = self.update.reverse(upper)
        for where, table_rows in self.blocks:
            weights = where.repeated(self.basis.slope_weights)
            m_slopes = weighted_rows(table_rows[:, :DEGREE], weights, self.messages[1])
            slopes[where.pairs] += where.to_pairs(m_slopes.mul_(where.received(bar)).sum(-1))


# --- the network --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FrozenNetwork:
    """The network for as long as its weights stay as they are.

    h:         [n_elements, width], of an atom of each element
    layers:    with tables the higher ones' ``pair`` is of ``Tables.features``
    range_end: no pair may be further apart, Å
    tables:    None: evaluated without
    """

    h: Tensor
    layers: list[LayerWeights]
    read_out: ReadOutWeights
    range_end: float
    tables: Tables | None

    def energies_and_slopes(self, columns: Tensor, state: State, neighbors: NeighborList) -> PairSlopes:
        """Energies, and dE/dr of all pairs.

        Args:
            columns: [n_atoms], number of each atom's element.
        """
        with torch.inference_mode():
            vectors = pair_vectors(state, neighbors)
            distances = vectors.norm(dim=-1)
            pairs, order = Pairs.of(state, neighbors, columns)
            energy, slopes = self._of_pairs(columns, pairs, distances.index_select(0, order))
            # Atoms in one place have no direction.
            pull = torch.empty_like(distances).index_copy_(0, order, slopes).div_(distances.clamp_min(1e-30))
            vector_slopes = vectors.mul_(pull[:, None])
        # Made outside, so that the caller gets tensors like any other.
        return PairSlopes(energy.double().clone(), vector_slopes.clone())

    def _of_pairs(self, columns: Tensor, pairs: Pairs, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Energies, and dE/dd of each pair, float64."""
        if self.tables is None:
            return self._plainly(self.h.index_select(0, columns), pairs, distances)
        slopes = torch.zeros_like(distances)
        basis = SplineBasis(distances, self.range_end, self.tables.n_intervals, self.h.dtype)
        lowest = _TabulatedLayer(self.layers[0], self.tables, pairs, columns, self.h, basis)
        features = [
            _SplineFeatures(where, basis, slopes, len(columns))
            for where in pairs.blocks(fold=False, size=PAIRS_AT_A_TIME)
        ]
        energy, h_bar = self._higher(lowest.update.output, pairs, features)
        lowest.reverse(h_bar, slopes)
        return energy, slopes

    def _plainly(self, h: Tensor, pairs: Pairs, distances: Tensor) -> tuple[Tensor, Tensor]:
        """The same without tables."""
        n_terms = self.layers[0].pair.shape[0]
        basis64 = chebyshev_values(distances, self.range_end, n_terms)
        basis = basis64.to(h.dtype)
        gradient = torch.zeros_like(basis)
        once, twice = (
            [_ChebyshevFeatures(where, basis, gradient) for where in pairs.blocks(fold, PAIRS_AT_A_TIME)]
            for fold in (True, False)
        )
        lowest = _Layer(self.layers[0], h, once, lowest=True)
        energy, h_bar = self._higher(lowest.update.output, pairs, twice)
        lowest.reverse(h_bar)
        to_slopes = chebyshev_slopes(n_terms, self.range_end).to(basis64.device)
        return energy, (gradient * (basis64 @ to_slopes)).sum(-1)

    def _higher(self, h: Tensor, pairs: Pairs, features: Sequence[_Features]) -> tuple[Tensor, Tensor]:
        """Energies, and h̄ of the lowest layer's output."""
        layers: list[_Layer] = []
        for weights in self.layers[1:]:
            layers.append(_Layer(weights, h, features, lowest=False))
            h = layers[-1].update.output
        read_out = ReadOutSweeps(self.read_out, pairs, h)
        h_bar = read_out.reverse(torch.ones_like(read_out.energy))
        for layer in reversed(layers):
            h_bar = layer.reverse(h_bar)
        return read_out.energy, h_bar
