"""``egnn_pairs`` compiled for one thread of a CPU: a loop meets each pair once and writes out nothing else.

The kernels' arrays are C-contiguous and of one floating point type, indices int64; what is sent and received
is [n_atoms, 5c] as ``Pairs`` has it. Names: f filters, x what is sent, o what is received or its gradient.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numba import njit
from torch import Tensor

from dyntrain.models.egnn_pairs import Pairs
from dyntrain.models.kernel import arrays, compiled

if TYPE_CHECKING:
    from dyntrain.models.egnn import EGNN

_ROOT3 = math.sqrt(3.0)


@compiled
def geometry(vectors, cutoff, factor, inverse, unit, basis, basis_slopes):  # type: ignore[no-untyped-def]
    """``RadialBasis.with_slopes``, sines of multiples by recurrence, in double precision."""
    for p in range(vectors.shape[0]):
        x, y, z = float(vectors[p, 0]), float(vectors[p, 1]), float(vectors[p, 2])
        d = math.sqrt(x * x + y * y + z * z)
        rest = 1.0 / d
        inverse[p] = rest
        unit[p, 0], unit[p, 1], unit[p, 2] = x * rest, y * rest, z * rest
        inside = 1.0 - (d / cutoff) ** 2
        cubed = 2.0 * factor * inside * inside * inside
        scale = inside * cubed * rest
        scale_slope = scale * rest + 8.0 / cutoff**2 * cubed
        wave_number = math.pi / cutoff
        sine, cosine = math.sin(wave_number * d), math.cos(wave_number * d)
        s0, c0, s, c = 0.0, 1.0, sine, cosine
        for n in range(basis.shape[1]):
            basis[p, n] = scale * s
            basis_slopes[p, n] = (n + 1) * wave_number * scale * c - scale_slope * s
            s0, s = s, 2.0 * cosine * s - s0
            c0, c = c, 2.0 * cosine * c - c0


@njit(inline="always")
def _fill_tensors(u, y):  # type: ignore[no-untyped-def]
    """1, û and the five of ``degree_two``."""
    y[0], y[1], y[2], y[3] = 1.0, u[0], u[1], u[2]
    y[4], y[5], y[7] = _ROOT3 * u[0] * u[1], _ROOT3 * u[1] * u[2], _ROOT3 * u[0] * u[2]
    y[6] = u[2] * u[2] - 0.5 * (u[0] * u[0] + u[1] * u[1])
    y[8] = 0.5 * _ROOT3 * (u[0] * u[0] - u[1] * u[1])


@compiled
def densities(unit, basis, i, j, columns, out):  # type: ignore[no-untyped-def]
    """Adds to ``out`` [9, n_atoms, n_species n_radial]."""
    n_radial = basis.shape[1]
    y = np.empty(9, unit.dtype)
    for p in range(i.shape[0]):
        _fill_tensors(unit[p], y)
        b, at_i, at_j = basis[p], columns[j[p]] * n_radial, columns[i[p]] * n_radial
        for k in range(9):
            of_i, of_j = out[k, i[p], at_i : at_i + n_radial], out[k, j[p], at_j : at_j + n_radial]
            forth = y[k]
            back = -forth if 1 <= k <= 3 else forth
            for r in range(n_radial):
                of_i[r] += forth * b[r]
                of_j[r] += back * b[r]


@compiled
def pull_back_densities(unit, basis, i, j, columns, bar, basis_bar, unit_bar):  # type: ignore[no-untyped-def]
    """Adds to the gradients of the basis and û."""
    n_radial, number = basis.shape[1], unit.dtype.type
    y, y_bar = np.empty(9, unit.dtype), np.empty(9, unit.dtype)
    for p in range(i.shape[0]):
        u = unit[p]
        _fill_tensors(u, y)
        b, b_bar, at_i, at_j = basis[p], basis_bar[p], columns[j[p]] * n_radial, columns[i[p]] * n_radial
        for k in range(9):
            of_i, of_j = bar[k, i[p], at_i : at_i + n_radial], bar[k, j[p], at_j : at_j + n_radial]
            sign = number(-1.0) if 1 <= k <= 3 else number(1.0)
            of_k, total = y[k], number(0.0)
            for r in range(n_radial):
                row = of_i[r] + sign * of_j[r]
                b_bar[r] += of_k * row
                total += b[r] * row
            y_bar[k] = total
        xy, yz, zz, xz, xxyy = (
            _ROOT3 * y_bar[4],
            _ROOT3 * y_bar[5],
            y_bar[6],
            _ROOT3 * y_bar[7],
            _ROOT3 * y_bar[8],
        )
        unit_bar[p, 0] += y_bar[1] + xy * u[1] + xz * u[2] + (xxyy - zz) * u[0]
        unit_bar[p, 1] += y_bar[2] + xy * u[0] + yz * u[2] - (xxyy + zz) * u[1]
        unit_bar[p, 2] += y_bar[3] + yz * u[1] + xz * u[0] + 2.0 * zz * u[2]


@njit(inline="always")
def _fill_filters(b, filters, f):  # type: ignore[no-untyped-def]
    """f [3c] from ``filters`` [n_radial, 3c]."""
    for c in range(f.shape[0]):
        f[c] = b[0] * filters[0, c]
    for r in range(1, b.shape[0]):
        for c in range(f.shape[0]):
            f[c] += b[r] * filters[r, c]


@compiled
def receive(unit, basis, i, j, filters, sent, out):  # type: ignore[no-untyped-def]
    """Adds to ``out``."""
    n, number = sent.shape[1] // 5, unit.dtype.type
    f = np.empty(3 * n, unit.dtype)
    for p in range(i.shape[0]):
        _fill_filters(basis[p], filters, f)
        for way in range(2):
            receiver, sender, s = (i[p], j[p], number(1.0)) if way == 0 else (j[p], i[p], number(-1.0))
            x, o = sent[sender], out[receiver]
            u0, u1, u2 = s * unit[p, 0], s * unit[p, 1], s * unit[p, 2]
            for c in range(n):
                b = f[n + c] * x[n + c]
                v0, v1, v2 = (
                    f[2 * n + c] * x[2 * n + c],
                    f[2 * n + c] * x[3 * n + c],
                    f[2 * n + c] * x[4 * n + c],
                )
                o[c] += f[c] * x[c]
                o[n + c] += u0 * v0 + u1 * v1 + u2 * v2
                o[2 * n + c] += v0 + u0 * b
                o[3 * n + c] += v1 + u1 * b
                o[4 * n + c] += v2 + u2 * b


@compiled
def pull_back(unit, basis, i, j, filters, sent, bar, sent_bar, basis_bar, unit_bar):  # type: ignore[no-untyped-def]
    """Gradient of ``sent``, which is added to; of the basis and û, which are written."""
    n, number = sent.shape[1] // 5, unit.dtype.type
    f, f_bar = np.empty(3 * n, unit.dtype), np.empty(3 * n, unit.dtype)
    for p in range(i.shape[0]):
        _fill_filters(basis[p], filters, f)
        f_bar[:] = 0.0
        unit_bar[p] = 0.0
        for way in range(2):
            receiver, sender, s = (i[p], j[p], number(1.0)) if way == 0 else (j[p], i[p], number(-1.0))
            x, o, x_bar = sent[sender], bar[receiver], sent_bar[sender]
            u0, u1, u2 = s * unit[p, 0], s * unit[p, 1], s * unit[p, 2]
            g0, g1, g2 = number(0.0), number(0.0), number(0.0)
            for c in range(n):
                f2, f3, b = f[n + c], f[2 * n + c], x[n + c]
                v0, v1, v2 = x[2 * n + c], x[3 * n + c], x[4 * n + c]
                along, o0, o1, o2 = o[n + c], o[2 * n + c], o[3 * n + c], o[4 * n + c]
                of_b = u0 * o0 + u1 * o1 + u2 * o2
                w0, w1, w2 = o0 + u0 * along, o1 + u1 * along, o2 + u2 * along
                x_bar[c] += f[c] * o[c]
                x_bar[n + c] += f2 * of_b
                x_bar[2 * n + c] += f3 * w0
                x_bar[3 * n + c] += f3 * w1
                x_bar[4 * n + c] += f3 * w2
                f_bar[c] += x[c] * o[c]
                f_bar[n + c] += b * of_b
                f_bar[2 * n + c] += v0 * w0 + v1 * w1 + v2 * w2
                g0 += f3 * v0 * along + f2 * b * o0
                g1 += f3 * v1 * along + f2 * b * o1
                g2 += f3 * v2 * along + f2 * b * o2
            unit_bar[p, 0] += s * g0
            unit_bar[p, 1] += s * g1
            unit_bar[p, 2] += s * g2
        for r in range(basis.shape[1]):
            total = number(0.0)
            for c in range(3 * n):
                total += filters[r, c] * f_bar[c]
            basis_bar[p, r] = total


@compiled
def slopes(unit, inverse, basis_slopes, unit_bar, basis_bar, out):  # type: ignore[no-untyped-def]
    """r̄ = d̄ û + (ū − û (û · ū)) / d."""
    for p in range(unit.shape[0]):
        u, g, rest = unit[p], unit_bar[p], inverse[p]
        along = (u[0] * g[0] + u[1] * g[1] + u[2] * g[2]) * rest
        for r in range(basis_slopes.shape[1]):
            along -= basis_bar[p, r] * basis_slopes[p, r]
        for k in range(3):
            out[p, k] = g[k] * rest - along * u[k]


class CompiledPairs(Pairs):
    """What the methods do is said there. Basis and its slopes are [n_pairs, n_radial] here."""

    def _geometry(self, network: EGNN, vectors: Tensor) -> None:
        n_pairs, n_radial = vectors.shape[0], network.radial.wave_numbers.shape[0]
        self.ends, self.unit = arrays(self.i, self.j), torch.empty_like(vectors)
        self.basis, self.basis_slopes = (vectors.new_empty(n_pairs, n_radial) for _ in range(2))
        self.inverse = vectors.new_empty(n_pairs)
        factor = 1.0 / math.sqrt(float(network.mean_neighbors))
        out = arrays(self.inverse, self.unit, self.basis, self.basis_slopes)
        geometry(vectors.numpy(), network.cutoff, factor, *out)
        self.wide_filters = self.filters.T.contiguous()

    def densities(self) -> Tensor:
        slots = self.n_species * self.basis.shape[1]
        out = self.unit.new_zeros(9, self.columns.shape[0], slots)
        densities(*arrays(self.unit, self.basis), *self.ends, *arrays(self.columns, out))
        return out

    def receive(self, sent: Tensor) -> Tensor:
        self.sent, out = sent, torch.zeros_like(sent)
        receive(*arrays(self.unit, self.basis), *self.ends, *arrays(self.wide_filters, sent, out))
        return out

    def pull_back(self, bar: Tensor) -> Tensor:
        sent_bar = torch.zeros_like(bar)
        self.basis_bar, self.unit_bar = torch.empty_like(self.basis), torch.empty_like(self.unit)
        what = arrays(self.wide_filters, self.sent, bar, sent_bar, self.basis_bar, self.unit_bar)
        pull_back(*arrays(self.unit, self.basis), *self.ends, *what)
        return sent_bar

    def pull_back_densities(self, bar: Tensor) -> None:
        what = arrays(self.columns, bar, self.basis_bar, self.unit_bar)
        pull_back_densities(*arrays(self.unit, self.basis), *self.ends, *what)

    def slopes(self) -> Tensor:
        out = torch.empty_like(self.unit)
        of_pairs = self.unit, self.inverse, self.basis_slopes, self.unit_bar, self.basis_bar
        slopes(*arrays(*of_pairs, out))
        return out
