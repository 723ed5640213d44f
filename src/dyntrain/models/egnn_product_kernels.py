"""``egnn_products``, with and without autograd, compiled for one thread of a CPU: all channel by channel.

Each atom's first layer has vectors v, w and second-rank tensors t, u, as matrices T, U (``degree_two``), and
makes

    v · w,  v · Tw,  w · Tw,  Tw · Uv,  t · u        and the vector        v + Tw;

its second receives vectors z, mixes their channels to y, and makes  z · y,  v · z,  y · Tz. ``o`` is the
gradient of these products, ``_bar`` that of what they are made of, ``_dot`` is along a direction, ``_grad``
the gradient of a directional derivative. Arrays are C-contiguous and of one floating point type, with n
channels:

    vw, tu       [n_atoms, 6n], [n_atoms, 10n]          v_x, w_x, v_y, …: v and w, t and u side by side
    zy           [n_atoms, 6n]                          z_x, z_y, z_z, y_x, y_y, y_z
    first        [n_atoms, 8n]                          the five, then v + Tw
    second       [n_atoms, 3n]
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dyntrain.kernel import compiled_for_sizes, compiled_part, reads, writes

_HALF_ROOT3 = 0.5 * math.sqrt(3.0)


@compiled_part
def _three(row, step, c):  # type: ignore[no-untyped-def]
    return row[c], row[c + step], row[c + 2 * step]


@compiled_part
def _put_three(row, step, c, a):  # type: ignore[no-untyped-def]
    row[c], row[c + step], row[c + 2 * step] = a


@compiled_part
def _add_three(row, step, c, a):  # type: ignore[no-untyped-def]
    row[c] += a[0]
    row[c + step] += a[1]
    row[c + 2 * step] += a[2]


@compiled_part
def _five(row, step, c):  # type: ignore[no-untyped-def]
    return row[c], row[c + step], row[c + 2 * step], row[c + 3 * step], row[c + 4 * step]


@compiled_part
def _add_five(row, step, c, a):  # type: ignore[no-untyped-def]
    row[c] += a[0]
    row[c + step] += a[1]
    row[c + 2 * step] += a[2]
    row[c + 3 * step] += a[3]
    row[c + 4 * step] += a[4]


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


@compiled_part
def first_of_atom(n, x, y, row):  # type: ignore[no-untyped-def]
    """Rows of vw, tu and what is filled."""
    number = x.dtype.type
    for c in range(n):
        v, w = _three(x, 2 * n, c), _three(x, 2 * n, n + c)
        t, u = _five(y, 2 * n, c), _five(y, 2 * n, n + c)
        tw, uv = _times(_matrix(t, number), w), _times(_matrix(u, number), v)
        row[c], row[n + c], row[2 * n + c] = _dot(v, w), _dot(v, tw), _dot(w, tw)
        row[3 * n + c], row[4 * n + c] = _dot(tw, uv), _dot5(t, u)
        _put_three(row, n, 5 * n + c, _sum(v, tw))


@compiled_for_sizes
def _first(n):  # type: ignore[no-untyped-def]
    def first(vw, tu, out):  # type: ignore[no-untyped-def]
        for a in range(out.shape[0]):
            first_of_atom(n, vw[a], tu[a], out[a])

    return first


@compiled_part
def pull_back_first_of_atom(n, of, x, y, x_bar, y_bar):  # type: ignore[no-untyped-def]
    """Rows of o, vw, tu and of the gradients of the last two, which are added to."""
    number = x.dtype.type
    for c in range(n):
        v, w = _three(x, 2 * n, c), _three(x, 2 * n, n + c)
        t, u = _five(y, 2 * n, c), _five(y, 2 * n, n + c)
        m_t, m_u = _matrix(t, number), _matrix(u, number)
        tw, uv = _times(m_t, w), _times(m_u, v)
        o_vw, o_vtw, o_wtw, o_twuv, o_tu = _five(of, n, c)
        o_sum = _three(of, n, 5 * n + c)
        uv_bar = _scaled(o_twuv, tw)
        tw_bar = _sum(_sum(_scaled(o_vtw, v), _scaled(o_wtw, w)), _sum(_scaled(o_twuv, uv), o_sum))
        v_bar = _sum(_sum(_scaled(o_vw, w), _scaled(o_vtw, tw)), _sum(o_sum, _times(m_u, uv_bar)))
        w_bar = _sum(_sum(_scaled(o_vw, v), _scaled(o_wtw, tw)), _times(m_t, tw_bar))
        _add_three(x_bar, 2 * n, c, v_bar)
        _add_three(x_bar, 2 * n, n + c, w_bar)
        _add_five(y_bar, 2 * n, c, _sum5(_tensor(tw_bar, w, number), _scaled5(o_tu, u)))
        _add_five(y_bar, 2 * n, n + c, _sum5(_tensor(uv_bar, v, number), _scaled5(o_tu, t)))


@compiled_for_sizes
def _pull_back_first(n):  # type: ignore[no-untyped-def]
    def pull_back_first(o, vw, tu, vw_bar, tu_bar):  # type: ignore[no-untyped-def]
        """Adds to the last two."""
        for a in range(o.shape[0]):
            pull_back_first_of_atom(n, o[a], vw[a], tu[a], vw_bar[a], tu_bar[a])

    return pull_back_first


@compiled_for_sizes
def _first_slope(n):  # type: ignore[no-untyped-def]
    def first_slope(vw_dot, tu_dot, o, vw, tu, o_grad, vw_grad, tu_grad):  # type: ignore[no-untyped-def]
        """Gradients of v̄w · v̇w + t̄u · ṫu; adds to those by vw and tu."""
        number = vw.dtype.type
        for a in range(o.shape[0]):
            x, y, x_dot, y_dot, of = vw[a], tu[a], vw_dot[a], tu_dot[a], o[a]
            row, x_grad, y_grad = o_grad[a], vw_grad[a], tu_grad[a]
            for c in range(n):
                v, w = _three(x, 2 * n, c), _three(x, 2 * n, n + c)
                t, u = _five(y, 2 * n, c), _five(y, 2 * n, n + c)
                v_dot, w_dot = _three(x_dot, 2 * n, c), _three(x_dot, 2 * n, n + c)
                t_dot, u_dot = _five(y_dot, 2 * n, c), _five(y_dot, 2 * n, n + c)
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
                _put_three(row, n, 5 * n + c, _sum(v_dot, tw_dot))
                # What becomes of ``pull_back_first``.
                o_vw, o_vtw, o_wtw, o_twuv, o_tu = _five(of, n, c)
                o_sum = _three(of, n, 5 * n + c)
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
                _add_three(x_grad, 2 * n, c, v_grad)
                _add_three(x_grad, 2 * n, n + c, w_grad)
                _add_five(y_grad, 2 * n, c, _sum5(t_grad, _scaled5(o_tu, u_dot)))
                _add_five(y_grad, 2 * n, n + c, _sum5(u_grad, _scaled5(o_tu, t_dot)))

    return first_slope


# --- the second layer --------------------------------------------------------------------------------


@compiled_part
def second_of_atom(n, given, x, tensors, row):  # type: ignore[no-untyped-def]
    """Rows of zy, vw, tu and what is filled."""
    number = x.dtype.type
    for c in range(n):
        z, y, v = _three(given, n, c), _three(given, n, 3 * n + c), _three(x, 2 * n, c)
        row[c], row[n + c] = _dot(z, y), _dot(v, z)
        row[2 * n + c] = _dot(y, _times(_matrix(_five(tensors, 2 * n, c), number), z))


@compiled_for_sizes
def _second(n):  # type: ignore[no-untyped-def]
    def second(zy, vw, tu, out):  # type: ignore[no-untyped-def]
        for a in range(out.shape[0]):
            second_of_atom(n, zy[a], vw[a], tu[a], out[a])

    return second


@compiled_part
def pull_back_second_of_atom(n, of, given, x, tensors, row, x_bar, tensors_bar):  # type: ignore[no-untyped-def]
    """Rows of o, zy, vw, tu and of the gradients of the last three; the last two are added to."""
    number = x.dtype.type
    for c in range(n):
        z, y, v = _three(given, n, c), _three(given, n, 3 * n + c), _three(x, 2 * n, c)
        m_t = _matrix(_five(tensors, 2 * n, c), number)
        o_zy, o_vz, o_ytz = _three(of, n, c)
        z_bar = _sum(_sum(_scaled(o_zy, y), _scaled(o_vz, v)), _scaled(o_ytz, _times(m_t, y)))
        _put_three(row, n, c, z_bar)
        _put_three(row, n, 3 * n + c, _sum(_scaled(o_zy, z), _scaled(o_ytz, _times(m_t, z))))
        _add_three(x_bar, 2 * n, c, _scaled(o_vz, z))
        _add_five(tensors_bar, 2 * n, c, _scaled5(o_ytz, _tensor(y, z, number)))


@compiled_for_sizes
def _pull_back_second(n):  # type: ignore[no-untyped-def]
    def pull_back_second(o, zy, vw, tu, zy_bar, vw_bar, tu_bar):  # type: ignore[no-untyped-def]
        """Adds to the last two."""
        for a in range(o.shape[0]):
            pull_back_second_of_atom(n, o[a], zy[a], vw[a], tu[a], zy_bar[a], vw_bar[a], tu_bar[a])

    return pull_back_second


@compiled_for_sizes
def _second_slope(n):  # type: ignore[no-untyped-def]
    def second_slope(zy_dot, vw_dot, tu_dot, o, zy, vw, tu, o_grad, zy_grad, vw_grad, tu_grad):  # type: ignore[no-untyped-def]
        """Gradients of z̄y · ży + v̄w · v̇w + t̄u · ṫu; adds to those by vw and tu."""
        number = vw.dtype.type
        for a in range(o.shape[0]):
            of, given, x, tensors = o[a], zy[a], vw[a], tu[a]
            moved, x_dot, tensors_dot = zy_dot[a], vw_dot[a], tu_dot[a]
            row, to, x_grad, tensors_grad = o_grad[a], zy_grad[a], vw_grad[a], tu_grad[a]
            for c in range(n):
                z, y, v = _three(given, n, c), _three(given, n, 3 * n + c), _three(x, 2 * n, c)
                z_dot, y_dot, v_dot = (
                    _three(moved, n, c),
                    _three(moved, n, 3 * n + c),
                    _three(x_dot, 2 * n, c),
                )
                m_t = _matrix(_five(tensors, 2 * n, c), number)
                m_t_dot = _matrix(_five(tensors_dot, 2 * n, c), number)
                o_zy, o_vz, o_ytz = _three(of, n, c)
                tz_dot = _sum(_times(m_t_dot, z), _times(m_t, z_dot))
                ty_dot = _sum(_times(m_t_dot, y), _times(m_t, y_dot))
                row[c] = _dot(z_dot, y) + _dot(z, y_dot)
                row[n + c] = _dot(v_dot, z) + _dot(v, z_dot)
                row[2 * n + c] = _dot(y_dot, _times(m_t, z)) + _dot(y, tz_dot)
                z_grad = _sum(_sum(_scaled(o_zy, y_dot), _scaled(o_vz, v_dot)), _scaled(o_ytz, ty_dot))
                t_grad = _sum5(_tensor(y_dot, z, number), _tensor(y, z_dot, number))
                _put_three(to, n, c, z_grad)
                _put_three(to, n, 3 * n + c, _sum(_scaled(o_zy, z_dot), _scaled(o_ytz, tz_dot)))
                _add_three(x_grad, 2 * n, c, _scaled(o_vz, z_dot))
                _add_five(tensors_grad, 2 * n, c, _scaled5(o_ytz, t_grad))

    return second_slope


# --- tensors as arrays -------------------------------------------------------------------------------


def _rows(*tensors: Tensor) -> list[Any]:
    """What is read, a row an atom."""
    return reads(*(tensor.flatten(1) for tensor in tensors))


def _filled(*tensors: Tensor) -> list[Any]:
    """What is written, likewise: views."""
    return writes(*(tensor.view(tensor.shape[0], math.prod(tensor.shape[1:])) for tensor in tensors))


def _channels(vw: Tensor) -> int:
    return vw.shape[2] // 2


def _first_values(vw: Tensor, tu: Tensor) -> Tensor:
    n = _channels(vw)
    out = vw.new_empty(vw.shape[0], 8 * n)
    _first(n)(*_rows(vw, tu), *_filled(out))
    return out


def _add_first_gradients(o: Tensor, vw: Tensor, tu: Tensor, vw_bar: Tensor, tu_bar: Tensor) -> None:
    """Adds to the last two."""
    _pull_back_first(_channels(vw))(*_rows(o, vw, tu), *_filled(vw_bar, tu_bar))


def _second_values(zy: Tensor, vw: Tensor, tu: Tensor) -> Tensor:
    n = _channels(vw)
    out = zy.new_empty(zy.shape[0], 3 * n)
    _second(n)(*_rows(zy, vw, tu), *_filled(out))
    return out


def _second_gradients(o: Tensor, zy: Tensor, vw: Tensor, tu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    bars = zy.new_empty(zy.shape), vw.new_zeros(vw.shape), tu.new_zeros(tu.shape)
    _pull_back_second(_channels(vw))(*_rows(o, zy, vw, tu), *_filled(*bars))
    return bars


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
        grads = o.new_empty(o.shape), vw.new_zeros(vw.shape), tu.new_zeros(tu.shape)
        _first_slope(_channels(vw))(*_rows(vw_dot, tu_dot, o, vw, tu), *_filled(*grads))
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
        return _second_gradients(o, zy, vw, tu)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, zy_dot: Tensor, vw_dot: Tensor, tu_dot: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        o, zy, vw, tu = ctx.saved_tensors
        grads = o.new_empty(o.shape), zy.new_empty(zy.shape), vw.new_zeros(vw.shape), tu.new_zeros(tu.shape)
        _second_slope(_channels(vw))(*_rows(zy_dot, vw_dot, tu_dot, o, zy, vw, tu), *_filled(*grads))
        return grads


def first_products(vw: Tensor, tu: Tensor) -> Tensor:
    """The first layer's products, [n_atoms, 8n]. First and second derivatives are exact; a third raises."""
    return _First.apply(vw, tu)


def second_products(zy: Tensor, vw: Tensor, tu: Tensor) -> Tensor:
    """The second layer's, [n_atoms, 3n]; likewise."""
    return _Second.apply(zy, vw, tu)
