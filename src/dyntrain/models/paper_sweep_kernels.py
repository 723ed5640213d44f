"""``paper_sweep_rows`` in single precision on one CPU thread, compiled by numba.

Arrays as in ``paper_kernels``, whose loops are the first two sweeps. They multiply the first site's ρ into
W2's gradient, so ``m1_bar`` here stands for ρ m̄1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from numba import float32, njit
from torch import Tensor

from dyntrain.kernel import compiled, reads, writes
from dyntrain.models.paper_kernels import CompiledRows, _add
from dyntrain.models.paper_pairs import PairBlock
from dyntrain.models.paper_sweep_rows import FirstBars, SecondBars, SweepRows
from dyntrain.models.paper_weights import LayerWeights
from dyntrain.models.silu_kernels import sigmoid, silu_slope


@njit(inline="always")
def _tangent(row_dot, x, gain, shift, rho, m_dot):  # type: ignore[no-untyped-def]
    """ṅ in place of ȧ, and ṁ; gives ⟨n ȧ⟩."""
    width = x.shape[0]
    mean, along = float32(0.0), float32(0.0)
    for c in range(width):
        mean += row_dot[c]
        along += row_dot[c] * x[c]
    mean /= float32(width)
    along /= float32(width)
    for c in range(width):
        x_dot = rho * (row_dot[c] - mean - x[c] * along)
        row_dot[c] = x_dot
        m_dot[c] = x_dot * gain[c] * silu_slope(x[c] * gain[c] + shift[c])
    return along


@njit(inline="always")
def _reverse_tangent(  # type: ignore[no-untyped-def]
    bar, bar_dot, x, x_dot, gain, shift, rho, growth, m, m_dot, gain_sum, shift_sum
):
    """ā in place of m̄, and their derivatives along the motion; m, ṁ; adds to those of γ̄ and β̄."""
    width, zero, half, one = x.shape[0], float32(0.0), float32(0.5), float32(1.0)
    mean, along, across, mean_dot, along_dot = zero, zero, zero, zero, zero
    for c in range(width):
        y = x[c] * gain[c] + shift[c]
        s = sigmoid(y)
        out = y * s
        slope = out + s * (one - out)
        y_dot = x_dot[c] * gain[c]
        # SiLU'' = (1 − σ)(2 SiLU' − SiLU)
        bend = (slope - half * out) * (one - s) * (y_dot + y_dot)
        m[c] = out
        m_dot[c] = slope * y_dot
        y_bar, y_bar_dot = bar[c] * slope, bar_dot[c] * slope + bar[c] * bend
        shift_sum[c] += y_bar_dot
        gain_sum[c] += y_bar_dot * x[c] + y_bar * x_dot[c]
        x_bar, x_bar_dot = y_bar * gain[c], y_bar_dot * gain[c]
        bar[c] = x_bar
        bar_dot[c] = x_bar_dot
        mean += x_bar
        along += x_bar * x[c]
        across += x_bar * x_dot[c]
        mean_dot += x_bar_dot
        along_dot += x_bar_dot * x[c]
    scale = one / float32(width)
    mean, along, mean_dot, along_dot = (
        mean * scale,
        along * scale,
        mean_dot * scale,
        (along_dot + across) * scale,
    )
    for c in range(width):
        off = bar[c] - mean - x[c] * along
        change = bar_dot[c] - mean_dot - x[c] * along_dot - x_dot[c] * along - off * (growth * rho)
        bar[c] = rho * off
        bar_dot[c] = rho * change


@compiled
def tangent_first_rows(of_pairs, of_ends, i, j, gain, shift, n, scale, n_dot, growth, m_dot):  # type: ignore[no-untyped-def]
    """ṅ, ⟨n ȧ⟩ and ṁ of the first rows, from the changes of what they get (of no ends: nothing)."""
    n_pairs, width = of_pairs.shape
    n_atoms = of_ends.shape[0] // 2
    for r in range(n.shape[0]):
        p = r if r < n_pairs else r - n_pairs
        receiver, sender = (i[p], j[p]) if r < n_pairs else (j[p], i[p])
        row = n_dot[r]
        for c in range(width):
            row[c] = of_pairs[p, c]
        if n_atoms > 0:
            centre, neighbor = of_ends[receiver], of_ends[n_atoms + sender]
            for c in range(width):
                row[c] += centre[c] + neighbor[c]
        growth[r] = _tangent(row, n[r], gain, shift, scale[r], m_dot[r])


@compiled
def tangent_second_rows(  # type: ignore[no-untyped-def]
    rows, i, j, once, gain, shift, n, scale, growth, received, m_dot
):
    """ṅ in place of the rows, and ⟨n ȧ⟩; ṁ is added to what changes of what the atoms receive.

    Args:
        m_dot: room for a row.
    """
    n_pairs = i.shape[0]
    for r in range(rows.shape[0]):
        growth[r] = _tangent(rows[r], n[r], gain, shift, scale[r], m_dot)
        _add(m_dot, received[i[r] if r < n_pairs else j[r - n_pairs]])
        if once:
            _add(m_dot, received[j[r]])


@compiled
def reverse_tangent_second_rows(  # type: ignore[no-untyped-def]
    upper,
    upper_dot,
    i,
    j,
    once,
    gain,
    shift,
    n,
    n_dot,
    scale,
    growth,
    bar,
    bar_dot,
    bias_sum,
    gain_sum,
    shift_sum,
    room,
):
    """ā and its derivative, from the gradient of what atoms receive and its derivative; adds to the sums.

    Args:
        room: for five rows.
    """
    n_pairs, width = i.shape[0], n.shape[1]
    bias, gains, shifts = room[2], room[3], room[4]  # of this block: sums of few terms are rounded less
    room[2:] = float32(0.0)
    for r in range(n.shape[0]):
        p = r if r < n_pairs else r - n_pairs
        atom, other = i[p] if r < n_pairs else j[p], j[p]
        row, row_dot = bar[r], bar_dot[r]
        for c in range(width):
            row[c] = upper[atom, c]
            row_dot[c] = upper_dot[atom, c]
        if once:
            _add(upper[other], row)
            _add(upper_dot[other], row_dot)
        _reverse_tangent(
            row,
            row_dot,
            n[r],
            n_dot[r],
            gain,
            shift,
            scale[r],
            growth[r],
            room[0],
            room[1],
            gains,
            shifts,
        )
        _add(row_dot, bias)
    _add(bias, bias_sum)
    _add(gains, gain_sum)
    _add(shifts, shift_sum)


@compiled
def reverse_tangent_first_rows(  # type: ignore[no-untyped-def]
    m_bar,
    bar_dot,
    i,
    j,
    gain,
    shift,
    n,
    n_dot,
    scale,
    growth,
    m,
    m_dot,
    bar,
    to_centre,
    to_neighbor,
    gain_sum,
    shift_sum,
    room,
):
    """The same of the first rows, their derivative in place of that of m̄; m, ṁ.

    ``bar`` [n_pairs, width] and the first n_pairs of ``bar_dot``: both directions' sums.

    Args:
        room: for three rows.
    """
    n_pairs, width = i.shape[0], n.shape[1]
    row, gains, shifts = room[0], room[1], room[2]
    room[1:] = float32(0.0)
    for r in range(n.shape[0]):
        p = r if r < n_pairs else r - n_pairs
        receiver, sender = (i[p], j[p]) if r < n_pairs else (j[p], i[p])
        row_dot, full = bar_dot[r], float32(1.0) / scale[r]
        for c in range(width):
            row[c] = full * m_bar[r, c]
        _reverse_tangent(
            row,
            row_dot,
            n[r],
            n_dot[r],
            gain,
            shift,
            scale[r],
            growth[r],
            m[r],
            m_dot[r],
            gains,
            shifts,
        )
        _add(row_dot, to_centre[receiver])
        _add(row_dot, to_neighbor[sender])
        of_pair = bar[p]
        if r < n_pairs:
            for c in range(width):
                of_pair[c] = row[c]
        else:
            _add(row, of_pair)
            _add(row_dot, bar_dot[p])
    _add(gains, gain_sum)
    _add(shifts, shift_sum)


class _Motion(NamedTuple):
    """ṅ [n_rows, width] and ⟨n ȧ⟩ [n_rows]."""

    n_dot: Tensor
    growth: Tensor

    @classmethod
    def none(cls, rows: Tensor) -> _Motion:
        return cls(torch.zeros_like(rows), rows.new_zeros(rows.shape[0]))


class CompiledSweepRows(SweepRows):
    """What it does is said there."""

    def __init__(self, where: PairBlock, weights: LayerWeights) -> None:
        super().__init__(where, weights)
        self.rows = CompiledRows(where, weights)
        self.first_dot: _Motion | None = None
        self.second_dot: _Motion | None = None

    def first(self, of_pairs: Tensor, of_ends: Tensor) -> Tensor:
        return self.rows.first(of_pairs, of_ends)

    def second(self, rows: Tensor, received: Tensor) -> None:
        self.rows.second(rows, received)

    def reverse_second(self, upper: Tensor) -> Tensor:
        return self.rows.reverse_second(upper)

    def reverse_first(self, m_bar: Tensor, to_atoms: tuple[Tensor, Tensor] | None, keep: bool) -> Tensor:
        if keep:
            self.m1_bar = m_bar
        return self.rows.reverse_first(m_bar, to_atoms)

    def tangent_first(self, of_pairs: Tensor, of_ends: Tensor | None) -> Tensor:
        kept = self.rows
        ends = of_pairs[:0] if of_ends is None else of_ends
        self.first_dot = _Motion(torch.empty_like(kept.n1), torch.empty_like(kept.scale1))
        m_dot = torch.empty_like(kept.n1)
        site = reads(self.weights.gain1, self.weights.shift1, kept.n1, kept.scale1)
        tangent_first_rows(*reads(of_pairs, ends), kept.i, kept.j, *site, *writes(*self.first_dot, m_dot))
        return m_dot

    def tangent_second(self, rows: Tensor, received: Tensor) -> None:
        kept = self.rows
        self.second_dot = _Motion(rows, torch.empty_like(kept.scale2))
        site = reads(self.weights.gain2, self.weights.shift2, kept.n2, kept.scale2)
        out = writes(self.second_dot.growth, received, rows.new_empty(rows.shape[1]))
        tangent_second_rows(*writes(rows), kept.i, kept.j, kept.once, *site, *out)

    def rest(self) -> None:
        self.first_dot = self.second_dot = None

    def reverse_tangent_second(
        self, upper: Tensor | None, upper_dot: Tensor, sums: LayerWeights
    ) -> SecondBars:
        kept, w = self.rows, self.weights
        n_dot, growth = self.second_dot or _Motion.none(kept.n2)
        bar, bar_dot = torch.empty_like(kept.n2), torch.empty_like(kept.n2)
        uppers = reads(upper_dot if upper is None else upper, upper_dot)
        site = reads(w.gain2, w.shift2, kept.n2, n_dot, kept.scale2, growth)
        room = bar.new_empty(5, bar.shape[1])
        out = writes(bar, bar_dot, sums.bias2, sums.gain2, sums.shift2, room)
        reverse_tangent_second_rows(*uppers, kept.i, kept.j, kept.once, *site, *out)
        return SecondBars(bar, bar_dot)

    def reverse_tangent_first(
        self, m_bar_dot: Tensor, to_atoms: tuple[Tensor, Tensor], sums: LayerWeights
    ) -> FirstBars:
        kept, w = self.rows, self.weights
        n_dot, growth = self.first_dot or _Motion.none(kept.n1)
        m, m_dot, bar = (
            torch.empty_like(kept.n1),
            torch.empty_like(kept.n1),
            kept.n1.new_empty(len(kept.i), kept.n1.shape[1]),
        )
        m_bar = m_bar_dot if self.m1_bar is None else self.m1_bar
        site = reads(w.gain1, w.shift1, kept.n1, n_dot, kept.scale1, growth)
        room = bar.new_empty(3, bar.shape[1])
        out = writes(m, m_dot, bar, *to_atoms, sums.gain1, sums.shift1, room)
        reverse_tangent_first_rows(*reads(m_bar), *writes(m_bar_dot), kept.i, kept.j, *site, *out)
        return FirstBars(m, m_dot, bar, m_bar_dot[: len(kept.i)])
