"""``paper_rows`` in single precision on one CPU thread, compiled by numba: each row is fetched once a kernel.

SiLU' is made again on the way back, which takes less time than to write and fetch it. A sum over a row is
asked for before other work, because it takes long until it is there.

A row is one direction of a pair: first all i→j, then all j→i; where ``once``, a row stands for both, and both
atoms receive it. Arrays of the kernels are C-contiguous, float32 [n, width], indices int64; names as in
``normed_silu``.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import float32, njit
from torch import Tensor

from dyntrain.kernel import compiled, reads, writes
from dyntrain.models.normed_silu import LAYER_NORM_EPS, FirstOrder
from dyntrain.models.paper_pairs import PairBlock
from dyntrain.models.paper_rows import Rows, TableRows
from dyntrain.models.paper_weights import LayerWeights
from dyntrain.models.silu_kernels import sigmoid, silu, silu_slope
from dyntrain.models.splines import SplineBasis

_EPS = np.float32(LAYER_NORM_EPS)


@njit(inline="always")
def _scale_of(square, width):  # type: ignore[no-untyped-def]
    """ρ from Σ a²."""
    return float32(1.0) / np.sqrt(square / float32(width) + _EPS)


@njit(inline="always")
def _normed_silu(row, rho, gain, shift, m):  # type: ignore[no-untyped-def]
    """n in place of a, and m."""
    for c in range(row.shape[0]):
        x = row[c] * rho
        row[c] = x
        m[c] = silu(x * gain[c] + shift[c])


@njit(inline="always")
def _reverse(m_bar, n, gain, shift, g):  # type: ignore[no-untyped-def]
    """g = m̄ SiLU' γ (which may take m̄'s place), and ⟨g n⟩.

    ā is ρ (g − n ⟨g n⟩): its mean does not count, as what it is multiplied with has mean zero.
    """
    along = float32(0.0)
    for c in range(n.shape[0]):
        bar = m_bar[c] * gain[c] * silu_slope(n[c] * gain[c] + shift[c])
        g[c] = bar
        along += bar * n[c]
    return along / float32(n.shape[0])


@njit(inline="always")
def _add(row, to):  # type: ignore[no-untyped-def]
    for c in range(row.shape[0]):
        to[c] += row[c]


@compiled
def first_order(rows, gain, shift, slope, scale, m):  # type: ignore[no-untyped-def]
    """n in place of a, SiLU', ρ and m."""
    for r in range(rows.shape[0]):
        row, slopes, out, square = rows[r], slope[r], m[r], float32(0.0)
        for c in range(row.shape[0]):
            square += row[c] * row[c]
        rho = _scale_of(square, row.shape[0])
        scale[r] = rho
        for c in range(row.shape[0]):
            x = row[c] * rho
            y = x * gain[c] + shift[c]
            s = sigmoid(y)
            row[c] = x
            out[c] = y * s
            slopes[c] = out[c] + s * (float32(1.0) - out[c])


@compiled
def reverse_first_order(scaled, n, slope, gain, bar):  # type: ignore[no-untyped-def]
    """ā from ρ m̄."""
    width = n.shape[1]
    for r in range(n.shape[0]):
        row, given, slopes, x, along = bar[r], scaled[r], slope[r], n[r], float32(0.0)
        for c in range(width):
            along += given[c] * slopes[c] * gain[c] * x[c]
        along /= float32(width)
        for c in range(width):
            row[c] = given[c] * slopes[c] * gain[c] - x[c] * along


@njit(inline="always")
def _sum_of(pair, centre, neighbor, a):  # type: ignore[no-untyped-def]
    """a of a first row from its three parts; gives Σ a²."""
    square = float32(0.0)
    for c in range(a.shape[0]):
        total = pair[c] + centre[c] + neighbor[c]
        a[c] = total
        square += total * total
    return square


@njit(inline="always")
def _square_of(row, bias):  # type: ignore[no-untyped-def]
    """Σ a² of a second row."""
    square = float32(0.0)
    for c in range(row.shape[0]):
        a = row[c] + bias[c]
        square += a * a
    return square


@compiled
def first_rows(of_pairs, of_ends, i, j, gain, shift, n, scale, m):  # type: ignore[no-untyped-def]
    """n, ρ and m of what each row gets from its pair, its receiver and its sender."""
    n_pairs, width = of_pairs.shape
    n_atoms, both, square_back = of_ends.shape[0] // 2, n.shape[0] > n_pairs, float32(0.0)
    for p in range(n_pairs):
        q = p + n_pairs
        square = _sum_of(of_pairs[p], of_ends[i[p]], of_ends[n_atoms + j[p]], n[p])
        if both:
            square_back = _sum_of(of_pairs[p], of_ends[j[p]], of_ends[n_atoms + i[p]], n[q])
        scale[p] = _scale_of(square, width)
        _normed_silu(n[p], scale[p], gain, shift, m[p])
        if both:
            scale[q] = _scale_of(square_back, width)
            _normed_silu(n[q], scale[q], gain, shift, m[q])


@compiled
def second_rows(rows, i, j, once, bias, gain, shift, scale, received):  # type: ignore[no-untyped-def]
    """n in place of W2's rows, and ρ; m is added to what its atoms receive."""
    n_pairs, n_rows, width = i.shape[0], rows.shape[0], rows.shape[1]
    next_square = _square_of(rows[0], bias) if n_rows > 0 else float32(0.0)
    for r in range(n_rows):
        row, atom = rows[r], received[i[r] if r < n_pairs else j[r - n_pairs]]
        rho = _scale_of(next_square, width)
        next_square = _square_of(rows[min(r + 1, n_rows - 1)], bias)
        scale[r] = rho
        for c in range(width):
            x = (row[c] + bias[c]) * rho
            row[c] = x
            atom[c] += silu(x * gain[c] + shift[c])
        if once:
            other = received[j[r]]
            for c in range(width):
                other[c] += silu(row[c] * gain[c] + shift[c])


@compiled
def reverse_second_rows(upper, i, j, once, factor, n, gain, shift, bar):  # type: ignore[no-untyped-def]
    """ā of the second rows, times ``factor`` [n_rows] instead of ρ, from that of what atoms receive."""
    n_pairs, width = i.shape[0], n.shape[1]
    for r in range(n.shape[0]):
        row, x, share = bar[r], n[r], factor[r]
        if once:
            of_atom, of_other = upper[i[r]], upper[j[r]]
            for c in range(width):
                row[c] = of_atom[c] + of_other[c]
            along = _reverse(row, x, gain, shift, row)
        else:
            along = _reverse(upper[i[r] if r < n_pairs else j[r - n_pairs]], x, gain, shift, row)
        for c in range(width):
            row[c] = share * (row[c] - x[c] * along)


@njit(inline="always")
def _add_reversed(g, x, along, centre, neighbor):  # type: ignore[no-untyped-def]
    """ā in place of g, added to what the row's two ends had a share in."""
    for c in range(g.shape[0]):
        bar = g[c] - x[c] * along
        g[c] = bar
        centre[c] += bar
        neighbor[c] += bar


@compiled
def reverse_first_rows(m_bar, i, j, n, gain, shift, bar, to_centre, to_neighbor, back):  # type: ignore[no-untyped-def]
    """ā of the first rows; added to the atoms'. In ``bar`` [n_pairs, width] both directions' sums.

    Args:
        back: room for a row.
    """
    n_pairs = i.shape[0]
    for p in range(n_pairs):
        q, forth = p + n_pairs, bar[p]
        along = _reverse(m_bar[p], n[p], gain, shift, forth)
        along_back = _reverse(m_bar[q], n[q], gain, shift, back)
        _add_reversed(forth, n[p], along, to_centre[i[p]], to_neighbor[j[p]])
        _add_reversed(back, n[q], along_back, to_centre[j[p]], to_neighbor[i[p]])
        _add(back, forth)


@compiled
def reverse_lowest_rows(m_bar, n, gain, shift, bar, back):  # type: ignore[no-untyped-def]
    """The same in the lowest layer, where that of the atoms is of no use."""
    n_pairs, width = bar.shape
    for r in range(n.shape[0]):
        x = n[r]
        if r < n_pairs:
            row = bar[r]
            along = _reverse(m_bar[r], x, gain, shift, row)
            for c in range(width):
                row[c] -= x[c] * along
        else:
            row = bar[r - n_pairs]
            along = _reverse(m_bar[r], x, gain, shift, back)
            for c in range(width):
                row[c] += back[c] - x[c] * along


@njit(inline="always")
def _spline_value(table, b, w, c):  # type: ignore[no-untyped-def]
    """From the table's rows from b on, with weights w [6]."""
    return (
        w[0] * table[b, c]
        + w[1] * table[b + 1, c]
        + w[2] * table[b + 2, c]
        + w[3] * table[b + 3, c]
        + w[4] * table[b + 4, c]
        + w[5] * table[b + 5, c]
    )


@njit(inline="always")
def _along_spline_slopes(table, b, w, bar):  # type: ignore[no-untyped-def]
    """Σ_c bar_c times the splines' slopes; w [5]."""
    t0, t1, t2, t3, t4 = table[b], table[b + 1], table[b + 2], table[b + 3], table[b + 4]
    total = float32(0.0)
    for c in range(bar.shape[0]):
        total += bar[c] * (w[0] * t0[c] + w[1] * t1[c] + w[2] * t2[c] + w[3] * t3[c] + w[4] * t4[c])
    return total


@compiled
def first_rows_of_splines(table, begins, weights, of_ends, i, j, gain, shift, n, scale, m):  # type: ignore[no-untyped-def]
    """``first_rows`` where what a row gets from its pair comes from a table: ``weights`` [n_pairs, 6]."""
    n_pairs, width = i.shape[0], table.shape[1]
    n_atoms = of_ends.shape[0] // 2
    for p in range(n_pairs):
        q, b, w = p + n_pairs, begins[p], weights[p]
        forth, centre, neighbor = n[p], of_ends[i[p]], of_ends[n_atoms + j[p]]
        back, centre_back, neighbor_back = n[q], of_ends[j[p]], of_ends[n_atoms + i[p]]
        square, square_back = float32(0.0), float32(0.0)
        for c in range(width):
            of_pair = _spline_value(table, b, w, c)
            a, a_back = of_pair + centre[c] + neighbor[c], of_pair + centre_back[c] + neighbor_back[c]
            forth[c] = a
            back[c] = a_back
            square += a * a
            square_back += a_back * a_back
        scale[p], scale[q] = _scale_of(square, width), _scale_of(square_back, width)
        _normed_silu(forth, scale[p], gain, shift, m[p])
        _normed_silu(back, scale[q], gain, shift, m[q])


@compiled
def reverse_first_rows_of_splines(  # type: ignore[no-untyped-def]
    m_bar, table, begins, weights, i, j, n, gain, shift, to_centre, to_neighbor, slopes
):
    """``reverse_first_rows`` in place of m̄, and adds to dE/dd [n_pairs]: ``weights`` [n_pairs, 5]."""
    n_pairs = i.shape[0]
    for p in range(n_pairs):
        q = p + n_pairs
        forth, back = m_bar[p], m_bar[q]
        along = _reverse(forth, n[p], gain, shift, forth)
        along_back = _reverse(back, n[q], gain, shift, back)
        _add_reversed(forth, n[p], along, to_centre[i[p]], to_neighbor[j[p]])
        _add_reversed(back, n[q], along_back, to_centre[j[p]], to_neighbor[i[p]])
        _add(back, forth)
        slopes[p] += _along_spline_slopes(table, begins[p], weights[p], forth)


@compiled
def table_values(table, begins, weights, i, j, once, received):  # type: ignore[no-untyped-def]
    """Adds splines' values to what the atoms receive: ``weights`` [n_pairs, 6], rows from ``begins`` on."""
    n_pairs, width = i.shape[0], table.shape[1]
    for r in range(begins.shape[0]):
        p = r if r < n_pairs else r - n_pairs
        b, w, atom, other = begins[r], weights[p], received[i[p] if r < n_pairs else j[p]], received[j[p]]
        for c in range(width):
            atom[c] += _spline_value(table, b, w, c)
        if once:
            for c in range(width):
                other[c] += _spline_value(table, b, w, c)


@compiled
def table_slopes(table, begins, weights, i, j, once, upper, slopes):  # type: ignore[no-untyped-def]
    """Adds to dE/dd [n_pairs] of those splines; ``weights`` [n_pairs, 5]."""
    n_pairs = i.shape[0]
    for r in range(begins.shape[0]):
        p = r if r < n_pairs else r - n_pairs
        slopes[p] += _along_spline_slopes(table, begins[r], weights[p], upper[i[p] if r < n_pairs else j[p]])
        if once:
            slopes[p] += _along_spline_slopes(table, begins[r], weights[p], upper[j[p]])


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

    def first(self, of_pairs: Tensor, of_ends: Tensor) -> Tensor:
        w, m = self.weights, self._new_first(of_pairs)
        out = writes(self.n1, self.scale1, m)
        first_rows(*reads(of_pairs, of_ends), self.i, self.j, *reads(w.gain1, w.shift1), *out)
        return m

    def first_of_splines(self, table: Tensor, basis: SplineBasis, of_ends: Tensor) -> Tensor:
        w, m = self.weights, self._new_first(of_ends)
        spline, out = reads(table[0], basis.begins, basis.weights), writes(self.n1, self.scale1, m)
        first_rows_of_splines(*spline, *reads(of_ends), self.i, self.j, *reads(w.gain1, w.shift1), *out)
        return m

    def _new_first(self, like: Tensor) -> Tensor:
        """Room for what the first sites leave, and for m1."""
        n_rows, width = len(self.where.receivers), like.shape[1]
        self.n1, self.scale1 = like.new_empty(n_rows, width), like.new_empty(n_rows)
        return torch.empty_like(self.n1)

    def second(self, rows: Tensor, received: Tensor) -> None:
        w = self.weights
        self.n2, self.scale2 = rows, rows.new_empty(rows.shape[0])
        out = writes(self.scale2, received)
        second_rows(*writes(rows), self.i, self.j, self.once, *reads(w.bias2, w.gain2, w.shift2), *out)

    def reverse_second(self, upper: Tensor) -> Tensor:
        w, bar = self.weights, torch.empty_like(self.n2)
        kept = reads(self.scale1 * self.scale2, self.n2, w.gain2, w.shift2)
        reverse_second_rows(*reads(upper), self.i, self.j, self.once, *kept, *writes(bar))
        return bar

    def reverse_first(self, scaled: Tensor, to_atoms: tuple[Tensor, Tensor] | None) -> Tensor:
        w, bar = self.weights, scaled.new_empty(len(self.i), scaled.shape[1])
        kept, room = reads(self.n1, w.gain1, w.shift1), scaled.new_empty(scaled.shape[1])
        if to_atoms is None:
            reverse_lowest_rows(*reads(scaled), *kept, *writes(bar, room))
        else:
            reverse_first_rows(*reads(scaled), self.i, self.j, *kept, *writes(bar, *to_atoms, room))
        return bar

    def reverse_first_of_splines(
        self,
        scaled: Tensor,
        to_atoms: tuple[Tensor, Tensor],
        table: Tensor,
        basis: SplineBasis,
        slopes: Tensor,
    ) -> None:
        w, spline = self.weights, reads(table[1], basis.begins, basis.slope_weights)
        kept, out = reads(self.n1, w.gain1, w.shift1), writes(*to_atoms, slopes)
        reverse_first_rows_of_splines(*writes(scaled), *spline, self.i, self.j, *kept, *out)


class CompiledTableRows(TableRows):
    """What it does is said there."""

    def add_received(self, received: Tensor) -> None:
        spline = reads(self.table[0], self.begins, self.basis.weights)
        table_values(*spline, *_ends(self.where), *writes(received))

    def add_slopes(self, upper: Tensor, slopes: Tensor) -> None:
        spline = reads(self.table[1], self.begins, self.basis.slope_weights)
        table_slopes(*spline, *_ends(self.where), *reads(upper), *writes(slopes[self.where.pairs]))
