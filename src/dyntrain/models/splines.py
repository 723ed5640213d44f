"""Functions of a distance tabulated as quintic splines on equally spaced knots: fitting and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor
from torch.nn import functional

from dyntrain.models.chebyshev import check_range

DEGREE = 5
MARGIN = 48
"""Knots beyond either end at which a function is sampled: a fit forgets its first numbers as 0.43ⁿ."""


def _basis_polynomials(degree: int) -> Tensor:
    """The B-splines that overlap an interval as polynomials of 0 ≤ t < 1, [power, number] (Cox, de Boor)."""
    pieces = [Polynomial([1.0])]
    for d in range(1, degree + 1):
        longer = [Polynomial([0.0])] * (d + 1)
        for r, piece in enumerate(pieces):
            longer[r] = longer[r] + Polynomial([r + 1, -1]) * piece / d
            longer[r + 1] = longer[r + 1] + Polynomial([d - r - 1, 1]) * piece / d
        pieces = longer
    return torch.from_numpy(np.array([piece.coef for piece in pieces]).T.copy())


_VALUES, _SLOPES = _basis_polynomials(DEGREE), _basis_polynomials(DEGREE - 1)


def sampling_points(range_end: float, n_intervals: int) -> Tensor:
    """Where ``spline_table`` wants the function: [n_intervals + 1 + 2 MARGIN] Å, float64, some below zero."""
    steps = torch.arange(-MARGIN, n_intervals + MARGIN + 1, dtype=torch.float64)
    return steps * (range_end / n_intervals)


def spline_table(samples: Tensor, knot_distance: float) -> Tensor:
    """The splines through ``samples`` [n_points, width]: [2, n_intervals + DEGREE, width].

    Row k + r of [0] is the coefficient of the r-th B-spline on interval k, of [1] that of the r-th one of
    the derivative, whose degree is one less (C. de Boor, A Practical Guide to Splines, ch. IX and X); its
    own table, because differences of rounded coefficients would round it 1/knot_distance times as much.
    The samples are convolved with the inverse of the B-spline's values at the knots.
    """
    at_knots = _VALUES[0]
    size = 2 * (MARGIN - 2) + 1
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for r in range(DEGREE):
        matrix += torch.diag(at_knots[r].expand(size - abs(r - 2)), r - 2)
    inverse = torch.linalg.inv(matrix)[size // 2].to(samples.device)
    values = functional.conv1d(samples.T[:, None], inverse[None, None]).squeeze(1).T
    slopes = functional.pad(values.diff(dim=0) / knot_distance, (0, 0, 0, 1))
    return torch.stack([values, slopes])


@dataclass(frozen=True, eq=False)
class SplineBasis:
    """B-splines at some distances: which rows of a table make a value and a slope, with what weights.

    begins:        [n], the first of the DEGREE + 1 rows that make a value; DEGREE of them make a slope
    weights:       [n, DEGREE + 1] in a value
    slope_weights: [n, DEGREE] in a slope
    """

    begins: Tensor
    weights: Tensor
    slope_weights: Tensor

    @classmethod
    def at(cls, distances: Tensor, range_end: float, n_intervals: int, dtype: torch.dtype) -> Self:
        """Those at ``distances`` [n] Å, float64, of tables of so many intervals.

        Raises:
            ValueError: a distance is outside the range.
        """
        check_range(distances, range_end)
        at = distances * (n_intervals / range_end)
        interval = at.floor().clamp_max(n_intervals - 1)  # the product may be rounded up to it
        t = at - interval
        powers = [torch.ones_like(t), t]
        while len(powers) <= DEGREE:
            powers.append(powers[-1] * t)
        of_t = torch.stack(powers)
        weights = (_VALUES.to(at.device).T @ of_t).T.to(dtype).contiguous()
        slope_weights = (_SLOPES.to(at.device).T @ of_t[:-1]).T.to(dtype).contiguous()
        return cls(interval.long(), weights, slope_weights)

    def __getitem__(self, part: slice) -> SplineBasis:
        return SplineBasis(self.begins[part], self.weights[part], self.slope_weights[part])


def weighted_rows(begins: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    """Σ_r weights_nr table[begins_n + r], [n, width], in one pass over memory."""
    rows = begins[:, None] + torch.arange(weights.shape[1], device=weights.device)
    return functional.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)
