"""The paper network's energy, forces and their gradients in four hand-written sweeps over its layers.

Autograd's second derivatives of this network spend most of their time moving memory. Here a batch is swept
four times: on construction (energies), ``reverse`` (slopes dE/dd of all pairs, hence forces), ``tangent``
(how everything changes along a motion of the atoms) and ``reverse_tangent`` (how the slopes and the
gradient of the weights change along it). The last is the gradient of a loss of the forces:
∂/∂θ (v · ∇E) = d/dε ∇_θ E(r + ε v), one directional derivative instead of a graph of a graph (Pearlmutter,
Neural Computation 6, 147 (1994)). Pairs go through in blocks that stay in the processor's cache.

Names as in ``normed_silu``: x̄ (``_bar``) is the gradient of the energy with respect to x, ẋ (``_dot``) the
derivative of x along the motion.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from dyntrain.models.normed_silu import NormedSiLU
from dyntrain.models.paper_pairs import Pairs
from dyntrain.models.paper_sweep_rows import SweepRows, sweep_rows_of
from dyntrain.models.paper_weights import LayerWeights, ReadOutWeights

_T = TypeVar("_T")


class _Gradients:
    """Sums of the weights' gradients (or of their derivatives along the motion), by name."""

    def __init__(self, weights: LayerWeights) -> None:
        self.sums = LayerWeights(*(torch.zeros_like(tensor) for tensor in weights))

    def add(self, name: str, value: Tensor) -> None:
        getattr(self.sums, name).add_(value)

    def add_product(self, name: str, bar: Tensor, x: Tensor) -> None:
        """W̄ = āᵀ x."""
        getattr(self.sums, name).addmm_(bar.T, x)

    def add_site(self, number: int, gain: Tensor, shift: Tensor) -> None:
        self.add(f"gain{number}", gain)
        self.add(f"shift{number}", shift)


class _Kept(NamedTuple):
    """What ``reverse`` leaves for ``reverse_tangent``: the gradients at the layer's inner places."""

    upper: Tensor
    m3: Tensor
    received: Tensor
    to_centre: Tensor
    to_neighbor: Tensor


class _Motion(NamedTuple):
    """How the layer's input and what its atoms receive change along the motion; h None: it does not."""

    h: Tensor | None
    received: Tensor


class _Rows:
    """A product for the rows of each block, in one array: many of a block's size leave holes in the heap."""

    def __init__(self, n_rows: int, like: Tensor) -> None:
        self.all = like.new_empty(n_rows, like.shape[1])

    def product(self, block: SweepRows, x: Tensor, matrix: Tensor) -> Tensor:
        return torch.mm(x, matrix, out=self.all[block.where.rows])


class LayerSweeps:
    """One layer, evaluated on construction: ``output`` is the next layer's input.

    Args:
        pairs: who is paired with whom.
        h: its input, [n_atoms, width].
        basis: of the distances, [n_pairs, n_terms].
        lowest: its input depends on the atoms' elements alone; the gradient of h is then right only when
            summed over the atoms of an element.
    """

    def __init__(self, weights: LayerWeights, pairs: Pairs, h: Tensor, basis: Tensor, lowest: bool) -> None:
        self.weights, self.h, self.lowest, w = weights, h, lowest, weights
        self.blocks: list[SweepRows] = []
        self.received = torch.zeros_like(h)
        self._kept: _Kept | None = None
        self._motion: _Motion | None = None
        of_ends = torch.cat([torch.addmm(w.bias1, h, w.centre.T), h @ w.neighbor.T])
        self.n_rows = pairs.n_rows(fold=lowest)
        m2 = _Rows(self.n_rows, h)
        for where in pairs.blocks(fold=lowest):
            block = sweep_rows_of(where, w)
            m1 = block.first(basis[where.pairs] @ w.pair, of_ends)
            block.second(m2.product(block, m1, w.w2.T), self.received)
            self.blocks.append(block)
        x = torch.cat([h, self.received], dim=-1)
        self.third = NormedSiLU.of(torch.addmm(w.bias3, x, w.w3.T), w.gain3, w.shift3)
        self.fourth = NormedSiLU.of(torch.addmm(w.bias4, self.third.forward(), w.w4.T), w.gain4, w.shift4)
        self.output = h + self.fourth.forward()

    def reverse(self, upper: Tensor, basis_bar: Tensor, keep: bool) -> Tensor:
        """h̄ from the layer above's; adds to the gradient of the basis.

        Args:
            keep: ``reverse_tangent`` will follow.
        """
        w, width = self.weights, self.h.shape[1]
        m3 = self.fourth.reverse(upper) @ w.w4
        x_bar = self.third.reverse(m3) @ w.w3
        received = x_bar[:, width:].contiguous()
        to_centre, to_neighbor = to_atoms = torch.zeros_like(self.h), torch.zeros_like(self.h)
        kept = _Rows(self.n_rows, self.h) if keep else None
        for block in self.blocks:
            bar = block.reverse_second(received)
            m1_bar = bar @ w.w2 if kept is None else kept.product(block, bar, w.w2)
            of_pairs = block.reverse_first(m1_bar, None if self.lowest else to_atoms, keep)
            basis_bar[block.where.pairs].addmm_(of_pairs, w.pair.T)
        if keep:
            self._kept = _Kept(upper, m3, received, to_centre, to_neighbor)
        if self.lowest:
            return upper  # nobody asks for more
        return (upper + x_bar[:, :width]).addmm_(to_centre, w.centre).addmm_(to_neighbor, w.neighbor)

    def tangent(self, h_dot: Tensor | None, basis_dot: Tensor) -> Tensor:
        """ḣ of the layer above from this one's (None: zero)."""
        w, received = self.weights, torch.zeros_like(self.h)
        of_ends = None if h_dot is None else torch.cat([h_dot @ w.centre.T, h_dot @ w.neighbor.T])
        m2_dot = _Rows(self.n_rows, self.h)
        for block in self.blocks:
            m1_dot = block.tangent_first(basis_dot[block.where.pairs] @ w.pair, of_ends)
            block.tangent_second(m2_dot.product(block, m1_dot, w.w2.T), received)
        self._motion = _Motion(h_dot, received)
        change = self.fourth.tangent(self.third.tangent(self._x_dot() @ w.w3.T) @ w.w4.T)
        return change if h_dot is None else h_dot + change

    def _x_dot(self) -> Tensor:
        """Derivative of W3's input [h, Σ m] along the motion."""
        assert self._motion is not None
        h_dot = torch.zeros_like(self.h) if self._motion.h is None else self._motion.h
        return torch.cat([h_dot, self._motion.received], dim=-1)

    def rest(self) -> None:
        """Forget the motion."""
        self._motion = None
        moving: list[NormedSiLU | SweepRows] = [self.third, self.fourth, *self.blocks]
        for part in moving:
            part.rest()

    def reverse_tangent(
        self, upper: Tensor, basis: Tensor, basis_dot: Tensor | None, basis_bar_dot: Tensor
    ) -> tuple[Tensor, LayerWeights]:
        """Derivatives along the motion of h̄ and of the weights' gradients; adds to that of the basis'.

        Args:
            upper: derivative of the layer above's h̄.
            basis_dot: None at rest.
        """
        w, width, out = self.weights, self.h.shape[1], _Gradients(self.weights)
        kept = self._kept if self._motion is not None else None
        third, fourth = self.third.expand(), self.fourth.expand()
        rows, *sums = fourth.reverse_tangent(kept and kept.upper, upper)
        out.add_site(4, *sums)
        out.add("bias4", rows.sum(0))
        out.add_product("w4", rows, third.m)
        m3_bar_dot = rows @ w.w4
        rows, *sums = third.reverse_tangent(kept and kept.m3, m3_bar_dot)
        out.add_site(3, *sums)
        out.add("bias3", rows.sum(0))
        out.add_product("w3", rows, torch.cat([self.h, self.received], dim=-1))
        x_bar_dot = rows @ w.w3
        received = x_bar_dot[:, width:].contiguous()
        to_centre, to_neighbor = to_atoms = torch.zeros_like(self.h), torch.zeros_like(self.h)
        received_bar = None if basis_dot is None else _known(self._kept).received
        for block in self.blocks:
            part = block.where.pairs
            second = block.reverse_tangent_second(received_bar, received, out.sums)
            first = block.reverse_tangent_first(second.bar_dot @ w.w2, to_atoms, out.sums)
            out.add_product("w2", second.bar_dot, first.m)
            out.add_product("pair", basis[part], first.bar_dot)
            basis_bar_dot[part].addmm_(first.bar_dot, w.pair.T)
            if basis_dot is not None:
                out.add_product("w2", _known(second.bar), _known(first.m_dot))
                out.add_product("pair", basis_dot[part], _known(first.bar))
        out.add("bias1", to_centre.sum(0))
        out.add_product("centre", to_centre, self.h)
        out.add_product("neighbor", to_neighbor, self.h)
        if kept is not None and self._motion is not None:
            out.add_product("w4", _known(fourth.a_bar), _known(third.m_dot))
            out.add_product("w3", _known(third.a_bar), self._x_dot())
            if self._motion.h is not None:
                out.add_product("centre", kept.to_centre, self._motion.h)
                out.add_product("neighbor", kept.to_neighbor, self._motion.h)
        h_bar_dot = upper + x_bar_dot[:, :width]
        return h_bar_dot.addmm_(to_centre, w.centre).addmm_(to_neighbor, w.neighbor), out.sums


class ReadOutSweeps:
    """Pooling and read-out, evaluated on construction: ``energy`` [n_systems].

    Args:
        h: the last layer's output, [n_atoms, width].
    """

    def __init__(self, weights: ReadOutWeights, pairs: Pairs, h: Tensor) -> None:
        self.weights, self.pairs, w = weights, pairs, weights
        self.pooled = self._pool(h)
        self.z = torch.addmm(w.bias5, self.pooled, w.w5.T)
        self.energy = torch.addmm(w.bias6, self.z.relu(), w.w6.T).squeeze(-1)
        self._seed = torch.zeros_like(self.energy)
        self._pooled_dot: Tensor | None = None

    def _pool(self, per_atom: Tensor) -> Tensor:
        zeros = per_atom.new_zeros(self.pairs.n_systems, per_atom.shape[1])
        return zeros.index_add_(0, self.pairs.system_idx, per_atom)

    def _to_z(self, seed: Tensor) -> Tensor:
        return (seed[:, None] * self.weights.w6).mul_(self.z > 0)

    def _to_h(self, z_bar: Tensor) -> Tensor:
        return (z_bar @ self.weights.w5).index_select(0, self.pairs.system_idx)

    def reverse(self, seed: Tensor) -> Tensor:
        """h̄ of Σ_s seed_s E_s."""
        self._seed = seed
        return self._to_h(self._to_z(seed))

    def tangent(self, h_dot: Tensor) -> Tensor:
        """Ė [n_systems]."""
        self._pooled_dot = self._pool(h_dot)
        return (self._relu_dot(self._pooled_dot) @ self.weights.w6.T).squeeze(-1)

    def _relu_dot(self, pooled_dot: Tensor) -> Tensor:
        return (pooled_dot @ self.weights.w5.T).mul_(self.z > 0)

    def rest(self) -> None:
        """Forget the motion."""
        self._pooled_dot = None

    def reverse_tangent(self, seed_dot: Tensor) -> tuple[Tensor, ReadOutWeights]:
        """Derivatives along the motion of h̄ and of the weights' gradients."""
        z_bar_dot = self._to_z(seed_dot)
        w5, w6 = z_bar_dot.T @ self.pooled, seed_dot[None] @ self.z.relu()
        if self._pooled_dot is not None:
            w5 += self._to_z(self._seed).T @ self._pooled_dot
            w6 += self._seed[None] @ self._relu_dot(self._pooled_dot)
        out = ReadOutWeights(w5, z_bar_dot.sum(0), w6, seed_dot.sum(0, keepdim=True))
        return self._to_h(z_bar_dot), out


def _known(value: _T | None) -> _T:
    """For the type checker: it has been set."""
    assert value is not None
    return value
