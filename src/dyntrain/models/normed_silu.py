"""SiLU(LayerNorm(a)) with its first and second derivatives written out in few passes over memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

LAYER_NORM_EPS = 1e-5


def centred(weight: Tensor) -> Tensor:
    """A linear layer's weight or bias [n_out, …] whose outputs have mean zero: half a layer norm."""
    return weight - weight.mean(0)


def _row_mean(x: Tensor, y: Tensor) -> Tensor:
    """⟨x y⟩ over each row, [n, 1]."""
    return (x * y).mean(-1, keepdim=True)


def _scale(rows: Tensor) -> Tensor:
    """ρ of rows a."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return norm.square_().div_(rows.shape[-1]).add_(LAYER_NORM_EPS).rsqrt_()


@dataclass(eq=False)
class NormedSiLU:
    """m = SiLU(y), y = γ n + β, n = ρ a, ρ = (⟨a²⟩ + ε)^(−1/2), for rows a of mean zero.

    The object is what one evaluation leaves behind for its derivatives. Names: x̄ is the gradient of the
    energy with respect to x, ẋ the derivative of x along a motion of the atoms. Every method recomputes what
    is cheaper to make again than to fetch from memory.

    n:      [n_rows, width]; layer norm's mean is taken out of the weights that make a (``centred``)
    gain:   γ [width]
    shift:  β [width]
    scale:  ρ [n_rows, 1]
    n_dot:  ṅ, after ``tangent``
    """

    n: Tensor
    gain: Tensor
    shift: Tensor
    scale: Tensor
    n_dot: Tensor | None = None
    _growth: Tensor | None = None  # ⟨n ȧ⟩ [n_rows, 1], after ``tangent``

    @classmethod
    def of(cls, rows: Tensor, gain: Tensor, shift: Tensor) -> NormedSiLU:
        """From a, which is overwritten."""
        scale = _scale(rows)
        return cls(rows.mul_(scale), gain, shift, scale)

    def _y(self) -> Tensor:
        return torch.addcmul(self.shift, self.n, self.gain)

    def _off_norm(self, bar: Tensor, gain: Tensor | None, sums: bool) -> tuple[Tensor, Tensor, Tensor]:
        """g − ⟨g⟩ − n ⟨g n⟩ with g = bar · γ, by layer norm's own backward pass; its sums for γ̄ and β̄."""
        mean, scale = torch.zeros_like(self.scale), torch.ones_like(self.scale)
        shift = None if gain is None else self.shift
        found = torch.ops.aten.native_layer_norm_backward(
            bar, self.n, list(self.gain.shape), mean, scale, gain, shift, [True, sums, sums]
        )
        return found[0], found[1], found[2]

    def forward(self) -> Tensor:
        """m."""
        return functional.silu(self._y(), inplace=True)

    def reverse(self, m_bar: Tensor) -> Tensor:
        """ā from m̄."""
        y_bar = torch.ops.aten.silu_backward(m_bar, self._y())
        return self._off_norm(y_bar, self.gain, False)[0].mul_(self.scale)

    def tangent(self, rows_dot: Tensor) -> Tensor:
        """ṁ from ȧ (of mean zero, as a itself)."""
        self.n_dot = self._off_norm(rows_dot, None, False)[0].mul_(self.scale)
        self._growth = _row_mean(rows_dot, self.n)
        return torch.ops.aten.silu_backward(self.n_dot * self.gain, self._y())

    def rest(self) -> None:
        """Forget the motion: derivatives of what follows are those of a structure at rest."""
        self.n_dot = self._growth = None

    def expand(self) -> Expanded:
        y = self._y()
        sigmoid = torch.sigmoid(y)
        m = y.mul_(sigmoid)
        slope = torch.lerp(m, torch.ones((), dtype=m.dtype, device=m.device), sigmoid)
        if self.n_dot is None:
            return Expanded(self, m, slope, None, None, None)
        y_dot = self.n_dot * self.gain
        # SiLU'' = (1 − σ)(2 SiLU' − SiLU)
        bend = torch.sub(slope, m, alpha=0.5)
        bend = torch.addcmul(bend, bend, sigmoid, value=-1.0).mul_(y_dot).mul_(2.0)
        return Expanded(self, m, slope, slope * y_dot, bend, None)


class FirstOrder(NamedTuple):
    """The same function where first derivatives are enough: one exponential and fewer passes.

    n, scale: as in ``NormedSiLU``
    slope:    SiLU'(y) [n_rows, width]
    """

    n: Tensor
    scale: Tensor
    slope: Tensor

    @classmethod
    def of(cls, rows: Tensor, gain: Tensor, shift: Tensor) -> tuple[FirstOrder, Tensor]:
        """What it leaves, and m, from a, which is overwritten."""
        scale = _scale(rows)
        n = rows.mul_(scale)
        y = torch.addcmul(shift, n, gain)
        sigmoid = torch.sigmoid(y)
        m = y.mul_(sigmoid)
        slope = torch.lerp(m, m.new_ones(()), sigmoid, out=sigmoid)
        return cls(n, scale, slope), m

    def reverse(self, scaled: Tensor, gain: Tensor) -> Tensor:
        """ā from ρ m̄, which is overwritten."""
        mean, scale = torch.zeros_like(self.scale), torch.ones_like(self.scale)
        y_bar = scaled.mul_(self.slope)
        found = torch.ops.aten.native_layer_norm_backward(
            y_bar, self.n, list(gain.shape), mean, scale, gain, gain, [True, False, False]
        )
        return found[0]


@dataclass(eq=False)
class Expanded:
    """The pieces of the second derivatives at one site.

    m, slope:    SiLU(y), SiLU'(y)
    m_dot, bend: ṁ and SiLU''(y) ẏ; None at rest
    a_bar:       ā, after ``reverse_tangent``
    """

    site: NormedSiLU
    m: Tensor
    slope: Tensor
    m_dot: Tensor | None
    bend: Tensor | None
    a_bar: Tensor | None

    def reverse_tangent(self, m_bar: Tensor | None, m_bar_dot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives along the motion of what ``reverse`` gives: of ā, γ̄ and β̄.

        Args:
            m_bar: m̄ (not needed at rest). m_bar_dot: its derivative along the motion.
        """
        site = self.site
        y_bar_dot = m_bar_dot * self.slope
        if self.bend is not None:
            assert m_bar is not None
            y_bar_dot.addcmul_(m_bar, self.bend)
        a_bar_dot, gain_bar_dot, shift_bar_dot = site._off_norm(y_bar_dot, site.gain, True)
        if self.bend is None:
            return a_bar_dot.mul_(site.scale), gain_bar_dot, shift_bar_dot
        assert m_bar is not None and site.n_dot is not None and site._growth is not None
        y_bar = m_bar * self.slope
        a_bar = site._off_norm(y_bar, site.gain, False)[0]
        gain_bar_dot = gain_bar_dot + (y_bar * site.n_dot).sum(0)
        n_bar = y_bar.mul_(site.gain)
        # What a change of n and ρ does to ρ (n̄ − ⟨n̄⟩ − n ⟨n̄ n⟩).
        a_bar_dot.addcmul_(site.n_dot, _row_mean(n_bar, site.n), value=-1.0)
        a_bar_dot.addcmul_(site.n, _row_mean(n_bar, site.n_dot), value=-1.0)
        a_bar_dot.addcmul_(a_bar, site._growth * site.scale, value=-1.0)
        self.a_bar = a_bar.mul_(site.scale)
        return a_bar_dot.mul_(site.scale), gain_bar_dot, shift_bar_dot
