"""Directions and radial basis of the default network's pairs compiled for one thread of a CPU.

Arrays are C-contiguous and of one floating point type.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dyntrain.kernel import compiled, compiled_part, reads, writes


@compiled_part
def geometry_of_pair(n_radial, x, y, z, cutoff, factor, unit, basis, basis_slopes):  # type: ignore[no-untyped-def]
    """``RadialBasis.with_slopes`` in double precision, sines of multiples by recurrence.

    Gives 1/d and fills the rows û, basis and its derivative.
    """
    d = math.sqrt(x * x + y * y + z * z)
    rest = 1.0 / d
    unit[0], unit[1], unit[2] = x * rest, y * rest, z * rest
    inside = 1.0 - (d / cutoff) ** 2
    cubed = 2.0 * factor * inside * inside * inside
    scale = inside * cubed * rest
    scale_slope = scale * rest + 8.0 / cutoff**2 * cubed
    wave_number = math.pi / cutoff
    sine, cosine = math.sin(wave_number * d), math.cos(wave_number * d)
    s0, c0, s, c = 0.0, 1.0, sine, cosine
    for n in range(n_radial):
        basis[n] = scale * s
        basis_slopes[n] = (n + 1) * wave_number * scale * c - scale_slope * s
        s0, s = s, 2.0 * cosine * s - s0
        c0, c = c, 2.0 * cosine * c - c0
    return rest


@compiled
def geometry(vectors, cutoff, factor, inverse, unit, basis, basis_slopes):  # type: ignore[no-untyped-def]
    for p in range(vectors.shape[0]):
        x, y, z = float(vectors[p, 0]), float(vectors[p, 1]), float(vectors[p, 2])
        inverse[p] = geometry_of_pair(
            basis.shape[1], x, y, z, cutoff, factor, unit[p], basis[p], basis_slopes[p]
        )


@compiled_part
def slope_of_pair(n_radial, u, rest, basis_slopes, u_bar, basis_bar, scale, out):  # type: ignore[no-untyped-def]
    """r̄ = d̄ û + (ū − û (û · ū)) / d, times ``scale``; ``rest``: 1/d."""
    along = (u[0] * u_bar[0] + u[1] * u_bar[1] + u[2] * u_bar[2]) * rest
    for r in range(n_radial):
        along -= basis_bar[r] * basis_slopes[r]
    for k in range(3):
        out[k] = (u_bar[k] * rest - along * u[k]) * scale


@compiled
def slopes(unit, inverse, basis_slopes, unit_bar, basis_bar, scale, out):  # type: ignore[no-untyped-def]
    n_radial = basis_bar.shape[1]
    for p in range(unit.shape[0]):
        slope_of_pair(
            n_radial, unit[p], inverse[p], basis_slopes[p], unit_bar[p], basis_bar[p], scale, out[p]
        )


@compiled
def slopes_slope(  # type: ignore[no-untyped-def]
    vectors, cutoff, factor, vectors_dot, unit_bar, basis_bar, unit_bar_grad, basis_bar_grad, vectors_grad
):
    """Gradients of r̄ · ṙ, with r̄ as by ``slopes``: those by ū and b̄ are u̇ and ḃ."""
    wave_number = math.pi / cutoff
    for p in range(vectors.shape[0]):
        x, y, z = float(vectors[p, 0]), float(vectors[p, 1]), float(vectors[p, 2])
        d = math.sqrt(x * x + y * y + z * z)
        rest = 1.0 / d
        u, r_dot, u_bar = (x * rest, y * rest, z * rest), vectors_dot[p], unit_bar[p]
        d_dot = u[0] * r_dot[0] + u[1] * r_dot[1] + u[2] * r_dot[2]
        u_dot = (
            (r_dot[0] - u[0] * d_dot) * rest,
            (r_dot[1] - u[1] * d_dot) * rest,
            (r_dot[2] - u[2] * d_dot) * rest,
        )
        # b = s sin(k d) with s = 2 (1 − x²)⁴ / d, and its first two derivatives.
        inside = 1.0 - (d / cutoff) ** 2
        squared = 2.0 * factor * inside * inside
        s = squared * inside * inside * rest
        bend = 8.0 / cutoff**2 * squared * inside
        s1 = -s * rest - bend
        s2 = 2.0 * s * rest * rest + (bend + 48.0 / cutoff**4 * squared * d * d) * rest
        sine, cosine = math.sin(wave_number * d), math.cos(wave_number * d)
        sin0, cos0, sin, cos = 0.0, 1.0, sine, cosine
        first, second = 0.0, 0.0
        for n in range(basis_bar.shape[1]):
            k = (n + 1) * wave_number
            slope = s * k * cos + s1 * sin
            basis_bar_grad[p, n] = slope * d_dot
            first += basis_bar[p, n] * slope
            second += basis_bar[p, n] * (2.0 * s1 * k * cos + (s2 - s * k * k) * sin)
            sin0, sin = sin, 2.0 * cosine * sin - sin0
            cos0, cos = cos, 2.0 * cosine * cos - cos0
        along = u[0] * u_bar[0] + u[1] * u_bar[1] + u[2] * u_bar[2]
        along_dot = u_dot[0] * u_bar[0] + u_dot[1] * u_bar[1] + u_dot[2] * u_bar[2]
        for n in range(3):
            unit_bar_grad[p, n] = u_dot[n]
            turned = u_dot[n] * along + u[n] * along_dot + (u_bar[n] - u[n] * along) * d_dot * rest
            vectors_grad[p, n] = u_dot[n] * first + u[n] * second * d_dot - turned * rest


class _UnitAndBasis(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, n_radial: int, cutoff: float, factor: float
    ) -> tuple[Tensor, Tensor]:
        found = _Geometry.of(vectors, n_radial, cutoff, factor)
        ctx.settings = cutoff, factor
        ctx.save_for_backward(vectors, found.unit, found.inverse, found.basis_slopes)
        return found.unit, found.basis

    @staticmethod
    def backward(ctx: Any, unit_bar: Tensor, basis_bar: Tensor) -> tuple[Tensor | None, ...]:
        return (
            _UnitAndBasisBackward.apply(ctx.settings, unit_bar, basis_bar, *ctx.saved_tensors),
            None,
            None,
            None,
        )


class _UnitAndBasisBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: tuple[float, float], *tensors: Tensor) -> Tensor:
        unit_bar, basis_bar, vectors, unit, inverse, basis_slopes = tensors
        ctx.settings = settings
        ctx.save_for_backward(unit_bar, basis_bar, vectors)
        out = torch.empty_like(vectors)
        slopes(*reads(unit, inverse, basis_slopes, unit_bar, basis_bar), 1.0, *writes(out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, vectors_dot: Tensor) -> tuple[Tensor | None, ...]:
        unit_bar, basis_bar, vectors = ctx.saved_tensors
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in ctx.saved_tensors]
        given = reads(vectors_dot, unit_bar, basis_bar)
        slopes_slope(*reads(vectors), *ctx.settings, *given, *writes(*grads))
        return None, *grads, None, None, None


def unit_and_basis(vectors: Tensor, n_radial: int, cutoff: float, factor: float) -> tuple[Tensor, Tensor]:
    """û [n_pairs, 3] and ``factor`` times ``RadialBasis`` [n_pairs, n_radial] of r [n_pairs, 3] Å.

    First and second derivatives are exact; a third raises.
    """
    return _UnitAndBasis.apply(vectors, n_radial, cutoff, factor)


class _Geometry(NamedTuple):
    """Of pairs: 1/d, û, the basis and its derivative by d."""

    inverse: Tensor
    unit: Tensor
    basis: Tensor
    basis_slopes: Tensor

    @classmethod
    def of(cls, vectors: Tensor, n_radial: int, cutoff: float, factor: float) -> _Geometry:
        basis, basis_slopes = (vectors.new_empty(vectors.shape[0], n_radial) for _ in range(2))
        inverse, unit = vectors.new_empty(vectors.shape[0]), vectors.new_empty(vectors.shape)
        geometry(*reads(vectors), cutoff, factor, *writes(inverse, unit, basis, basis_slopes))
        return cls(inverse, unit, basis, basis_slopes)
