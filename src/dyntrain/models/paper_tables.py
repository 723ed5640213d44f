"""What of the paper's network depends only on two elements and a distance, tabulated as splines.

These are the messages of the lowest layer, whose atoms know no more than their own element, and the edge
features' share in the higher layers. A table is as fine as it takes to be no further from the network in
double precision than the network in single precision is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from dyntrain.models.chebyshev import chebyshev_slopes, chebyshev_values
from dyntrain.models.normed_silu import NormedSiLU
from dyntrain.models.paper_weights import LayerWeights
from dyntrain.models.splines import MARGIN, SplineBasis, sampling_points, spline_table, weighted_rows

FEWEST_INTERVALS, MOST_INTERVALS = 128, 4096
MOST_NUMBERS = 2**24
"""Of the messages' values, and as many of slopes (128 MiB): enough for 16 elements in 512 intervals."""
_BETWEEN = (0.25, 0.5)
"""Where in each interval a table is compared with what it stands for: next to where the errors of a quintic
spline's slope and value are largest."""


class Error(NamedTuple):
    """Largest deviations of values and of slopes (per Å) from double precision."""

    value: float
    slope: float

    def within(self, other: Error) -> bool:
        return self.value <= other.value and self.slope <= other.slope


class Tables(NamedTuple):
    """Splines, see ``splines.spline_table``.

    features:    [2, n_rows, width] of each higher layer
    messages:    [2, n_elements² n_rows, width], W3's share of them for all pairs of elements
    begins:      [n_elements, n_elements], first row of each, by receiver and sender
    n_intervals: on [0, range_end]
    errors:      of each table: the features', then the messages' by receiver and sender
    roundings:   of the same functions in single precision without a table: the errors do not exceed them
    """

    features: list[Tensor]
    messages: Tensor
    begins: Tensor
    n_intervals: int
    errors: list[Error]
    roundings: list[Error]


_Found = tuple[Tensor, Tensor]
"""Values and slopes of functions at some distances, [n_points, width] each."""


class Expansion(NamedTuple):
    """W1's share of a layer's edge features, plain and fast.

    frequencies: B, float64
    weights:     [2 len(B), width], float64
    pair:        [n_terms, width], the same for Chebyshev polynomials, in the network's precision
    """

    frequencies: Tensor
    weights: Tensor
    pair: Tensor

    def plain(self, distances: Tensor) -> _Found:
        """In double precision; distances may be negative."""
        phase = distances[:, None] * self.frequencies
        sin, cos = phase.sin(), phase.cos()
        slopes = torch.cat([self.frequencies * cos, -self.frequencies * sin], dim=-1)
        return torch.cat([sin, cos], dim=-1) @ self.weights, slopes @ self.weights

    def fast(self, distances: Tensor, range_end: float) -> _Found:
        """As the network is evaluated without tables."""
        n_terms, dtype = self.pair.shape[0], self.pair.dtype
        values = chebyshev_values(distances, range_end, n_terms)
        slopes = values @ chebyshev_slopes(n_terms, range_end).to(values.device)
        return values.to(dtype) @ self.pair, slopes.to(dtype) @ self.pair


def _messages(w: LayerWeights, ends: Tensor, of_features: _Found) -> _Found:
    """W3's share of m, from W1's shares of the two ends, [width], and of the features."""
    first = NormedSiLU.of(of_features[0] + ends, w.gain1, w.shift1)
    second = NormedSiLU.of(torch.addmm(w.bias2, first.forward(), w.w2.T), w.gain2, w.shift2)
    w3 = w.w3[:, ends.shape[0] :]
    return second.forward() @ w3.T, second.tangent(first.tangent(of_features[1]) @ w.w2.T) @ w3.T


def _functions(
    lowest: LayerWeights,
    expansions: Sequence[Expansion],
    h: Tensor,
    knots: Tensor,
    between: Tensor,
    end: float,
) -> Iterator[tuple[Tensor, _Found, _Found]]:
    """What is tabulated: values at the knots, then values and slopes between them, exact and rounded."""
    for expansion in expansions[1:]:
        yield expansion.plain(knots)[0], expansion.plain(between), expansion.fast(between, end)
    features = expansions[0]
    at_knots, exact, rounded = features.plain(knots), features.plain(between), features.fast(between, end)
    lowest64 = LayerWeights(*(tensor.double() for tensor in lowest))
    for receiver, sender in product(h, h):
        ends64, ends = (
            torch.addmv(w.bias1, w.centre, receiver.to(w.centre)) + w.neighbor @ sender.to(w.neighbor)
            for w in (lowest64, lowest)
        )
        yield (
            _messages(lowest64, ends64, at_knots)[0],
            _messages(lowest64, ends64, exact),
            _messages(lowest, ends, rounded),
        )


def _deviation(found: _Found, exact: _Found) -> Error:
    return Error(*(float((a - b).abs().max()) for a, b in zip(found, exact, strict=True)))


def _tables(
    lowest: LayerWeights, expansions: Sequence[Expansion], h: Tensor, range_end: float, n_intervals: int
) -> Tables | None:
    """Those of so many intervals; None if one of them is not exact enough."""
    knots = sampling_points(range_end, n_intervals).to(h.device)
    step = range_end / n_intervals
    between = torch.cat([knots[MARGIN : MARGIN + n_intervals] + part * step for part in _BETWEEN])
    basis = SplineBasis.at(between, range_end, n_intervals, h.dtype)
    tables: list[Tensor] = []
    errors, roundings = [], []
    for samples, exact, rounded in _functions(lowest, expansions, h, knots, between, range_end):
        table = spline_table(samples, step).to(h.dtype)
        values = weighted_rows(basis.begins, basis.weights, table[0])
        found = values, weighted_rows(basis.begins, basis.slope_weights, table[1])
        errors.append(_deviation(found, exact))
        roundings.append(_deviation(rounded, exact))
        if not errors[-1].within(roundings[-1]):
            return None
        tables.append(table)
    n_higher, n_elements = len(expansions) - 1, h.shape[0]
    begins = table.shape[1] * torch.arange(n_elements**2, device=h.device).reshape(n_elements, n_elements)
    messages = torch.cat(tables[n_higher:], dim=1)
    return Tables(tables[:n_higher], messages, begins, n_intervals, errors, roundings)


def tabulate(
    lowest: LayerWeights, expansions: Sequence[Expansion], h: Tensor, range_end: float
) -> Tables | None:
    """The tables of a network in single precision, as coarse as they may be.

    Args:
        lowest: weights of the lowest layer.
        expansions: of all layers.
        h: [n_elements, width], of an atom of each element.
        range_end: Å.

    Returns:
        None if tables of a sensible size are not exact enough.
    """
    n_intervals = FEWEST_INTERVALS
    while n_intervals <= MOST_INTERVALS and h.shape[0] ** 2 * n_intervals * h.shape[1] <= MOST_NUMBERS:
        found = _tables(lowest, expansions, h, range_end, n_intervals)
        if found is not None:
            return found
        n_intervals *= 2
    return None
