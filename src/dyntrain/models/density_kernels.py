"""Pair densities compiled for one thread of a CPU, with derivatives up to second order.

A pair adds y_k(û) b_r(d) to its atoms, y the nine spherical tensors up to degree two (``pair_basis``), with
the sign of the reversed direction for atom j. A pair's gradients (``_bar``) are sums over k and r of Ā_i +
(sign) Ā_j =: row; ``_dot`` is along a direction, ``_grad`` the gradient of a directional derivative. Arrays
are C-contiguous and of one floating point type, indices int64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from dyntrain.kernel import compiled, compiled_part, reads, writes

_ROOT3 = math.sqrt(3.0)


@njit(inline="always")
def _fill_tensors(u, y):  # type: ignore[no-untyped-def]
    """1, û and the five of ``degree_two``."""
    y[0], y[1], y[2], y[3] = 1.0, u[0], u[1], u[2]
    y[4], y[5], y[7] = _ROOT3 * u[0] * u[1], _ROOT3 * u[1] * u[2], _ROOT3 * u[0] * u[2]
    y[6] = u[2] * u[2] - 0.5 * (u[0] * u[0] + u[1] * u[1])
    y[8] = 0.5 * _ROOT3 * (u[0] * u[0] - u[1] * u[1])


@njit(inline="always")
def _add_to_unit(u, y_bar, linear, u_bar):  # type: ignore[no-untyped-def]
    """Adds the gradient of y · ȳ; that of y's linear part times ``linear``."""
    xy, yz, zz, xz, xxyy = (
        _ROOT3 * y_bar[4],
        _ROOT3 * y_bar[5],
        y_bar[6],
        _ROOT3 * y_bar[7],
        _ROOT3 * y_bar[8],
    )
    u_bar[0] += linear * y_bar[1] + xy * u[1] + xz * u[2] + (xxyy - zz) * u[0]
    u_bar[1] += linear * y_bar[2] + xy * u[0] + yz * u[2] - (xxyy + zz) * u[1]
    u_bar[2] += linear * y_bar[3] + yz * u[1] + xz * u[0] + 2.0 * zz * u[2]


@compiled_part
def add_densities_by_pair(n_radial, i, j, columns, u, b, out, y):  # type: ignore[no-untyped-def]
    """Those of a pair of atoms i and j; u, b: its row; ``y``: room for 9 numbers."""
    _fill_tensors(u, y)
    at_i, at_j = columns[j] * n_radial, columns[i] * n_radial
    for k in range(9):
        of_i, of_j = out[i, k, at_i : at_i + n_radial], out[j, k, at_j : at_j + n_radial]
        forth = y[k]
        back = -forth if 1 <= k <= 3 else forth
        for r in range(n_radial):
            of_i[r] += forth * b[r]
            of_j[r] += back * b[r]


@compiled
def add_densities(unit, basis, i, j, columns, out, y):  # type: ignore[no-untyped-def]
    """Adds to ``out`` [n_atoms, 9, n_species n_radial]; ``y``: room for 9 numbers."""
    for p in range(i.shape[0]):
        add_densities_by_pair(basis.shape[1], i[p], j[p], columns, unit[p], basis[p], out, y)


@compiled_part
def pull_back_densities_by_pair(n_radial, i, j, columns, u, b, bar, b_bar, u_bar, room):  # type: ignore[no-untyped-def]
    """Adds to the gradients of b and u; ``room``: [2, 9]."""
    number, y, y_bar = u.dtype.type, room[0], room[1]
    _fill_tensors(u, y)
    at_i, at_j = columns[j] * n_radial, columns[i] * n_radial
    for k in range(9):
        of_i, of_j = bar[i, k, at_i : at_i + n_radial], bar[j, k, at_j : at_j + n_radial]
        sign = number(-1.0) if 1 <= k <= 3 else number(1.0)
        of_k, total = y[k], number(0.0)
        for r in range(n_radial):
            row = of_i[r] + sign * of_j[r]
            b_bar[r] += of_k * row
            total += b[r] * row
        y_bar[k] = total
    _add_to_unit(u, y_bar, number(1.0), u_bar)


@compiled
def pull_back_densities(unit, basis, i, j, columns, bar, basis_bar, unit_bar, room):  # type: ignore[no-untyped-def]
    """Adds to the gradients of the basis and û; ``room``: [2, 9]."""
    for p in range(i.shape[0]):
        pull_back_densities_by_pair(
            basis.shape[1], i[p], j[p], columns, unit[p], basis[p], bar, basis_bar[p], unit_bar[p], room
        )


@njit(inline="always")
def _fill_tensors_dot(u, t, y):  # type: ignore[no-untyped-def]
    """Derivative of the nine along t."""
    y[0], y[1], y[2], y[3] = 0.0, t[0], t[1], t[2]
    y[4] = _ROOT3 * (t[0] * u[1] + u[0] * t[1])
    y[5] = _ROOT3 * (t[1] * u[2] + u[1] * t[2])
    y[7] = _ROOT3 * (t[0] * u[2] + u[0] * t[2])
    y[6] = 2.0 * t[2] * u[2] - t[0] * u[0] - t[1] * u[1]
    y[8] = _ROOT3 * (t[0] * u[0] - t[1] * u[1])


@compiled
def _pull_back_slope(  # type: ignore[no-untyped-def]
    basis_dot, unit_dot, unit, basis, i, j, columns, bar, bar_grad, basis_grad, unit_grad, room
):
    """Gradients of b̄ · ḃ + ū · u̇ = Σ row (y ḃ + ẏ b); the first is added to. ``room``: [4, 9]."""
    n_radial, number = basis.shape[1], unit.dtype.type
    y, y_dot, of_y, of_y_dot = room[0], room[1], room[2], room[3]
    for p in range(i.shape[0]):
        u, t, b, b_dot, b_grad = unit[p], unit_dot[p], basis[p], basis_dot[p], basis_grad[p]
        _fill_tensors(u, y)
        _fill_tensors_dot(u, t, y_dot)
        at_i, at_j = columns[j[p]] * n_radial, columns[i[p]] * n_radial
        b_grad[:] = 0.0
        for k in range(9):
            of_i, of_j = bar[i[p], k, at_i : at_i + n_radial], bar[j[p], k, at_j : at_j + n_radial]
            to_i, to_j = bar_grad[i[p], k, at_i : at_i + n_radial], bar_grad[j[p], k, at_j : at_j + n_radial]
            sign = number(-1.0) if 1 <= k <= 3 else number(1.0)
            y_k, y_k_dot, total, total_dot = y[k], y_dot[k], number(0.0), number(0.0)
            for r in range(n_radial):
                row = of_i[r] + sign * of_j[r]
                b_grad[r] += y_k_dot * row
                total += b_dot[r] * row
                total_dot += b[r] * row
            for r in range(n_radial):
                moved = y_k * b_dot[r] + y_k_dot * b[r]
                to_i[r] += moved
                to_j[r] += sign * moved
            of_y[k], of_y_dot[k] = total, total_dot
        unit_grad[p] = 0.0
        _add_to_unit(u, of_y, number(1.0), unit_grad[p])
        _add_to_unit(t, of_y_dot, number(0.0), unit_grad[p])  # y is at most quadratic


class _Ends(NamedTuple):
    """Pairs and elements: i, j [n_pairs], columns [n_atoms]."""

    i: Tensor
    j: Tensor
    columns: Tensor


class _Densities(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ends: _Ends, n_species: int, unit: Tensor, basis: Tensor) -> Tensor:
        ctx.ends = ends
        ctx.save_for_backward(unit, basis)
        out = unit.new_zeros(ends.columns.shape[0], 9, n_species * basis.shape[1])
        add_densities(*reads(unit, basis, *ends), *writes(out, unit.new_empty(9)))
        return out

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *_DensitiesBackward.apply(ctx.ends, bar, *ctx.saved_tensors)


class _DensitiesBackward(torch.autograd.Function):
    """``pull_back_densities``, differentiable once more."""

    @staticmethod
    def forward(ctx: Any, ends: _Ends, bar: Tensor, unit: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        ctx.ends = ends
        ctx.save_for_backward(bar, unit, basis)
        unit_bar, basis_bar = unit.new_zeros(unit.shape), basis.new_zeros(basis.shape)
        pull_back_densities(
            *reads(unit, basis, *ends, bar), *writes(basis_bar, unit_bar, unit.new_empty(2, 9))
        )
        return unit_bar, basis_bar

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, unit_dot: Tensor, basis_dot: Tensor) -> tuple[Tensor | None, ...]:
        bar, unit, basis = ctx.saved_tensors
        bar_grad, unit_grad, basis_grad = (x.new_zeros(x.shape) for x in (bar, unit, basis))
        known = reads(basis_dot, unit_dot, unit, basis, *ctx.ends, bar)
        _pull_back_slope(*known, *writes(bar_grad, basis_grad, unit_grad, unit.new_empty(4, 9)))
        return None, bar_grad, unit_grad, basis_grad


def densities(unit: Tensor, basis: Tensor, i: Tensor, j: Tensor, columns: Tensor, n_species: int) -> Tensor:
    """Σ over neighbours of spherical tensor × radial function, a slot an element: [n_atoms, 9, slots].

    Args:
        unit: directions from i to j, [n_pairs, 3].
        basis: [n_pairs, n_radial].
        columns: [n_atoms], number of each atom's element.

    First and second derivatives are exact; a third raises.
    """
    return _Densities.apply(_Ends(i, j, columns), n_species, unit, basis)
