"""``messages`` compiled for one thread of a CPU: a loop meets each pair once.

Names: x what is sent, f the filters' values at a pair, o the gradient of what is received, u the bond's
direction as the receiver sees it; ``_dot`` along a direction, ``_bar`` a gradient, ``_grad`` that of a
directional derivative. Arrays of the kernels are C-contiguous and of one floating point type, indices int64;
each pair carries messages both ways. ``n``: channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dyntrain.kernel import compiled_for_sizes, compiled_part, reads, writes


@compiled_part
def receive_by_pair(n, i, j, x, f, u, out):  # type: ignore[no-untyped-def]
    """Both ways between atoms i and j; f, u: the pair's row."""
    number = u.dtype.type
    for way in range(2):
        receiver, sender, s = (i, j, number(1.0)) if way == 0 else (j, i, number(-1.0))
        u0, u1, u2 = s * u[0], s * u[1], s * u[2]
        sent, to = x[sender], out[receiver]
        for c in range(n):
            b, f3 = f[n + c] * sent[n + c], f[2 * n + c]
            v0, v1, v2 = f3 * sent[2 * n + c], f3 * sent[3 * n + c], f3 * sent[4 * n + c]
            to[c] += f[c] * sent[c]
            to[n + c] += u0 * v0 + u1 * v1 + u2 * v2
            to[2 * n + c] += v0 + u0 * b
            to[3 * n + c] += v1 + u1 * b
            to[4 * n + c] += v2 + u2 * b


@compiled_for_sizes
def _receive(n):  # type: ignore[no-untyped-def]
    def receive(i, j, x, f, unit, out):  # type: ignore[no-untyped-def]
        for p in range(i.shape[0]):
            receive_by_pair(n, i[p], j[p], x, f[p], unit[p], out)

    return receive


@compiled_part
def pull_back_by_pair(n, i, j, o, x, f, u, x_bar, f_bar, u_bar):  # type: ignore[no-untyped-def]
    """Adds to x̄; f, u, f̄, ū: the pair's row."""
    number = u.dtype.type
    f_bar[:], u_bar[:] = 0.0, 0.0
    for way in range(2):
        receiver, sender, s = (i, j, number(1.0)) if way == 0 else (j, i, number(-1.0))
        u0, u1, u2 = s * u[0], s * u[1], s * u[2]
        sent, bar, to = x[sender], o[receiver], x_bar[sender]
        g0, g1, g2 = number(0.0), number(0.0), number(0.0)
        for c in range(n):
            f2, f3, b = f[n + c], f[2 * n + c], sent[n + c]
            v0, v1, v2 = sent[2 * n + c], sent[3 * n + c], sent[4 * n + c]
            along, o0, o1, o2 = bar[n + c], bar[2 * n + c], bar[3 * n + c], bar[4 * n + c]
            u_o = u0 * o0 + u1 * o1 + u2 * o2
            w0, w1, w2 = o0 + u0 * along, o1 + u1 * along, o2 + u2 * along
            to[c] += f[c] * bar[c]
            to[n + c] += f2 * u_o
            to[2 * n + c] += f3 * w0
            to[3 * n + c] += f3 * w1
            to[4 * n + c] += f3 * w2
            f_bar[c] += sent[c] * bar[c]
            f_bar[n + c] += b * u_o
            f_bar[2 * n + c] += v0 * w0 + v1 * w1 + v2 * w2
            g0 += f3 * v0 * along + f2 * b * o0
            g1 += f3 * v1 * along + f2 * b * o1
            g2 += f3 * v2 * along + f2 * b * o2
        u_bar[0] += s * g0
        u_bar[1] += s * g1
        u_bar[2] += s * g2


@compiled_for_sizes
def _pull_back(n):  # type: ignore[no-untyped-def]
    def pull_back(i, j, o, x, f, unit, x_bar, f_bar, unit_bar):  # type: ignore[no-untyped-def]
        for p in range(i.shape[0]):
            pull_back_by_pair(n, i[p], j[p], o, x, f[p], unit[p], x_bar, f_bar[p], unit_bar[p])

    return pull_back


@compiled_for_sizes
def _pull_back_slope(n):  # type: ignore[no-untyped-def]
    def pull_back_slope(  # type: ignore[no-untyped-def]
        i, j, x_dot, f_dot, unit_dot, o, x, f, unit, o_grad, x_grad, f_bar, f_grad, unit_grad
    ):
        """Gradients of x̄ · ẋ + f̄ · ḟ + ū · u̇ with the first derivatives as in ``_pull_back``."""
        number = unit.dtype.type
        for p in range(i.shape[0]):
            f_bar[p] = 0.0
            f_grad[p] = 0.0
            unit_grad[p] = 0.0
            for way in range(2):
                receiver, sender, s = (i[p], j[p], number(1.0)) if way == 0 else (j[p], i[p], number(-1.0))
                u0, u1, u2 = s * unit[p, 0], s * unit[p, 1], s * unit[p, 2]
                t0, t1, t2 = s * unit_dot[p, 0], s * unit_dot[p, 1], s * unit_dot[p, 2]
                sent, moved, bar, to, back = (
                    x[sender],
                    x_dot[sender],
                    o[receiver],
                    o_grad[receiver],
                    x_grad[sender],
                )
                g0, g1, g2 = number(0.0), number(0.0), number(0.0)
                for c in range(n):
                    f1, f2, f3 = f[p, c], f[p, n + c], f[p, 2 * n + c]
                    f1_dot, f2_dot, f3_dot = f_dot[p, c], f_dot[p, n + c], f_dot[p, 2 * n + c]
                    b, v0, v1, v2 = sent[n + c], sent[2 * n + c], sent[3 * n + c], sent[4 * n + c]
                    b_dot, v0_dot, v1_dot, v2_dot = (
                        moved[n + c],
                        moved[2 * n + c],
                        moved[3 * n + c],
                        moved[4 * n + c],
                    )
                    along, o0, o1, o2 = bar[n + c], bar[2 * n + c], bar[3 * n + c], bar[4 * n + c]
                    u_o, t_o = u0 * o0 + u1 * o1 + u2 * o2, t0 * o0 + t1 * o1 + t2 * o2
                    w0, w1, w2 = o0 + u0 * along, o1 + u1 * along, o2 + u2 * along
                    # Motions of f₂ b and f₃ v.
                    m = b_dot * f2 + f2_dot * b
                    m0, m1, m2 = (
                        v0_dot * f3 + f3_dot * v0,
                        v1_dot * f3 + f3_dot * v1,
                        v2_dot * f3 + f3_dot * v2,
                    )
                    fb, t_v = f2 * b, t0 * v0 + t1 * v1 + t2 * v2
                    to[c] += moved[c] * f1 + f1_dot * sent[c]
                    to[n + c] += u0 * m0 + u1 * m1 + u2 * m2 + f3 * t_v
                    to[2 * n + c] += u0 * m + m0 + t0 * fb
                    to[3 * n + c] += u1 * m + m1 + t1 * fb
                    to[4 * n + c] += u2 * m + m2 + t2 * fb
                    back[c] += f1_dot * bar[c]
                    back[n + c] += f2_dot * u_o + f2 * t_o
                    back[2 * n + c] += f3_dot * w0 + f3 * t0 * along
                    back[3 * n + c] += f3_dot * w1 + f3 * t1 * along
                    back[4 * n + c] += f3_dot * w2 + f3 * t2 * along
                    f_bar[p, c] += sent[c] * bar[c]
                    f_bar[p, n + c] += b * u_o
                    f_bar[p, 2 * n + c] += v0 * w0 + v1 * w1 + v2 * w2
                    f_grad[p, c] += moved[c] * bar[c]
                    f_grad[p, n + c] += b_dot * u_o + b * t_o
                    f_grad[p, 2 * n + c] += v0_dot * w0 + v1_dot * w1 + v2_dot * w2 + t_v * along
                    g0 += m * o0 + m0 * along
                    g1 += m * o1 + m1 * along
                    g2 += m * o2 + m2 * along
                unit_grad[p, 0] += s * g0
                unit_grad[p, 1] += s * g1
                unit_grad[p, 2] += s * g2

    return pull_back_slope


# --- the same functions as in ``messages`` ------------------------------------------------------------


def _channels(x: Tensor) -> int:
    return x.shape[1] // 5


def _to_basis(values_bar: Tensor, filters: Tensor) -> Tensor:
    """values̄ filtersᵀ [n_pairs, n_radial], transposed, because products with so few columns are slow."""
    return (filters @ values_bar.T).T


def receive(i: Tensor, j: Tensor, x: Tensor, basis: Tensor, unit: Tensor, filters: Tensor) -> Tensor:
    out = torch.zeros_like(x, memory_format=torch.contiguous_format)
    _receive(_channels(x))(*reads(i, j, x, basis @ filters, unit), *writes(out))
    return out


def pull_back(
    i: Tensor,
    j: Tensor,
    wanted: bool,
    out_bar: Tensor,
    x: Tensor,
    basis: Tensor,
    unit: Tensor,
    filters: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    values = basis @ filters
    x_bar, values_bar, unit_bar = x.new_zeros(x.shape), torch.empty_like(values), unit.new_empty(unit.shape)
    _pull_back(_channels(x))(*reads(i, j, out_bar, x, values, unit), *writes(x_bar, values_bar, unit_bar))
    return x_bar, _to_basis(values_bar, filters), unit_bar, basis.T @ values_bar if wanted else None


def pull_back_slope(
    i: Tensor,
    j: Tensor,
    x_dot: Tensor,
    basis_dot: Tensor,
    unit_dot: Tensor,
    filters_dot: Tensor | None,
    out_bar: Tensor,
    x: Tensor,
    basis: Tensor,
    unit: Tensor,
    filters: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    values, values_dot = basis @ filters, basis_dot @ filters
    if filters_dot is not None:
        values_dot += basis @ filters_dot
    out_grad, x_grad = x.new_zeros(x.shape), x.new_zeros(x.shape)
    values_bar, values_grad = torch.empty_like(values), torch.empty_like(values)
    unit_grad = unit.new_empty(unit.shape)
    known = reads(i, j, x_dot, values_dot, unit_dot, out_bar, x, values, unit)
    _pull_back_slope(_channels(x))(*known, *writes(out_grad, x_grad, values_bar, values_grad, unit_grad))
    basis_grad = _to_basis(values_grad, filters)
    if filters_dot is not None:
        basis_grad += _to_basis(values_bar, filters_dot)
    return out_grad, x_grad, basis_grad, unit_grad, basis.T @ values_grad + basis_dot.T @ values_bar
