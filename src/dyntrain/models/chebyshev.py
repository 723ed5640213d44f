"""Chebyshev polynomials of a distance: values, derivatives, and the expansion of Fourier features in them."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from dyntrain import kernel


def fourier_features(distances: Tensor, frequencies: Tensor) -> Tensor:
    """[sin(B d), cos(B d)], [n_pairs, 2·len(B)]: the plain evaluation, kept as the oracle of the fast one."""
    phase = distances[:, None] * frequencies
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


def check_range(distances: Tensor, range_end: float) -> None:
    """Raise ValueError if a distance is not below ``range_end``."""
    longest = float(distances.detach().max()) if distances.numel() else 0.0
    if longest >= range_end:
        raise ValueError(
            f"a pair at {longest:.3f} Å is beyond the {range_end:.3f} Å that the fast edge features cover: "
            "rebuild the neighbour list"
        )


def chebyshev_values(distances: Tensor, range_end: float, n_terms: int) -> Tensor:
    """T_k(x), x = 2 d/range_end − 1, for k < n_terms: [n_pairs, n_terms].

    By T_{n+k} = 2 T_n T_k − T_{n−k}: twice as many at each turn.

    Raises:
        ValueError: a distance is outside the range.
    """
    check_range(distances, range_end)
    x = 2.0 / range_end * distances - 1.0
    values = torch.stack([torch.ones_like(x), x])
    while len(values) < n_terms:
        n = len(values) - 1
        values = torch.cat([values, 2.0 * values[n] * values[1:] - values.flip(0)[1:]])
    return values[:n_terms].T.contiguous()


def chebyshev_slopes(n_terms: int, range_end: float) -> Tensor:
    """D with dT_k/dd = Σ_l T_l D_lk, [n_terms, n_terms] float64 (T_k' = k U_{k−1})."""
    row, column = torch.meshgrid(torch.arange(n_terms), torch.arange(n_terms), indexing="ij")
    odd = (column > row) & ((column - row) % 2 == 1)
    slopes = torch.where(odd, 2.0 * column.double(), 0.0)
    slopes[0] *= 0.5
    return slopes * (2.0 / range_end)


def chebyshev_basis(distances: Tensor, range_end: float, n_terms: int, dtype: torch.dtype) -> ChebyshevBasis:
    """Compiled where that is of use."""
    if kernel.is_of_use(distances):
        from dyntrain.models.chebyshev_kernels import CompiledChebyshevBasis

        return CompiledChebyshevBasis(distances, range_end, n_terms, dtype)
    return ChebyshevBasis(distances, range_end, n_terms, dtype)


class ChebyshevBasis:
    """T_k of each pair's distance d, k < n_terms, and what a function of them needs of their derivatives.

    Args:
        distances: [n_pairs] Å, float64. dtype: of ``values``; everything is summed in double precision.

    Raises:
        ValueError: a distance is outside the range.
    """

    values: Tensor
    """[n_pairs, n_terms]."""

    def __init__(self, distances: Tensor, range_end: float, n_terms: int, dtype: torch.dtype) -> None:
        check_range(distances, range_end)
        self.distances, self.range_end, self.dtype = distances, range_end, dtype
        self.shape = (distances.shape[0], n_terms)
        self.x_slope = 2.0 / range_end
        self.x = self.x_slope * distances - 1.0
        self.values = self._fill()

    def _fill(self) -> Tensor:
        return self._values64.to(self.dtype)

    @cached_property
    def _values64(self) -> Tensor:
        return chebyshev_values(self.distances, self.range_end, self.shape[1])

    @cached_property
    def _to_slopes(self) -> Tensor:
        return chebyshev_slopes(self.shape[1], self.range_end).to(self.distances.device)

    @cached_property
    def _slopes64(self) -> Tensor:
        return self._values64 @ self._to_slopes

    def slopes(self, bar: Tensor) -> Tensor:
        """dE/dd [n_pairs] float64, from the gradient of ``values``."""
        return (bar * self._slopes64).sum(-1)

    def change(self, motion: Tensor) -> Tensor:
        """That of ``values`` along a motion ḋ [n_pairs]."""
        return (self._slopes64 * motion[:, None]).to(self.dtype)

    def slopes_change(self, bar: Tensor, bar_dot: Tensor, motion: Tensor) -> Tensor:
        """That of ``slopes(bar)`` along a motion, ``bar_dot``: that of ``bar``."""
        bends = (self._slopes64 @ self._to_slopes).mul_(motion[:, None])
        return (bar_dot * self._slopes64 + bar * bends).sum(-1)


def chebyshev_coefficients(frequencies: Tensor, range_end: float, tolerance: float = 1e-10) -> Tensor:
    """M with [sin(B d), cos(B d)] = T(d) M on 0 < d < range_end, [n_terms, 2·len(B)] float64.

    On a bounded range the hundreds of features span few dimensions (about the largest phase plus
    twenty); n_terms is the smallest that reproduces each of them to ``tolerance``.
    """
    frequencies = frequencies.detach().double().cpu()
    n_nodes = 256 + 4 * math.ceil(float(frequencies.abs().max()) * range_end)
    theta = (torch.arange(n_nodes, dtype=torch.float64) + 0.5) * math.pi / n_nodes
    at_nodes = fourier_features(0.5 * range_end * (theta.cos() + 1.0), frequencies)
    spectrum = (
        2.0 / n_nodes * torch.cos(torch.arange(n_nodes, dtype=torch.float64)[:, None] * theta) @ at_nodes
    )
    spectrum[0] *= 0.5
    tail = spectrum.abs().flip(0).cumsum(0).flip(0).amax(1)
    return spectrum[: int((tail > tolerance).sum())].contiguous()
