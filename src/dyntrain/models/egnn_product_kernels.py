"""``egnn_products``, with and without autograd, compiled for one thread of a CPU: all channel by channel.

Each atom's first layer has vectors v, w and second-rank tensors t, u, as matrices T, U (``degree_two``), and
makes

    v · w,  v · Tw,  w · Tw,  Tw · Uv,  t · u        and the vector        v + Tw;

its second receives vectors z, mixes their channels to y, and makes  z · y,  v · z,  y · Tz. ``o`` is the
gradient of these products, ``_bar`` that of what they are made of, ``_dot`` is along a direction, ``_grad``
the gradient of a directional derivative. Arrays are C-contiguous and of one floating point type, with n
channels:

    vw, tu       [3, n_atoms, 2n], [5, n_atoms, 2n]     v and w, t and u side by side
    zy           [n_atoms, 6n]                          z_x, z_y, z_z, y_x, y_y, y_z
    first        [n_atoms, 8n]                          the five, then v + Tw
    second       [n_atoms, 3n]
    x, x_…       [16n]                                  room for one atom's v, w, t, u, which lie far apart
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dyntrain.kernel import compiled_for_sizes, compiled_part, reads, writes
from dyntrain.models.egnn_products import Products

_HALF_ROOT3 = 0.5 * math.sqrt(3.0)
_V, _W, _T, _U, _ROWS = 0, 3, 6, 11, 16
"""Where an atom's v, w, t and u begin in its room, in rows of n."""


@compiled_part
def _fetch(vw, tu, a, n, x):  # type: ignore[no-untyped-def]
    for k in range(3):
        for c in range(n):
            x[(_V + k) * n + c] = vw[k, a, c]
            x[(_W + k) * n + c] = vw[k, a, n + c]
    for k in range(5):
        for c in range(n):
            x[(_T + k) * n + c] = tu[k, a, c]
            x[(_U + k) * n + c] = tu[k, a, n + c]


@compiled_part
def _add(x, a, n, vw, tu):  # type: ignore[no-untyped-def]
    for k in range(3):
        for c in range(n):
            vw[k, a, c] += x[(_V + k) * n + c]
            vw[k, a, n + c] += x[(_W + k) * n + c]
    for k in range(5):
        for c in range(n):
            tu[k, a, c] += x[(_T + k) * n + c]
            tu[k, a, n + c] += x[(_U + k) * n + c]


@compiled_part
def _three(row, n, k, c):  # type: ignore[no-untyped-def]
    return row[k * n + c], row[(k + 1) * n + c], row[(k + 2) * n + c]


@compiled_part
def _put_three(row, n, k, c, a):  # type: ignore[no-untyped-def]
    row[k * n + c], row[(k + 1) * n + c], row[(k + 2) * n + c] = a


@compiled_part
def _five(x, n, k, c):  # type: ignore[no-untyped-def]
    return x[k * n + c], x[(k + 1) * n + c], x[(k + 2) * n + c], x[(k + 3) * n + c], x[(k + 4) * n + c]


@compiled_part
def _put_five(x, n, k, c, a):  # type: ignore[no-untyped-def]
    x[k * n + c], x[(k + 1) * n + c], x[(k + 2) * n + c] = a[0], a[1], a[2]
    x[(k + 3) * n + c], x[(k + 4) * n + c] = a[3], a[4]


@compiled_part
def _matrix(t, number):  # type: ignore[no-untyped-def]
    """xx, yy, zz, xy, yz, xz."""
    h, along, across = number(_HALF_ROOT3), number(-0.5) * t[2], number(_HALF_ROOT3) * t[4]
    return along + across, along - across, t[2], h * t[0], h * t[1], h * t[3]


@compiled_part
def _times(m, a):  # type: ignore[no-untyped-def]
    return (
        m[0] * a[0] + m[3] * a[1] + m[5] * a[2],
        m[3] * a[0] + m[1] * a[1] + m[4] * a[2],
        m[5] * a[0] + m[4] * a[1] + m[2] * a[2],
    )


@compiled_part
def _tensor(a, b, number):  # type: ignore[no-untyped-def]
    """The gradient of a · Tb by t."""
    h, xx, yy = number(_HALF_ROOT3), a[0] * b[0], a[1] * b[1]
    return (
        h * (a[0] * b[1] + a[1] * b[0]),
        h * (a[1] * b[2] + a[2] * b[1]),
        a[2] * b[2] - number(0.5) * (xx + yy),
        h * (a[0] * b[2] + a[2] * b[0]),
        h * (xx - yy),
    )


@compiled_part
def _dot(a, b):  # type: ignore[no-untyped-def]
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@compiled_part
def _dot5(a, b):  # type: ignore[no-untyped-def]
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3] + a[4] * b[4]


@compiled_part
def _sum(a, b):  # type: ignore[no-untyped-def]
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@compiled_part
def _sum5(a, b):  # type: ignore[no-untyped-def]
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4]


@compiled_part
def _scaled(s, a):  # type: ignore[no-untyped-def]
    return s * a[0], s * a[1], s * a[2]


@compiled_part
def _scaled5(s, a):  # type: ignore[no-untyped-def]
    return s * a[0], s * a[1], s * a[2], s * a[3], s * a[4]


# --- the first layer ---------------------------------------------------------------------------------


@compiled_for_sizes
def _first(n):  # type: ignore[no-untyped-def]
    def first(vw, tu, out, x):  # type: ignore[no-untyped-def]
        number = vw.dtype.type
        for a in range(out.shape[0]):
            _fetch(vw, tu, a, n, x)
            row = out[a]
            for c in range(n):
                v, w, t, u = _three(x, n, _V, c), _three(x, n, _W, c), _five(x, n, _T, c), _five(x, n, _U, c)
                tw, uv = _times(_matrix(t, number), w), _times(_matrix(u, number), v)
                row[c], row[n + c], row[2 * n + c] = _dot(v, w), _dot(v, tw), _dot(w, tw)
                row[3 * n + c], row[4 * n + c] = _dot(tw, uv), _dot5(t, u)
                _put_three(row, n, 5, c, _sum(v, tw))

    return first


@compiled_for_sizes
def _pull_back_first(n):  # type: ignore[no-untyped-def]
    def pull_back_first(o, vw, tu, vw_bar, tu_bar, x, x_bar):  # type: ignore[no-untyped-def]
        """Adds to ``vw_bar`` and ``tu_bar``."""
        number = vw.dtype.type
        for a in range(o.shape[0]):
            _fetch(vw, tu, a, n, x)
            of = o[a]
            for c in range(n):
                v, w, t, u = _three(x, n, _V, c), _three(x, n, _W, c), _five(x, n, _T, c), _five(x, n, _U, c)
                m_t, m_u = _matrix(t, number), _matrix(u, number)
                tw, uv = _times(m_t, w), _times(m_u, v)
                o_vw, o_vtw, o_wtw, o_twuv, o_tu = _five(of, n, 0, c)
                o_sum = _three(of, n, 5, c)
                uv_bar = _scaled(o_twuv, tw)
                tw_bar = _sum(_sum(_scaled(o_vtw, v), _scaled(o_wtw, w)), _sum(_scaled(o_twuv, uv), o_sum))
                v_bar = _sum(_sum(_scaled(o_vw, w), _scaled(o_vtw, tw)), _sum(o_sum, _times(m_u, uv_bar)))
                w_bar = _sum(_sum(_scaled(o_vw, v), _scaled(o_wtw, tw)), _times(m_t, tw_bar))
                _put_three(x_bar, n, _V, c, v_bar)
                _put_three(x_bar, n, _W, c, w_bar)
                _put_five(x_bar, n, _T, c, _sum5(_tensor(tw_bar, w, number), _scaled5(o_tu, u)))
                _put_five(x_bar, n, _U, c, _sum5(_tensor(uv_bar, v, number), _scaled5(o_tu, t)))
            _add(x_bar, a, n, vw_bar, tu_bar)

    return pull_back_first


@compiled_for_sizes
def _first_slope(n):  # type: ignore[no-untyped-def]
    def first_slope(vw_dot, tu_dot, o, vw, tu, o_grad, vw_grad, tu_grad, x, x_dot, x_grad):  # type: ignore[no-untyped-def]
        """Gradients of v̄w · v̇w + t̄u · ṫu; adds to those by vw and tu."""
        number = vw.dtype.type
        for a in range(o.shape[0]):
            _fetch(vw, tu, a, n, x)
            _fetch(vw_dot, tu_dot, a, n, x_dot)
            of, row = o[a], o_grad[a]
            for c in range(n):
                v, w, t, u = _three(x, n, _V, c), _three(x, n, _W, c), _five(x, n, _T, c), _five(x, n, _U, c)
                v_dot, w_dot = _three(x_dot, n, _V, c), _three(x_dot, n, _W, c)
                t_dot, u_dot = _five(x_dot, n, _T, c), _five(x_dot, n, _U, c)
                m_t, m_u, m_t_dot, m_u_dot = (
                    _matrix(t, number),
                    _matrix(u, number),
                    _matrix(t_dot, number),
                    _matrix(u_dot, number),
                )
                tw, uv = _times(m_t, w), _times(m_u, v)
                tw_dot = _sum(_times(m_t_dot, w), _times(m_t, w_dot))
                uv_dot = _sum(_times(m_u_dot, v), _times(m_u, v_dot))
                # What becomes of the products.
                row[c] = _dot(v_dot, w) + _dot(v, w_dot)
                row[n + c] = _dot(v_dot, tw) + _dot(v, tw_dot)
                row[2 * n + c] = _dot(w_dot, tw) + _dot(w, tw_dot)
                row[3 * n + c] = _dot(tw_dot, uv) + _dot(tw, uv_dot)
                row[4 * n + c] = _dot5(t_dot, u) + _dot5(t, u_dot)
                _put_three(row, n, 5, c, _sum(v_dot, tw_dot))
                # What becomes of ``pull_back_first``.
                o_vw, o_vtw, o_wtw, o_twuv, o_tu = _five(of, n, 0, c)
                o_sum = _three(of, n, 5, c)
                uv_bar, uv_bar_dot = _scaled(o_twuv, tw), _scaled(o_twuv, tw_dot)
                tw_bar = _sum(_sum(_scaled(o_vtw, v), _scaled(o_wtw, w)), _sum(_scaled(o_twuv, uv), o_sum))
                tw_bar_dot = _sum(_sum(_scaled(o_vtw, v_dot), _scaled(o_wtw, w_dot)), _scaled(o_twuv, uv_dot))
                v_grad = _sum(
                    _sum(_scaled(o_vw, w_dot), _scaled(o_vtw, tw_dot)),
                    _sum(_times(m_u_dot, uv_bar), _times(m_u, uv_bar_dot)),
                )
                w_grad = _sum(
                    _sum(_scaled(o_vw, v_dot), _scaled(o_wtw, tw_dot)),
                    _sum(_times(m_t_dot, tw_bar), _times(m_t, tw_bar_dot)),
                )
                t_grad = _sum5(_tensor(tw_bar_dot, w, number), _tensor(tw_bar, w_dot, number))
                u_grad = _sum5(_tensor(uv_bar_dot, v, number), _tensor(uv_bar, v_dot, number))
                _put_three(x_grad, n, _V, c, v_grad)
                _put_three(x_grad, n, _W, c, w_grad)
                _put_five(x_grad, n, _T, c, _sum5(t_grad, _scaled5(o_tu, u_dot)))
                _put_five(x_grad, n, _U, c, _sum5(u_grad, _scaled5(o_tu, t_dot)))
            _add(x_grad, a, n, vw_grad, tu_grad)

    return first_slope


# --- the second layer --------------------------------------------------------------------------------


@compiled_for_sizes
def _second(n):  # type: ignore[no-untyped-def]
    def second(zy, vw, tu, out, x):  # type: ignore[no-untyped-def]
        number = vw.dtype.type
        for a in range(out.shape[0]):
            _fetch(vw, tu, a, n, x)
            given, row = zy[a], out[a]
            for c in range(n):
                z, y, v = _three(given, n, 0, c), _three(given, n, 3, c), _three(x, n, _V, c)
                row[c], row[n + c] = _dot(z, y), _dot(v, z)
                row[2 * n + c] = _dot(y, _times(_matrix(_five(x, n, _T, c), number), z))

    return second


@compiled_for_sizes
def _pull_back_second(n):  # type: ignore[no-untyped-def]
    def pull_back_second(o, zy, vw, tu, zy_bar, vw_bar, tu_bar, x, x_bar):  # type: ignore[no-untyped-def]
        """Adds to ``vw_bar`` and ``tu_bar``; ``x_bar`` holds zeros, for w and u."""
        number = vw.dtype.type
        for a in range(o.shape[0]):
            _fetch(vw, tu, a, n, x)
            of, given, row = o[a], zy[a], zy_bar[a]
            for c in range(n):
                z, y, v = _three(given, n, 0, c), _three(given, n, 3, c), _three(x, n, _V, c)
                m_t = _matrix(_five(x, n, _T, c), number)
                o_zy, o_vz, o_ytz = _three(of, n, 0, c)
                z_bar = _sum(_sum(_scaled(o_zy, y), _scaled(o_vz, v)), _scaled(o_ytz, _times(m_t, y)))
                _put_three(row, n, 0, c, z_bar)
                _put_three(row, n, 3, c, _sum(_scaled(o_zy, z), _scaled(o_ytz, _times(m_t, z))))
                _put_three(x_bar, n, _V, c, _scaled(o_vz, z))
                _put_five(x_bar, n, _T, c, _scaled5(o_ytz, _tensor(y, z, number)))
            _add(x_bar, a, n, vw_bar, tu_bar)

    return pull_back_second


@compiled_for_sizes
def _second_slope(n):  # type: ignore[no-untyped-def]
    def second_slope(  # type: ignore[no-untyped-def]
        zy_dot, vw_dot, tu_dot, o, zy, vw, tu, o_grad, zy_grad, vw_grad, tu_grad, x, x_dot, x_grad
    ):
        """Gradients of z̄y · ży + v̄w · v̇w + t̄u · ṫu; else as ``pull_back_second``."""
        number = vw.dtype.type
        for a in range(o.shape[0]):
            _fetch(vw, tu, a, n, x)
            _fetch(vw_dot, tu_dot, a, n, x_dot)
            of, given, moved, row, to = o[a], zy[a], zy_dot[a], o_grad[a], zy_grad[a]
            for c in range(n):
                z, y, v = _three(given, n, 0, c), _three(given, n, 3, c), _three(x, n, _V, c)
                z_dot, y_dot, v_dot = _three(moved, n, 0, c), _three(moved, n, 3, c), _three(x_dot, n, _V, c)
                m_t, m_t_dot = _matrix(_five(x, n, _T, c), number), _matrix(_five(x_dot, n, _T, c), number)
                o_zy, o_vz, o_ytz = _three(of, n, 0, c)
                tz_dot = _sum(_times(m_t_dot, z), _times(m_t, z_dot))
                ty_dot = _sum(_times(m_t_dot, y), _times(m_t, y_dot))
                row[c] = _dot(z_dot, y) + _dot(z, y_dot)
                row[n + c] = _dot(v_dot, z) + _dot(v, z_dot)
                row[2 * n + c] = _dot(y_dot, _times(m_t, z)) + _dot(y, tz_dot)
                z_grad = _sum(_sum(_scaled(o_zy, y_dot), _scaled(o_vz, v_dot)), _scaled(o_ytz, ty_dot))
                t_grad = _sum5(_tensor(y_dot, z, number), _tensor(y, z_dot, number))
                _put_three(to, n, 0, c, z_grad)
                _put_three(to, n, 3, c, _sum(_scaled(o_zy, z_dot), _scaled(o_ytz, tz_dot)))
                _put_three(x_grad, n, _V, c, _scaled(o_vz, z_dot))
                _put_five(x_grad, n, _T, c, _scaled5(o_ytz, t_grad))
            _add(x_grad, a, n, vw_grad, tu_grad)

    return second_slope


# --- without autograd --------------------------------------------------------------------------------


def _room(like: Tensor, n: int, arrays: int) -> list[Any]:
    return writes(*(like.new_zeros(_ROWS * n) for _ in range(arrays)))


def _first_values(vw: Tensor, tu: Tensor) -> Tensor:
    n = vw.shape[2] // 2
    out = vw.new_empty(vw.shape[1], 8 * n)
    _first(n)(*reads(vw, tu), *writes(out), *_room(vw, n, 1))
    return out


def _add_first_gradients(o: Tensor, vw: Tensor, tu: Tensor, vw_bar: Tensor, tu_bar: Tensor) -> None:
    """Adds to the last two."""
    n = vw.shape[2] // 2
    _pull_back_first(n)(*reads(o, vw, tu), *writes(vw_bar, tu_bar), *_room(vw, n, 2))


def _second_values(zy: Tensor, vw: Tensor, tu: Tensor) -> Tensor:
    n = vw.shape[2] // 2
    out = zy.new_empty(zy.shape[0], 3 * n)
    _second(n)(*reads(zy, vw, tu), *writes(out), *_room(vw, n, 1))
    return out


def _add_second_gradients(
    o: Tensor, zy: Tensor, vw: Tensor, tu: Tensor, vw_bar: Tensor, tu_bar: Tensor
) -> Tensor:
    """The gradient by zy; adds to the last two."""
    n = vw.shape[2] // 2
    zy_bar = torch.empty_like(zy)
    _pull_back_second(n)(*reads(o, zy, vw, tu), *writes(zy_bar, vw_bar, tu_bar), *_room(vw, n, 2))
    return zy_bar


class CompiledProducts(Products):
    """What the methods do is said there."""

    def first(self, vw: Tensor, tu: Tensor) -> Tensor:
        self.vw, self.tu = vw, tu
        return _first_values(vw, tu)

    def second(self, zy: Tensor) -> Tensor:
        self.zy = zy
        return _second_values(zy, self.vw, self.tu)

    def second_adjoint(self, bar: Tensor) -> Tensor:
        self.bars = self.vw.new_zeros(9, *self.vw.shape[1:])
        return _add_second_gradients(bar, self.zy, self.vw, self.tu, self.bars[1:4], self.bars[4:])

    def first_adjoint(self, scalars_bar: Tensor, bar: Tensor) -> Tensor:
        self.bars[0] = scalars_bar
        _add_first_gradients(bar, self.vw, self.tu, self.bars[1:4], self.bars[4:])
        return self.bars


# --- with autograd -----------------------------------------------------------------------------------


class _First(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vw: Tensor, tu: Tensor) -> Tensor:
        ctx.save_for_backward(vw, tu)
        return _first_values(vw, tu)

    @staticmethod
    def backward(ctx: Any, o: Tensor) -> tuple[Tensor, Tensor]:
        return _FirstBackward.apply(o, *ctx.saved_tensors)


class _FirstBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, o: Tensor, vw: Tensor, tu: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(o, vw, tu)
        bars = vw.new_zeros(vw.shape), tu.new_zeros(tu.shape)
        _add_first_gradients(o, vw, tu, *bars)
        return bars

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, vw_dot: Tensor, tu_dot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        o, vw, tu = ctx.saved_tensors
        n = vw.shape[2] // 2
        grads = torch.empty_like(o), vw.new_zeros(vw.shape), tu.new_zeros(tu.shape)
        _first_slope(n)(*reads(vw_dot, tu_dot, o, vw, tu), *writes(*grads), *_room(vw, n, 3))
        return grads


class _Second(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, zy: Tensor, vw: Tensor, tu: Tensor) -> Tensor:
        ctx.save_for_backward(zy, vw, tu)
        return _second_values(zy, vw, tu)

    @staticmethod
    def backward(ctx: Any, o: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _SecondBackward.apply(o, *ctx.saved_tensors)


class _SecondBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, o: Tensor, zy: Tensor, vw: Tensor, tu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(o, zy, vw, tu)
        bars = vw.new_zeros(vw.shape), tu.new_zeros(tu.shape)
        return _add_second_gradients(o, zy, vw, tu, *bars), *bars

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, zy_dot: Tensor, vw_dot: Tensor, tu_dot: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        o, zy, vw, tu = ctx.saved_tensors
        n = vw.shape[2] // 2
        grads = torch.empty_like(o), torch.empty_like(zy), vw.new_zeros(vw.shape), tu.new_zeros(tu.shape)
        _second_slope(n)(*reads(zy_dot, vw_dot, tu_dot, o, zy, vw, tu), *writes(*grads), *_room(vw, n, 3))
        return grads


def first_products(vw: Tensor, tu: Tensor) -> Tensor:
    """The first layer's products, [n_atoms, 8n]. First and second derivatives are exact; a third raises."""
    return _First.apply(vw, tu)


def second_products(zy: Tensor, vw: Tensor, tu: Tensor) -> Tensor:
    """The second layer's, [n_atoms, 3n]; likewise."""
    return _Second.apply(zy, vw, tu)
