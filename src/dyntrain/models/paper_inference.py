"""The paper network where no gradient is recorded: energies and slopes at once, lowest messages from tables.

The sums are those of the first two sweeps of ``paper_sweeps``. As no others follow, each place keeps no more
than its first derivative needs, fewer passes are made over memory, and weights are made ready once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dyntrain.models.chebyshev import chebyshev_basis
from dyntrain.models.paper_pairs import PairBlock, Pairs
from dyntrain.models.paper_rows import Rows, TableRows, first_order_of, rows_of, table_rows_of
from dyntrain.models.paper_sweeps import ReadOutSweeps
from dyntrain.models.paper_tables import Tables
from dyntrain.models.paper_weights import LayerWeights, ReadOutWeights
from dyntrain.models.splines import SplineBasis
from dyntrain.neighbors import NeighborList, detached_pair_vectors
from dyntrain.potential import PairSlopes
from dyntrain.state import State

# --- edge features of a block of pairs ----------------------------------------------------------------


class _Features(Protocol):
    where: PairBlock

    def first(self, rows: Rows, pair: Tensor, of_ends: Tensor) -> Tensor:
        """``rows.first`` with their share of W1 ϕ."""
        ...

    def reverse_first(
        self, rows: Rows, pair: Tensor, scaled: Tensor, to_atoms: tuple[Tensor, Tensor] | None
    ) -> None:
        """``rows.reverse_first``, and takes in the energy's gradient with respect to that share."""
        ...


class _ChebyshevFeatures:
    """In a basis of Chebyshev polynomials.

    Args:
        basis, gradient: [n_pairs, n_terms] of all pairs; the second is added to.
    """

    def __init__(self, where: PairBlock, basis: Tensor, gradient: Tensor) -> None:
        self.where, self.basis, self.gradient = where, basis[where.pairs], gradient[where.pairs]

    def first(self, rows: Rows, pair: Tensor, of_ends: Tensor) -> Tensor:
        return rows.first(self.basis @ pair, of_ends)

    def reverse_first(
        self, rows: Rows, pair: Tensor, scaled: Tensor, to_atoms: tuple[Tensor, Tensor] | None
    ) -> None:
        self.gradient.addmm_(rows.reverse_first(scaled, to_atoms), pair.T)


class _SplineFeatures:
    """From tables; ``pair`` is one of ``Tables.features``.

    Args:
        slopes: [n_pairs] of all pairs, dE/dd; added to.
    """

    def __init__(self, where: PairBlock, basis: SplineBasis, slopes: Tensor) -> None:
        self.where, self.basis, self.slopes = where, basis[where.pairs], slopes[where.pairs]

    def first(self, rows: Rows, pair: Tensor, of_ends: Tensor) -> Tensor:
        return rows.first_of_splines(pair, self.basis, of_ends)

    def reverse_first(
        self, rows: Rows, pair: Tensor, scaled: Tensor, to_atoms: tuple[Tensor, Tensor] | None
    ) -> None:
        assert to_atoms is not None  # the lowest layer's messages are tabulated themselves
        rows.reverse_first_of_splines(scaled, to_atoms, pair, self.basis, self.slopes)


# --- layers -------------------------------------------------------------------------------------------


class _Update:
    """u_i of all atoms from W3's rows, which are overwritten: ``output`` is h_i + u_i."""

    def __init__(self, w: LayerWeights, h: Tensor, rows: Tensor) -> None:
        self.weights = w
        self.third, m = first_order_of(rows, w.gain3, w.shift3)
        self.fourth, u = first_order_of(torch.addmm(w.bias4, m, w.w4.T), w.gain4, w.shift4)
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
        self.blocks: list[tuple[_Features, Rows]] = []
        received = torch.zeros_like(h)
        of_ends = torch.cat([torch.addmm(w.bias1, h, w.centre.T), h @ w.neighbor.T])
        for of_block in features:
            rows = rows_of(of_block.where, w)
            m1 = of_block.first(rows, w.pair, of_ends)
            rows.second(m1 @ w.w2.T, received)
            self.blocks.append((of_block, rows))
        self.update = _Update(w, h, torch.addmm(w.bias3, torch.cat([h, received], dim=-1), w.w3.T))

    def reverse(self, upper: Tensor) -> Tensor:
        """h̄ from the layer above's (of the lowest: no use); gives the features their gradient."""
        w, width = self.weights, upper.shape[1]
        x_bar = self.update.reverse(upper) @ w.w3
        received = x_bar[:, width:].contiguous()
        to_centre, to_neighbor = torch.zeros_like(upper), torch.zeros_like(upper)
        to_atoms = None if self.lowest else (to_centre, to_neighbor)
        for features, rows in self.blocks:
            features.reverse_first(rows, w.pair, rows.reverse_second(received) @ w.w2, to_atoms)
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
        self.blocks: list[TableRows] = []
        rows = torch.addmm(w.bias3, h, w.w3[:, : h.shape[1]].T).index_select(0, columns)
        for where in pairs.blocks(fold=True):
            begins = tables.begins[columns[where.receivers], columns[where.senders]]
            self.blocks.append(table_rows_of(where, tables.messages, basis, begins))
            self.blocks[-1].add_received(rows)
        self.update = _Update(w, h.index_select(0, columns), rows)

    def reverse(self, upper: Tensor, slopes: Tensor) -> None:
        """Adds to dE/dd of the pairs."""
        bar = self.update.reverse(upper)
        for of_block in self.blocks:
            of_block.add_slopes(bar, slopes)


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
            vectors = detached_pair_vectors(state, neighbors)
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
        basis = SplineBasis.at(distances, self.range_end, self.tables.n_intervals, self.h.dtype)
        lowest = _TabulatedLayer(self.layers[0], self.tables, pairs, columns, self.h, basis)
        features = [_SplineFeatures(where, basis, slopes) for where in pairs.blocks(fold=False)]
        energy, h_bar = self._higher(lowest.update.output, pairs, features)
        lowest.reverse(h_bar, slopes)
        return energy, slopes

    def _plainly(self, h: Tensor, pairs: Pairs, distances: Tensor) -> tuple[Tensor, Tensor]:
        """The same without tables."""
        basis = chebyshev_basis(distances, self.range_end, self.layers[0].pair.shape[0], h.dtype)
        gradient = torch.zeros_like(basis.values)
        once, twice = (
            [_ChebyshevFeatures(where, basis.values, gradient) for where in pairs.blocks(fold)]
            for fold in (True, False)
        )
        lowest = _Layer(self.layers[0], h, once, lowest=True)
        energy, h_bar = self._higher(lowest.update.output, pairs, twice)
        lowest.reverse(h_bar)
        return energy, basis.slopes(gradient)

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
