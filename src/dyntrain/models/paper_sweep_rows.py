"""What the sweeps of ``paper_sweeps`` do with a block of pairs in one layer between two matrix products."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dyntrain import kernel
from dyntrain.models.normed_silu import NormedSiLU
from dyntrain.models.paper_pairs import PairBlock
from dyntrain.models.paper_weights import LayerWeights


class SecondBars(NamedTuple):
    """ā of W2's rows (not needed at rest: whatever it is) and how it changes, [n_rows, width]."""

    bar: Tensor | None
    bar_dot: Tensor


class FirstBars(NamedTuple):
    """m of the first site, the gradient of ``of_pairs``, and how both change along the motion.

    m, m_dot:     [n_rows, width]
    bar, bar_dot: [n_pairs, width]
    m_dot and bar are not needed at rest: whatever they are.
    """

    m: Tensor
    m_dot: Tensor | None
    bar: Tensor | None
    bar_dot: Tensor


def sweep_rows_of(where: PairBlock, weights: LayerWeights) -> SweepRows:
    """Compiled where that is of use."""
    like = weights.gain1
    if like.dtype == torch.float32 and kernel.is_of_use(like):
        from dyntrain.models.paper_sweep_kernels import CompiledSweepRows

        return CompiledSweepRows(where, weights)
    return SweepRows(where, weights)


class SweepRows:
    """m = SiLU(LN(W2 SiLU(LN(a)) + b2)) of each direction of some pairs; the caller multiplies by W2."""

    first_site: NormedSiLU
    second_site: NormedSiLU
    m1_bar: Tensor | None = None

    def __init__(self, where: PairBlock, weights: LayerWeights) -> None:
        self.where, self.weights = where, weights

    def first(self, of_pairs: Tensor, of_ends: Tensor) -> Tensor:
        """m1 [n_rows, width] from W1's shares of features and of both ends (``PairBlock.rows_of``)."""
        rows = self.where.rows_of(of_pairs, of_ends)
        self.first_site = NormedSiLU.of(rows, self.weights.gain1, self.weights.shift1)
        return self.first_site.forward()

    def second(self, rows: Tensor, received: Tensor) -> None:
        """Adds m to what the atoms receive, from W2 m1, which is overwritten."""
        self.second_site = NormedSiLU.of(
            rows.add_(self.weights.bias2), self.weights.gain2, self.weights.shift2
        )
        self.where.add_received(received, self.second_site.forward())

    def reverse_second(self, upper: Tensor) -> Tensor:
        """What W2 makes ``reverse_first``'s gradient of, from that of what the atoms receive."""
        return self.second_site.reverse(self.where.received(upper))

    def reverse_first(self, m_bar: Tensor, to_atoms: tuple[Tensor, Tensor] | None, keep: bool) -> Tensor:
        """Gradient of ``of_pairs``; those of the receivers' and senders' shares are added to ``to_atoms``.

        Args:
            keep: ``reverse_tangent_first`` will follow.
        """
        bar = self.first_site.reverse(m_bar)
        if to_atoms is not None:
            self._add_to(to_atoms, bar)
        if keep:
            self.m1_bar = m_bar
        return self.where.to_pairs(bar)

    def _add_to(self, to_atoms: tuple[Tensor, Tensor], bar: Tensor) -> None:
        to_atoms[0].index_add_(0, self.where.receivers, bar)
        to_atoms[1].index_add_(0, self.where.senders, bar)

    def tangent_first(self, of_pairs: Tensor, of_ends: Tensor | None) -> Tensor:
        """ṁ1 from the derivatives of ``first``'s arguments along the motion (None: zero)."""
        return self.first_site.tangent(self.where.rows_of(of_pairs, of_ends))

    def tangent_second(self, rows: Tensor, received: Tensor) -> None:
        """Adds ṁ to the change of what the atoms receive, from that of W2 m1, which is overwritten."""
        self.where.add_received(received, self.second_site.tangent(rows))

    def rest(self) -> None:
        """Forget the motion."""
        self.first_site.rest()
        self.second_site.rest()

    def reverse_tangent_second(
        self, upper: Tensor | None, upper_dot: Tensor, sums: LayerWeights
    ) -> SecondBars:
        """From the gradient of what the atoms receive and its derivative along the motion (None: at rest).

        Args:
            sums: the derivatives of the gradients of bias2, gain2 and shift2 are added to it.
        """
        site = self.second_site.expand()
        m_bar = None if upper is None else self.where.received(upper)
        bar_dot, gain, shift = site.reverse_tangent(m_bar, self.where.received(upper_dot))
        sums.gain2.add_(gain)
        sums.shift2.add_(shift)
        sums.bias2.add_(bar_dot.sum(0))
        return SecondBars(site.a_bar, bar_dot)

    def reverse_tangent_first(
        self, m_bar_dot: Tensor, to_atoms: tuple[Tensor, Tensor], sums: LayerWeights
    ) -> FirstBars:
        """From the derivative of ``reverse_first``'s gradient, which is overwritten.

        Args:
            to_atoms: derivatives of the gradients of receivers' and senders' shares are added to it.
            sums: those of gain1 and shift1 are added to it.
        """
        site = self.first_site.expand()
        bar_dot, gain, shift = site.reverse_tangent(self.m1_bar, m_bar_dot)
        sums.gain1.add_(gain)
        sums.shift1.add_(shift)
        self._add_to(to_atoms, bar_dot)
        bar = None if site.a_bar is None else self.where.to_pairs(site.a_bar)
        return FirstBars(site.m, site.m_dot, bar, self.where.to_pairs(bar_dot))
