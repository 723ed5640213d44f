"""Finite differences and gradients along directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dyntrain.neighbors import neighbor_list
from dyntrain.potential import Potential, Prediction
from dyntrain.state import State


def predict(potential: Potential, state: State) -> Prediction:
    state = state.detach()
    with torch.no_grad():
        return potential(state, neighbor_list(state, potential.cutoff))


def trainable(potential: Potential) -> list[Tensor]:
    return [parameter for parameter in potential.parameters() if parameter.requires_grad]


def sum_by_system(state: State, per_atom: Tensor) -> Tensor:
    return per_atom.new_zeros(state.n_systems).index_add(0, state.system_idx, per_atom)


def slope(
    function: Callable[[], Tensor], variables: Sequence[Tensor], along: Sequence[Tensor], h: float
) -> Tensor:
    """Change of a function per move of its variables along a direction; the error goes with h⁴."""

    def between(way: float) -> Tensor:
        with _moved(variables, along, way):
            ahead = function()
        with _moved(variables, along, -way):
            return ahead - function()

    with torch.no_grad():
        return (8.0 * between(h) - between(2.0 * h)) / (12.0 * h)


def gradients_of(value: Tensor, variables: Sequence[Tensor]) -> list[Tensor]:
    """Gradients; zero for a variable that the value does not depend on."""
    return list(torch.autograd.grad(value, list(variables), allow_unused=True, materialize_grads=True))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


@contextmanager
def _moved(variables: Sequence[Tensor], along: Sequence[Tensor], h: float) -> Iterator[None]:
    """The variables moved by h times a direction, and afterwards exactly as they were."""
    before = [variable.detach().clone() for variable in variables]
    with torch.no_grad():
        for variable, direction in zip(variables, along, strict=True):
            variable.add_(direction, alpha=h)
        try:
            yield
        finally:
            for variable, old in zip(variables, before, strict=True):
                variable.copy_(old)
