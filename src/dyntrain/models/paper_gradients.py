"""The sweeps of ``paper_sweeps`` over the whole network, and as autograd knows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dyntrain.models.chebyshev import chebyshev_basis
from dyntrain.models.paper_pairs import Pairs
from dyntrain.models.paper_sweeps import LayerSweeps, ReadOutSweeps
from dyntrain.models.paper_weights import LayerWeights, ReadOutWeights


class Evaluation:
    """One evaluation of the network, and what its derivatives need of it.

    Args:
        pairs: who is paired with whom.
        distances: [n_pairs] Å, float64.
        range_end: of the Chebyshev basis, Å.
        weights: h⁰ [n_atoms, width], a function of the elements alone; then those of each layer and of the
            read-out, one after the other.
    """

    def __init__(self, pairs: Pairs, distances: Tensor, range_end: float, weights: Sequence[Tensor]) -> None:
        h, *rest = weights
        n_read_out, size = len(ReadOutWeights._fields), len(LayerWeights._fields)
        of_layers = [LayerWeights(*rest[at : at + size]) for at in range(0, len(rest) - n_read_out, size)]
        n_terms = of_layers[0].pair.shape[0]
        self.chebyshev = chebyshev_basis(distances, range_end, n_terms, h.dtype)
        self.basis = self.chebyshev.values
        self.layers: list[LayerSweeps] = []
        for of_layer in of_layers:
            layer = LayerSweeps(of_layer, pairs, h, self.basis, lowest=not self.layers)
            self.layers.append(layer)
            h = layer.output
        self.read_out = ReadOutSweeps(ReadOutWeights(*rest[-n_read_out:]), pairs, h)
        self.energy = self.read_out.energy.double()
        self.kept_seed: Tensor | None = None

    def slopes(self, seed: Tensor, keep: bool) -> Tensor:
        """Σ_s seed_s dE_s/dd of each pair, [n_pairs] float64.

        Args:
            keep: second derivatives will follow.
        """
        h_bar = self.read_out.reverse(seed.to(self.basis.dtype))
        basis_bar = torch.zeros_like(self.basis)
        for layer in reversed(self.layers):
            h_bar = layer.reverse(h_bar, basis_bar, keep)
        if keep:
            self.kept_seed, self.basis_bar = seed, basis_bar
        return self.chebyshev.slopes(basis_bar)

    def along(self, motion: Tensor, seed: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Derivatives along a motion ḋ [n_pairs] of the energy, the slopes and the weights' gradients.

        Args:
            seed: that of the slopes.
        """
        if self.kept_seed is not seed:  # other slopes were asked for since
            self.slopes(seed, keep=True)
        basis_dot = self.chebyshev.change(motion)
        h_dot = self.layers[0].tangent(None, basis_dot)
        for layer in self.layers[1:]:
            h_dot = layer.tangent(h_dot, basis_dot)
        energy_dot = self.read_out.tangent(h_dot).double()
        seed_dot = torch.zeros_like(self.energy)
        basis_bar_dot, gradients = self._reverse_tangent(seed_dot, basis_dot)
        slopes_dot = self.chebyshev.slopes_change(self.basis_bar, basis_bar_dot, motion)
        return energy_dot, slopes_dot, gradients

    def weight_gradients(self, seed: Tensor) -> list[Tensor]:
        """Σ_s seed_s dE_s/dweight: the derivative of the gradients as the energy's own gradient grows."""
        for layer in self.layers:
            layer.rest()
        self.read_out.rest()
        return self._reverse_tangent(seed, None)[1]

    def _reverse_tangent(self, seed_dot: Tensor, basis_dot: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        h_bar, of_read_out = self.read_out.reverse_tangent(seed_dot.to(self.basis.dtype))
        gradients = list(of_read_out)
        basis_bar_dot = torch.zeros_like(self.basis)
        for layer in reversed(self.layers):
            h_bar, of_layer = layer.reverse_tangent(h_bar, self.basis, basis_dot, basis_bar_dot)
            gradients = [*of_layer, *gradients]
        return basis_bar_dot, [h_bar, *gradients]


class _Energy(torch.autograd.Function):
    """Energies, differentiable (twice) in the distances."""

    @staticmethod
    def forward(ctx: Any, evaluation: Evaluation, weights: Sequence[Tensor], distances: Tensor) -> Tensor:
        ctx.evaluation, ctx.weights = evaluation, weights
        ctx.save_for_backward(distances)
        return evaluation.energy.clone()  # an output must not be held by its own node

    @staticmethod
    def backward(ctx: Any, seed: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            slopes = _Slopes.apply(ctx.evaluation, seed, *ctx.saved_tensors, *ctx.weights)
        else:
            slopes = ctx.evaluation.slopes(seed, keep=False)
        return None, None, slopes


class _Slopes(torch.autograd.Function):
    """Σ_s seed_s dE_s/dd, differentiable (once) in seeds, distances and weights."""

    @staticmethod
    def forward(
        ctx: Any, evaluation: Evaluation, seed: Tensor, distances: Tensor, *weights: Tensor
    ) -> Tensor:
        ctx.evaluation, ctx.seed = evaluation, seed
        return evaluation.slopes(seed, keep=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, motion: Tensor) -> tuple[Tensor | None, ...]:
        energy_dot, slopes_dot, gradients = ctx.evaluation.along(motion, ctx.seed)
        return None, energy_dot, slopes_dot, *gradients


class _EnergyOfWeights(torch.autograd.Function):
    """Zero, with the gradient that the energies have in the weights.

    Apart from ``_Energy``, because autograd then leaves it out where only forces are asked for.
    """

    @staticmethod
    def forward(ctx: Any, evaluation: Evaluation, *weights: Tensor) -> Tensor:
        ctx.evaluation = evaluation
        return torch.zeros_like(evaluation.energy)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, seed: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.evaluation.weight_gradients(seed)


def energies(pairs: Pairs, distances: Tensor, range_end: float, weights: Sequence[Tensor]) -> Tensor:
    """Energies [n_systems] eV, float64, of the paper's network: see ``Evaluation`` for the arguments.

    Forces through autograd and first derivatives of a loss of energies and forces are exact; what needs more
    (third derivatives, or second ones of an energy in the weights) raises.
    """
    with torch.no_grad():
        evaluation = Evaluation(pairs, distances.detach(), range_end, [w.detach() for w in weights])
    return _Energy.apply(evaluation, weights, distances) + _EnergyOfWeights.apply(evaluation, *weights)
