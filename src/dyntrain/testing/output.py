"""What a potential gives, and what it leaves alone."""

from __future__ import annotations

import torch

from dyntrain.neighbors import neighbor_list
from dyntrain.potential import Potential
from dyntrain.state import State
from dyntrain.testing.agreement import Tolerances, require, require_same
from dyntrain.testing.differences import predict, trainable
from dyntrain.testing.structures import fields


def check_input_untouched(potential: Potential, state: State) -> None:
    """The potential changes neither the state, nor the neighbour list, nor any ``.grad``."""
    state = state.replace(**{name: tensor.detach().clone() for name, tensor in fields(state).items()})
    neighbors = neighbor_list(state, potential.cutoff)
    tensors = {f"state.{name}": tensor for name, tensor in fields(state).items()}
    tensors |= {f"neighbors.{name}": tensor for name, tensor in vars(neighbors).items()}
    parameters = dict(potential.named_parameters())
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()}
    for grad_enabled in (True, False):
        with torch.set_grad_enabled(grad_enabled):
            potential(state, neighbors)
        for name, tensor in tensors.items():
            require(torch.equal(tensor, copies[name]), f"input untouched: {name} was changed in place")
            require(not tensor.requires_grad, f"input untouched: {name} was made to require a gradient")
        for name, parameter in parameters.items():
            before, after = gradients[name], parameter.grad
            same = before is after if before is None or after is None else torch.equal(before, after)
            require(same, f"input untouched: .grad of parameter {name} was changed by an evaluation")


def check_output(potential: Potential, state: State) -> None:
    """Energy [n_systems] and forces [n_atoms, 3], float64 and finite."""
    prediction = predict(potential, state)
    for name, shape in (("energy", (state.n_systems,)), ("forces", (state.n_atoms, 3))):
        tensor = getattr(prediction, name)
        found = tuple(tensor.shape)
        require(found == shape, f"output: {name} must have shape {shape}, got {found}")
        require(tensor.dtype == torch.float64, f"output: {name} must be float64, got {tensor.dtype}")
        bad = int((~torch.isfinite(tensor)).sum())
        require(bad == 0, f"output: {bad} of {tensor.numel()} numbers of {name} are not finite")


def check_graph(potential: Potential, state: State, tolerances: Tolerances | None = None) -> None:
    """A graph is kept exactly where gradients are enabled, and the numbers do not depend on it."""
    moving = state.replace(positions=state.positions.detach().clone().requires_grad_())
    neighbors = neighbor_list(state.detach(), potential.cutoff)
    with torch.enable_grad():
        kept = potential(moving, neighbors)
    with torch.no_grad():
        dropped = potential(moving, neighbors)
    for name in ("energy", "forces"):
        require(getattr(kept, name).requires_grad, f"graph: {name} has none where gradients are enabled")
        require(not getattr(dropped, name).requires_grad, f"graph: {name} keeps one under torch.no_grad()")
    if trainable(potential):
        with torch.enable_grad():
            forces = potential(state.detach(), neighbors).forces
        require(forces.requires_grad, "graph: at detached positions the forces do not reach the parameters")
    tolerance = (tolerances or Tolerances.of(potential)).same
    require_same("graph: with and without it", dropped, kept, tolerance)
