"""``paper_rows`` in single precision on one CPU thread, compiled by numba: each row is fetched once a kernel.

A row is one direction of a pair: first all i→j, then all j→i; where ``once``, a row stands for both, and both
atoms receive it. Arrays of the kernels are C-contiguous, float32 [n, width], indices int64; names as in
``normed_silu``.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import float32, int32, njit
from torch import Tensor

from dyntrain.kernel import compiled, reads, writes
from dyntrain.models.normed_silu import LAYER_NORM_EPS, FirstOrder
from dyntrain.models.paper_pairs import PairBlock
from dyntrain.models.paper_rows import Rows, TableRows
from dyntrain.models.paper_weights import LayerWeights
from dyntrain.models.splines import SplineBasis

_EPS = np.float32(LAYER_NORM_EPS)


@njit(inline="always")
def _sigmoid(y):  # type: ignore[no-untyped-def]
    """1/(1 + e⁻ʸ) to 2e-7; written out, because calls of a library's exponential are not vectorised."""
    x = min(max(-y, float32(-87.0)), float32(87.0))
    # eˣ = 2ᵏ eᶠ, |f| ≤ ln 2 / 2, ln 2 in two parts
    k = np.floor(x * float32(1.4426950408889634) + float32(0.5))
    f = (x - k * float32(0.693359375)) + k * float32(2.12194440e-4)
    # 1 + f + …: its largest relative error in this range, 1e-7, is as small as five terms can make it
    p = float32(0.00831252022) * f + float32(0.0418901569)
    p = p * f + float32(0.166671146)
    p = p * f + float32(0.499992315)
    p = (p * f + float32(1.0)) * f + float32(1.0)
    bits = (int32(k) + int32(127)) << int32(23)
    power = np.int32(bits).view(np.float32)
    return float32(1.0) / (float32(1.0) + p * power)


@njit(inline="always")
def _sum_of(pair, centre, neighbor, row):  # type: ignore[no-untyped-def]
    """a of a first row from its three parts; gives Σ a²."""
    square = float32(0.0)
    for c in range(row.shape[0]):
        a = pair[c] + centre[c] + neighbor[c]
        row[c] = a
        square += a * a
    return square


@njit(inline="always")
def _normed_silu(row, square, gain, shift, slope, m):  # type: ignore[no-untyped-def]
    """n in place of a, SiLU' and m; gives ρ. ``square``: Σ a²."""
    width = row.shape[0]
    rho = float32(1.0) / np.sqrt(square / float32(width) + _EPS)
    for c in range(width):
        x = row[c] * rho
        y = x * gain[c] + shift[c]
        sigmoid = _sigmoid(y)
        out = y * sigmoid
        row[c] = x
        m[c] = out
        slope[c] = out + sigmoid * (float32(1.0) - out)
    return rho


@njit(inline="always")
def _off_norm(row, x):  # type: ignore[no-untyped-def]
    """g − n ⟨g n⟩ in place of g: its mean does not count, as what it is multiplied with has mean zero."""
    width = row.shape[0]
    along = float32(0.0)
    for c in range(width):
        along += row[c] * x[c]
    along /= float32(width)
    for c in range(width):
        row[c] -= x[c] * along


@compiled
def first_order(rows, gain, shift, slope, scale, m):  # type: ignore[no-untyped-def]
    """n in place of a, SiLU', ρ and m."""
    for r in range(rows.shape[0]):
        row, square = rows[r], float32(0.0)
        for c in range(row.shape[0]):
            square += row[c] * row[c]
        scale[r] = _normed_silu(row, square, gain, shift, slope[r], m[r])


@compiled
def reverse_first_order(scaled, n, slope, gain, bar):  # type: ignore[no-untyped-def]
    """ā from ρ m̄ (not in place: the loop would not be vectorised)."""
    for r in range(n.shape[0]):
        row, given, slopes = bar[r], scaled[r], slope[r]
        for c in range(row.shape[0]):
            row[c] = given[c] * slopes[c] * gain[c]
        _off_norm(row, n[r])


@compiled
def slopes_of_rows(n, gain, shift, slope):  # type: ignore[no-untyped-def]
    """SiLU' from n."""
    for r in range(n.shape[0]):
        row, out = n[r], slope[r]
        for c in range(row.shape[0]):
            y = row[c] * gain[c] + shift[c]
            sigmoid = _sigmoid(y)
            m = y * sigmoid
            out[c] = m + sigmoid * (float32(1.0) - m)


@compiled
def first_rows(of_pairs, of_ends, i, j, gain, shift, n, slope, scale, m):  # type: ignore[no-untyped-def]
    """n, SiLU', ρ and m of what each row gets from its pair, its receiver and its sender."""
    n_pairs = of_pairs.shape[0]
    n_atoms = of_ends.shape[0] // 2
    for r in range(n.shape[0]):
        p = r if r < n_pairs else r - n_pairs
        receiver, sender = (i[p], j[p]) if r < n_pairs else (j[p], i[p])
        square = _sum_of(of_pairs[p], of_ends[receiver], of_ends[n_atoms + sender], n[r])
        scale[r] = _normed_silu(n[r], square, gain, shift, slope[r], m[r])


@compiled
def second_rows(rows, i, j, once, bias, gain, shift, slope, scale, received):  # type: ignore[no-untyped-def]
    """n in place of W2's rows, SiLU' and ρ; m is added to what its atoms receive."""
    n_pairs, width = i.shape[0], rows.shape[1]
    m = np.empty(width, np.float32)
    for r in range(rows.shape[0]):
        row, square = rows[r], float32(0.0)
        for c in range(width):
            a = row[c] + bias[c]
            row[c] = a
            square += a * a
        scale[r] = _normed_silu(row, square, gain, shift, slope[r], m)
        atom = received[i[r] if r < n_pairs else j[r - n_pairs]]
        for c in range(width):
            atom[c] += m[c]
        if once:
            other = received[j[r]]
            for c in range(width):
                other[c] += m[c]


@compiled
def reverse_second_rows(upper, i, j, once, factor, n, slope, gain, bar):  # type: ignore[no-untyped-def]
    """ā of the second rows, times ``factor`` [n_rows] instead of ρ, from that of what atoms receive."""
    n_pairs, width = i.shape[0], n.shape[1]
    for r in range(n.shape[0]):
        p = r if r < n_pairs else r - n_pairs
        of_atom, of_other = upper[i[p] if r < n_pairs else j[p]], upper[j[p]]
        row, slopes, share = bar[r], slope[r], factor[r]
        if once:
            for c in range(width):
                row[c] = share * (of_atom[c] + of_other[c]) * slopes[c] * gain[c]
        else:
            for c in range(width):
                row[c] = share * of_atom[c] * slopes[c] * gain[c]
        _off_norm(row, n[r])


@compiled
def reverse_first_rows(m_bar, i, j, lowest, n, slope, gain, bar, to_centre, to_neighbor):  # type: ignore[no-untyped-def]
    """ā of the first rows (not in place of m̄: the loop would not be vectorised); added to the atoms'.

    Its first half: both directions' sums.
    """
    n_pairs, width = i.shape[0], n.shape[1]
    for r in range(n.shape[0]):
        p = r if r < n_pairs else r - n_pairs
        receiver, sender = (i[p], j[p]) if r < n_pairs else (j[p], i[p])
        row, slopes, of_pair = bar[r], slope[r], bar[p]
        for c in range(width):
            row[c] = m_bar[r, c] * slopes[c] * gain[c]
        _off_norm(row, n[r])
        if not lowest:
            centre, neighbor = to_centre[receiver], to_neighbor[sender]
            for c in range(width):
                centre[c] += row[c]
                neighbor[c] += row[c]
        if r >= n_pairs:
            for c in range(width):
                of_pair[c] += row[c]


@njit(inline="always")
def _spline_values(table, b, w, out):  # type: ignore[no-untyped-def]
    """From the table's rows from b on, with weights w [6]."""
    t0, t1, t2, t3, t4, t5 = table[b], table[b + 1], table[b + 2], table[b + 3], table[b + 4], table[b + 5]
    for c in range(out.shape[0]):
        out[c] = w[0] * t0[c] + w[1] * t1[c] + w[2] * t2[c] + w[3] * t3[c] + w[4] * t4[c] + w[5] * t5[c]


@njit(inline="always")
def _along_spline_slopes(table, b, w, bar):  # type: ignore[no-untyped-def]
    """Σ_c bar_c times the splines' slopes; w [5]."""
    t0, t1, t2, t3, t4 = table[b], table[b + 1], table[b + 2], table[b + 3], table[b + 4]
    total = float32(0.0)
    for c in range(bar.shape[0]):
        total += bar[c] * (w[0] * t0[c] + w[1] * t1[c] + w[2] * t2[c] + w[3] * t3[c] + w[4] * t4[c])
    return total


@compiled
def first_rows_of_splines(  # type: ignore[no-untyped-def]
    table, begins, weights, of_ends, i, j, gain, shift, n, slope, scale, m
):
    """``first_rows`` where what a row gets from its pair comes from a table: ``weights`` [n_pairs, 6]."""
    n_pairs, width = i.shape[0], table.shape[1]
    n_atoms = of_ends.shape[0] // 2
    pair = np.empty(width, np.float32)
    for p in range(n_pairs):
        _spline_values(table, begins[p], weights[p], pair)
        for direction in range(2):
            r = p + direction * n_pairs
            receiver, sender = (i[p], j[p]) if direction == 0 else (j[p], i[p])
            square = _sum_of(pair, of_ends[receiver], of_ends[n_atoms + sender], n[r])
            scale[r] = _normed_silu(n[r], square, gain, shift, slope[r], m[r])


@compiled
def reverse_first_rows_of_splines(  # type: ignore[no-untyped-def]
    m_bar, table, begins, weights, i, j, n, slope, gain, to_centre, to_neighbor, slopes
):
    """``reverse_first_rows``, and adds to dE/dd [n_pairs] from a table: ``weights`` [n_pairs, 5]."""
    n_pairs, width = i.shape[0], n.shape[1]
    row, of_pair = np.empty(width, np.float32), np.empty(width, np.float32)
    for p in range(n_pairs):
        of_pair[:] = float32(0.0)
        for direction in range(2):
            r = p + direction * n_pairs
            receiver, sender = (i[p], j[p]) if direction == 0 else (j[p], i[p])
            given, kept = m_bar[r], slope[r]
            for c in range(width):
                row[c] = given[c] * kept[c] * gain[c]
            _off_norm(row, n[r])
            centre, neighbor = to_centre[receiver], to_neighbor[sender]
            for c in range(width):
                centre[c] += row[c]
                neighbor[c] += row[c]
                of_pair[c] += row[c]
        slopes[p] += _along_spline_slopes(table, begins[p], weights[p], of_pair)


@compiled
def table_values(table, begins, weights, i, j, once, received):  # type: ignore[no-untyped-def]
    """Adds splines' values to what the atoms receive: ``weights`` [n_pairs, 6], rows from ``begins`` on."""
    n_pairs, width = i.shape[0], table.shape[1]
    m = np.empty(width, np.float32)
    for r in range(begins.shape[0]):
        p = r if r < n_pairs else r - n_pairs
        _spline_values(table, begins[r], weights[p], m)
        atom = received[i[p] if r < n_pairs else j[p]]
        for c in range(width):
            atom[c] += m[c]
        if once:
            other = received[j[p]]
            for c in range(width):
                other[c] += m[c]


@compiled
def table_slopes(table, begins, weights, i, j, once, upper, slopes):  # type: ignore[no-untyped-def]
    """Adds to dE/dd [n_pairs] of those splines; ``weights`` [n_pairs, 5]."""
    n_pairs, width = i.shape[0], table.shape[1]
    bar = np.empty(width, np.float32)
    for r in range(begins.shape[0]):
        p = r if r < n_pairs else r - n_pairs
        atom, other = upper[i[p] if r < n_pairs else j[p]], upper[j[p]]
        for c in range(width):
            bar[c] = atom[c] + other[c] if once else atom[c]
        slopes[p] += _along_spline_slopes(table, begins[r], weights[p], bar)


# --- the same interface as in PyTorch -----------------------------------------------------------------


def _ends(where: PairBlock) -> tuple[np.ndarray, np.ndarray, bool]:
    """i and j of the pairs, and whether a row stands for both directions."""
    n = where.pairs.stop - where.pairs.start
    return where.receivers[:n].numpy(), where.senders[:n].numpy(), where.mirrored is not None


class CompiledFirstOrder(FirstOrder):
    """What it does is said there."""

    @classmethod
    def of(cls, rows: Tensor, gain: Tensor, shift: Tensor) -> tuple[FirstOrder, Tensor]:
        slope, m, scale = torch.empty_like(rows), torch.empty_like(rows), rows.new_empty(rows.shape[0], 1)
        first_order(*writes(rows), *reads(gain, shift), *writes(slope, scale.view(-1), m))
        return cls(rows, scale, slope), m

    def reverse(self, scaled: Tensor, gain: Tensor) -> Tensor:
        bar = torch.empty_like(scaled)
        reverse_first_order(*reads(scaled, self.n, self.slope, gain), *writes(bar))
        return bar


class CompiledRows(Rows):
    """What it does is said there."""

    def __init__(self, where: PairBlock, weights: LayerWeights) -> None:
        super().__init__(where, weights)
        self.i, self.j, self.once = _ends(where)
        self.forget_slopes()

    def forget_slopes(self) -> None:
        """They are made again when they are needed."""
        self._slope1: Tensor | None = None
        self._slope2: Tensor | None = None

    def slope1(self) -> Tensor:
        if self._slope1 is None:
            self._slope1 = _slopes(self.n1, self.weights.gain1, self.weights.shift1)
        return self._slope1

    def slope2(self) -> Tensor:
        if self._slope2 is None:
            self._slope2 = _slopes(self.n2, self.weights.gain2, self.weights.shift2)
        return self._slope2

    def first(self, of_pairs: Tensor, of_ends: Tensor) -> Tensor:
        shape, w = (len(self.where.receivers), of_pairs.shape[1]), self.weights
        self.n1, self._slope1, m = (of_pairs.new_empty(shape) for _ in range(3))
        self.scale1 = of_pairs.new_empty(shape[0])
        out = writes(self.n1, self._slope1, self.scale1, m)
        first_rows(*reads(of_pairs, of_ends), self.i, self.j, *reads(w.gain1, w.shift1), *out)
        return m

    def first_of_splines(self, table: Tensor, basis: SplineBasis, of_ends: Tensor) -> Tensor:
        shape, w = (len(self.where.receivers), of_ends.shape[1]), self.weights
        self.n1, self._slope1, m = (of_ends.new_empty(shape) for _ in range(3))
        self.scale1 = of_ends.new_empty(shape[0])
        spline, given = reads(table[0], basis.begins, basis.weights), reads(of_ends)
        out = writes(self.n1, self._slope1, self.scale1, m)
        first_rows_of_splines(*spline, *given, self.i, self.j, *reads(w.gain1, w.shift1), *out)
        return m

    def second(self, rows: Tensor, received: Tensor) -> None:
        w = self.weights
        self.n2, self._slope2, self.scale2 = rows, torch.empty_like(rows), rows.new_empty(rows.shape[0])
        out = writes(self._slope2, self.scale2, received)
        second_rows(*writes(rows), self.i, self.j, self.once, *reads(w.bias2, w.gain2, w.shift2), *out)

    def reverse_second(self, upper: Tensor) -> Tensor:
        bar = torch.empty_like(self.n2)
        kept = reads(self.scale1 * self.scale2, self.n2, self.slope2(), self.weights.gain2)
        reverse_second_rows(*reads(upper), self.i, self.j, self.once, *kept, *writes(bar))
        return bar

    def reverse_first(self, scaled: Tensor, to_atoms: tuple[Tensor, Tensor] | None) -> Tensor:
        bar = torch.empty_like(scaled)
        kept = reads(self.n1, self.slope1(), self.weights.gain1)
        out = writes(bar, *(to_atoms or (bar, bar)))  # without atoms never touched
        reverse_first_rows(*reads(scaled), self.i, self.j, to_atoms is None, *kept, *out)
        return bar[: len(self.i)]

    def reverse_first_of_splines(
        self,
        scaled: Tensor,
        to_atoms: tuple[Tensor, Tensor],
        table: Tensor,
        basis: SplineBasis,
        slopes: Tensor,
    ) -> None:
        given = reads(scaled, table[1], basis.begins, basis.slope_weights)
        kept, out = reads(self.n1, self.slope1(), self.weights.gain1), writes(*to_atoms, slopes)
        reverse_first_rows_of_splines(*given, self.i, self.j, *kept, *out)


def _slopes(n: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    slope = torch.empty_like(n)
    slopes_of_rows(*reads(n, gain, shift), *writes(slope))
    return slope


class CompiledTableRows(TableRows):
    """What it does is said there."""

    def add_received(self, received: Tensor) -> None:
        spline = reads(self.table[0], self.begins, self.basis.weights)
        table_values(*spline, *_ends(self.where), *writes(received))

    def add_slopes(self, upper: Tensor, slopes: Tensor) -> None:
        spline = reads(self.table[1], self.begins, self.basis.slope_weights)
        table_slopes(*spline, *_ends(self.where), *reads(upper), *writes(slopes[self.where.pairs]))
