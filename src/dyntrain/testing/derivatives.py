"""Derivatives against finite differences.

The finite differences keep the neighbour list of the start: a pair that crosses the cutoff on the way is
the matter of ``check_smooth_cutoff``.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from dyntrain.neighbors import neighbor_list
from dyntrain.potential import Potential
from dyntrain.state import State
from dyntrain.testing.agreement import SMALLEST_FORCE, Tolerances, require_close, require_slope
from dyntrain.testing.differences import gradients_of, predict, slope, sum_by_system, trainable
from dyntrain.testing.structures import Random


def check_forces(
    potential: Potential, state: State, tolerances: Tolerances | None = None, seed: int = 0
) -> None:
    """F = −∂E/∂r of each system, along random directions."""
    tolerances = tolerances or Tolerances.of(potential)
    random = Random(state, seed)
    neighbors = neighbor_list(state.detach(), potential.cutoff)
    moving = state.detach().replace(positions=state.positions.detach().clone())
    forces = predict(potential, state).forces
    for _ in range(3):
        along = random.like(forces)
        work = (forces * along).sum(-1)
        change = slope(
            lambda: potential(moving, neighbors).energy, [moving.positions], [along], tolerances.step
        )
        scale = sum_by_system(state, work**2).sqrt().clamp(min=SMALLEST_FORCE)
        require_close(
            "finite-difference forces: −F·u and the change of the energy along u",
            -sum_by_system(state, work),
            change,
            tolerances.derivative * scale,
            "eV/Å",
        )


def check_second_derivatives(
    potential: Potential, state: State, tolerances: Tolerances | None = None, seed: int = 0
) -> None:
    """∂F/∂r by autograd, along random directions: what carries a gradient from one step to the next."""
    tolerances = tolerances or Tolerances.of(potential)
    random = Random(state, seed)
    neighbors = neighbor_list(state.detach(), potential.cutoff)
    moving = state.detach().replace(positions=state.positions.detach().clone())
    positions = moving.positions.clone().requires_grad_()
    with torch.enable_grad():
        forces = potential(moving.replace(positions=positions), neighbors).forces
    for _ in range(3):
        along, weights = random.like(forces), random.like(forces)
        (gradient,) = torch.autograd.grad(
            (forces * weights).sum(), [positions], retain_graph=True, allow_unused=True
        )
        if gradient is None:
            raise AssertionError(
                "second derivatives: the forces have no graph to the positions, so no gradient can pass from "
                "one step of a roll-out to the next; the model detached or re-wrapped its input"
            )
        change = slope(
            lambda: potential(moving, neighbors).forces, [moving.positions], [along], tolerances.step
        )
        require_slope(
            "second derivatives: autograd and finite differences of the forces",
            [gradient],
            [along],
            (change * weights).sum(),
            tolerances,
        )


def check_parameter_gradients(
    potential: Potential, state: State, tolerances: Tolerances | None = None, seed: int = 0
) -> None:
    """Gradients of an energy loss and of a force loss with respect to all trainable parameters."""
    tolerances = tolerances or Tolerances.of(potential)
    parameters = trainable(potential)
    random = Random(state, seed)
    state = state.detach()
    neighbors = neighbor_list(state, potential.cutoff)

    def loss(name: str, weights: Tensor) -> Tensor:
        return (getattr(potential(state, neighbors), name) * weights).sum()

    for name, of_its_shape in (("energy", state.cell[:, 0, 0]), ("forces", state.positions)):
        loss_of_name = partial(loss, name, random.like(of_its_shape))
        if parameters:
            with torch.enable_grad():
                gradients = gradients_of(loss_of_name(), parameters)
            along = [random.like_parameter(p) for p in parameters]
            change = slope(loss_of_name, parameters, along, tolerances.step)
            what = f"parameter gradients: autograd and finite differences of a loss of the {name}"
            require_slope(what, gradients, along, change, tolerances)
