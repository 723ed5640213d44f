"""``egnn_pairs`` compiled for one thread of a CPU: a loop meets each pair once and writes out nothing else.

The kernels' arrays are C-contiguous and of one floating point type, indices int64. See also
``density_kernels`` and ``message_kernels``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dyntrain.kernel import compiled, reads, writes
from dyntrain.models.density_kernels import add_densities, pull_back_densities
from dyntrain.models.egnn_pairs import Pairs

if TYPE_CHECKING:
    from dyntrain.models.egnn import EGNN


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
    """What the methods do is said there; basis and slopes are [n_pairs, n_radial] here."""

    def _geometry(self, network: EGNN, vectors: Tensor) -> None:
        n_pairs, n_radial = vectors.shape[0], network.radial.wave_numbers.shape[0]
        self.ends, self.unit = reads(self.i, self.j), torch.empty_like(vectors)
        self.basis, self.basis_slopes = (vectors.new_empty(n_pairs, n_radial) for _ in range(2))
        self.inverse = vectors.new_empty(n_pairs)
        factor = 1.0 / math.sqrt(float(network.mean_neighbors))
        out = writes(self.inverse, self.unit, self.basis, self.basis_slopes)
        geometry(*reads(vectors), network.cutoff, factor, *out)
        self.basis_rows = self.basis

    def densities(self) -> Tensor:
        slots = self.n_species * self.basis.shape[1]
        out, room = self.unit.new_zeros(9, self.columns.shape[0], slots), self.unit.new_empty(9)
        add_densities(*reads(self.unit, self.basis), *self.ends, *reads(self.columns), *writes(out, room))
        return out

    def pull_back_densities(self, bar: Tensor) -> None:
        self.basis_rows_bar = self.basis_rows_bar.contiguous()
        of_pairs = reads(self.unit, self.basis)
        sums = writes(self.basis_rows_bar, self.unit_bar, self.unit.new_empty(2, 9))
        pull_back_densities(*of_pairs, *self.ends, *reads(self.columns, bar), *sums)

    def slopes(self) -> Tensor:
        out = torch.empty_like(self.unit)
        of_pairs = self.unit, self.inverse, self.basis_slopes, self.unit_bar, self.basis_rows_bar
        slopes(*reads(*of_pairs), *writes(out))
        return out
