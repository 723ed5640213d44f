"""``ChebyshevBasis`` compiled for one thread of a CPU: recursions over k, no derivative is written out.

With t, s, c for T_k(x) and its first two derivatives in x:
t_{k+1} = 2x t_k − t_{k−1}, s_{k+1} = 2x s_k − s_{k−1} + 2 t_k, c_{k+1} = 2x c_k − c_{k−1} + 4 s_k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dyntrain.kernel import compiled, reads, writes
from dyntrain.models.chebyshev import ChebyshevBasis


@compiled
def _fill_values(x, values):  # type: ignore[no-untyped-def]
    for p in range(x.shape[0]):
        two, t, t_next = 2.0 * x[p], 1.0, x[p]
        for k in range(values.shape[1]):
            values[p, k] = t
            t, t_next = t_next, two * t_next - t


@compiled
def _fill_change(x, x_dot, change):  # type: ignore[no-untyped-def]
    """T_k' ẋ."""
    for p in range(x.shape[0]):
        two, t, t_next, s, s_next = 2.0 * x[p], 1.0, x[p], 0.0, 1.0
        for k in range(change.shape[1]):
            change[p, k] = s * x_dot[p]
            s, s_next = s_next, two * s_next - s + 2.0 * t_next
            t, t_next = t_next, two * t_next - t


@compiled
def _add_slopes(x, bar, total):  # type: ignore[no-untyped-def]
    """Σ_k x̄_k T_k'."""
    for p in range(x.shape[0]):
        two, t, t_next, s, s_next = 2.0 * x[p], 1.0, x[p], 0.0, 1.0
        for k in range(bar.shape[1]):
            total[p] += bar[p, k] * s
            s, s_next = s_next, two * s_next - s + 2.0 * t_next
            t, t_next = t_next, two * t_next - t


@compiled
def _add_slopes_change(x, x_dot, bar, bar_dot, total):  # type: ignore[no-untyped-def]
    """Σ_k (its change T_k' + x̄_k T_k'' ẋ)."""
    for p in range(x.shape[0]):
        two, t, t_next, s, s_next, c, c_next = 2.0 * x[p], 1.0, x[p], 0.0, 1.0, 0.0, 0.0
        for k in range(bar.shape[1]):
            total[p] += bar_dot[p, k] * s + bar[p, k] * c * x_dot[p]
            c, c_next = c_next, two * c_next - c + 4.0 * s_next
            s, s_next = s_next, two * s_next - s + 2.0 * t_next
            t, t_next = t_next, two * t_next - t


class CompiledChebyshevBasis(ChebyshevBasis):
    """What it does is said there."""

    def _fill(self) -> Tensor:
        values = torch.empty(self.shape, dtype=self.dtype)
        _fill_values(*reads(self.x), *writes(values))
        return values

    def slopes(self, bar: Tensor) -> Tensor:
        total = torch.zeros_like(self.x)
        _add_slopes(*reads(self.x, bar), *writes(total))
        return total.mul_(self.x_slope)

    def change(self, motion: Tensor) -> Tensor:
        change = torch.empty(self.shape, dtype=self.dtype)
        _fill_change(*reads(self.x, self.x_slope * motion), *writes(change))
        return change

    def slopes_change(self, bar: Tensor, bar_dot: Tensor, motion: Tensor) -> Tensor:
        total = torch.zeros_like(self.x)
        _add_slopes_change(*reads(self.x, self.x_slope * motion, bar, bar_dot), *writes(total))
        return total.mul_(self.x_slope)
