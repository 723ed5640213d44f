"""Scalar and vector messages between neighbours, with derivatives up to second order.

Atom j sends scalars a, b and vectors v in each channel, [a, b, v_x, v_y, v_z]; what arrives at i over the
bond of direction û is, in the same order,

    scalars:  f₁ a   and   û · (f₃ v)              vectors:  û f₂ b + f₃ v

with filters f(d) = [f₁, f₂, f₃] of the distance. The whole is linear in what is sent, in the filters and, but
for a constant, in û, so that second derivatives are sums of the same pieces. Where ``kernel.is_of_use``, the
work is done by ``message_kernels``; else as follows, in blocks of pairs that stay in cache. Every array is
widened to rows of seven blocks of channels, so that all work runs over long contiguous rows: senders as [a,
(b, b, b), (v_x, v_y, v_z)], filters as [f₁, (f₂, f₂, f₂), (f₃, f₃, f₃)], and what arrives as [f₁ a, û f₃ v
(three terms of the dot product), û f₂ b + f₃ v]. With

    R(û): [s, p, q] → [s, û q, q + û p]   (symmetric)

the messages are R(û)(F∘x), and their transpose F∘R(û)ō.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dyntrain import kernel

PAIRS_IN_CACHE = 1024
"""Pairs worked on at a time on a CPU."""


class Bonds(NamedTuple):
    """Pairs of atoms i, j [n_pairs]; each carries messages both ways."""

    i: Tensor
    j: Tensor


class _Block(NamedTuple):
    """Part of the pairs: ends are (receivers, senders, sign of û as the receiver sees it), once each way."""

    part: slice
    ends: tuple[tuple[Tensor, Tensor, float], tuple[Tensor, Tensor, float]]


def _blocks(bonds: Bonds) -> Iterator[_Block]:
    n_pairs = bonds.i.shape[0]
    size = PAIRS_IN_CACHE if bonds.i.device.type == "cpu" else max(n_pairs, 1)
    for start in range(0, n_pairs, size):
        part = slice(start, min(start + size, n_pairs))
        i, j = bonds.i[part], bonds.j[part]
        yield _Block(part, ((i, j, 1.0), (j, i, -1.0)))


def _wide(rows: Tensor) -> Tensor:
    """[a, b, v] → [a, b, b, b, v], [n, 5c] → [n, 7c]."""
    c = rows.shape[1] // 5
    a, b, v = rows.split_with_sizes([c, c, 3 * c], 1)
    return torch.cat([a, b, b, b, v], 1)


def _narrow(rows: Tensor) -> Tensor:
    """The transpose of ``_wide``."""
    c = rows.shape[1] // 7
    a, b, v = rows.split_with_sizes([c, 3 * c, 3 * c], 1)
    return torch.cat([a, b.view(-1, 3, c).sum(1), v], 1)


def _wide_filters(filters: Tensor) -> Tensor:
    f1, f2, f3 = filters.chunk(3, 1)
    return torch.cat([f1, f2, f2, f2, f3, f3, f3], 1)


def _narrow_filters(filters: Tensor) -> Tensor:
    c = filters.shape[1] // 7
    f1, f2, f3 = filters.split_with_sizes([c, 3 * c, 3 * c], 1)
    return torch.cat([f1, f2.view(-1, 3, c).sum(1), f3.view(-1, 3, c).sum(1)], 1)


# û enters as u [n, 3c], each component repeated for all channels.


def _turn(rows: Tensor, u: Tensor, sign: float) -> Tensor:
    """R(± û) of rows [n, 7c], in place."""
    n = u.shape[1]
    p, q = rows[:, -2 * n : -n], rows[:, -n:]
    across = q * u
    q.addcmul_(p, u, value=sign)
    torch.mul(across, sign, out=p)
    return rows


def _add_turn_slope(out: Tensor, rows: Tensor, u_dot: Tensor, sign: float) -> Tensor:
    """Adds the derivative of R(± û) along u̇: [s, p, q] → [0, u̇ q, u̇ p]."""
    n = u_dot.shape[1]
    out[:, -2 * n : -n].addcmul_(rows[:, -n:], u_dot, value=sign)
    out[:, -n:].addcmul_(rows[:, -2 * n : -n], u_dot, value=sign)
    return out


def _add_to_unit(u_bar: Tensor, out_bar: Tensor, rows: Tensor, sign: float) -> None:
    """Adds the gradient of ō · R(± û) rows with respect to u."""
    n = u_bar.shape[1]
    u_bar.addcmul_(out_bar[:, -2 * n : -n], rows[:, -n:], value=sign)
    u_bar.addcmul_(out_bar[:, -n:], rows[:, -2 * n : -n], value=sign)


def receive(bonds: Bonds, x: Tensor, basis: Tensor, unit: Tensor, filters: Tensor) -> Tensor:
    """The messages' values: ``messages`` without autograd."""
    if kernel.is_of_use(x):
        from dyntrain.models import message_kernels

        return message_kernels.receive(bonds.i, bonds.j, x, basis, unit, filters)
    x, filters = _wide(x), _wide_filters(filters)
    out, n_channels = torch.zeros_like(x), x.shape[1] // 7
    for part, ends in _blocks(bonds):
        values = basis[part] @ filters
        u = unit[part].repeat_interleave(n_channels, dim=1)
        for receivers, senders, sign in ends:
            rows = x.index_select(0, senders).mul_(values)
            out.index_add_(0, receivers, _turn(rows, u, sign))
    return _narrow(out)


def pull_back(
    bonds: Bonds,
    wanted: bool,
    out_bar: Tensor,
    x: Tensor,
    basis: Tensor,
    unit: Tensor,
    filters: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of ō · messages by x, basis, û and, where ``wanted``, the filters (else None)."""
    if kernel.is_of_use(x):
        from dyntrain.models import message_kernels

        return message_kernels.pull_back(bonds.i, bonds.j, wanted, out_bar, x, basis, unit, filters)
    out_bar, x, filters = _wide(out_bar), _wide(x), _wide_filters(filters)
    x_bar, basis_bar = torch.zeros_like(x), torch.empty_like(basis.T)
    unit_bar, filters_bar = torch.empty_like(unit), torch.zeros_like(filters)
    n_channels = x.shape[1] // 7
    for part, ends in _blocks(bonds):
        values = basis[part] @ filters
        u = unit[part].repeat_interleave(n_channels, dim=1)
        values_bar, u_bar = torch.zeros_like(values), torch.zeros_like(u)
        for receivers, senders, sign in ends:
            bar, sent = out_bar.index_select(0, receivers), x.index_select(0, senders)
            _add_to_unit(u_bar, bar, sent * values, sign)
            _turn(bar, u, sign)
            values_bar.addcmul_(sent, bar)
            x_bar.index_add_(0, senders, bar.mul_(values))
        unit_bar[part] = u_bar.view(-1, 3, n_channels).sum(-1)
        # Transposed: products with so few columns are slow.
        torch.mm(filters, values_bar.T, out=basis_bar[:, part])
        if wanted:
            filters_bar.addmm_(basis[part].T, values_bar)
    return _narrow(x_bar), basis_bar.T, unit_bar, _narrow_filters(filters_bar) if wanted else None


class _Direction(NamedTuple):
    """ẋ, ḃ, u̇ and ḟ (None: zero), as the arguments of ``messages``."""

    x: Tensor
    basis: Tensor
    unit: Tensor
    filters: Tensor | None


def pull_back_slope(
    bonds: Bonds, along: _Direction, out_bar: Tensor, x: Tensor, basis: Tensor, unit: Tensor, filters: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of all first derivatives of ō · messages along a direction: by ō and all arguments."""
    if kernel.is_of_use(x):
        from dyntrain.models import message_kernels

        return message_kernels.pull_back_slope(bonds.i, bonds.j, *along, out_bar, x, basis, unit, filters)
    out_bar, x, x_dot, filters = _wide(out_bar), _wide(x), _wide(along.x), _wide_filters(filters)
    filters_dot = None if along.filters is None else _wide_filters(along.filters)
    out_grad, x_grad, basis_grad = torch.zeros_like(x), torch.zeros_like(x), torch.empty_like(basis.T)
    unit_grad, filters_grad = torch.empty_like(unit), torch.zeros_like(filters)
    n_channels = x.shape[1] // 7
    for part, ends in _blocks(bonds):
        u = unit[part].repeat_interleave(n_channels, dim=1)
        u_dot = along.unit[part].repeat_interleave(n_channels, dim=1)
        values = basis[part] @ filters
        values_dot = along.basis[part] @ filters
        if filters_dot is not None:
            values_dot.addmm_(basis[part], filters_dot)
        values_bar, values_bar_dot = torch.zeros_like(values), torch.zeros_like(values)
        u_bar = torch.zeros_like(u)
        for receivers, senders, sign in ends:
            bar, sent = out_bar.index_select(0, receivers), x.index_select(0, senders)
            sent_dot = x_dot.index_select(0, senders)
            rows_dot = (sent_dot * values).addcmul_(sent, values_dot)
            _add_to_unit(u_bar, bar, rows_dot, sign)
            _add_turn_slope(_turn(rows_dot, u, sign), sent * values, u_dot, sign)
            out_grad.index_add_(0, receivers, rows_dot)
            bar_dot = _add_turn_slope(torch.zeros_like(bar), bar, u_dot, sign)
            _turn(bar, u, sign)
            values_bar.addcmul_(sent, bar)
            values_bar_dot.addcmul_(sent_dot, bar).addcmul_(sent, bar_dot)
            x_grad.index_add_(0, senders, bar_dot.mul_(values).addcmul_(bar, values_dot))
        unit_grad[part] = u_bar.view(-1, 3, n_channels).sum(-1)
        torch.mm(filters, values_bar_dot.T, out=basis_grad[:, part])
        if filters_dot is not None:
            basis_grad[:, part].addmm_(filters_dot, values_bar.T)
        filters_grad.addmm_(basis[part].T, values_bar_dot).addmm_(along.basis[part].T, values_bar)
    return _narrow(out_grad), _narrow(x_grad), basis_grad.T, unit_grad, _narrow_filters(filters_grad)


class _Messages(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bonds: Bonds, x: Tensor, basis: Tensor, unit: Tensor, filters: Tensor) -> Tensor:
        ctx.bonds = bonds
        ctx.save_for_backward(x, basis, unit, filters)
        return receive(bonds, x, basis, unit, filters)

    @staticmethod
    def backward(ctx: Any, out_bar: Tensor) -> tuple[Tensor | None, ...]:
        # Forces alone do not ask for the filters' gradient, nor does the gradient of a loss of forces.
        to_filters = ctx.next_functions[-1][0]
        wanted = to_filters is not None and torch._C._will_engine_execute_node(to_filters)
        return None, *_MessagesBackward.apply(ctx.bonds, wanted, out_bar, *ctx.saved_tensors)


class _MessagesBackward(torch.autograd.Function):
    """``pull_back``, differentiable once more."""

    @staticmethod
    def forward(ctx: Any, bonds: Bonds, wanted: bool, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        ctx.bonds = bonds
        ctx.save_for_backward(*tensors)
        out_bar, x, basis, unit, filters = tensors
        return pull_back(bonds, wanted, out_bar, x, basis, unit, filters)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, x_dot: Tensor, basis_dot: Tensor, unit_dot: Tensor, filters_dot: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        direction = _Direction(x_dot, basis_dot, unit_dot, filters_dot)
        return None, None, *pull_back_slope(ctx.bonds, direction, *ctx.saved_tensors)


def messages(bonds: Bonds, x: Tensor, basis: Tensor, unit: Tensor, filters: Tensor) -> Tensor:
    """What each atom receives, [n_atoms, 5c]: see the module's first lines.

    Args:
        x: what each atom sends, [n_atoms, 5c].
        basis: of the distances, [n_pairs, n_radial].
        unit: directions from i to j, [n_pairs, 3].
        filters: [n_radial, 3c].

    First and second derivatives are exact; a third raises.
    """
    # A view, for autograd tells only of other nodes than leaves whether their gradient is asked for.
    return _Messages.apply(bonds, x, basis, unit, filters.view_as(filters))
