"""The gradient through a roll-out."""

from __future__ import annotations

import torch
from torch import Tensor

from dyntrain.integrators import VelocityVerlet
from dyntrain.neighbors import FrozenNeighbors, Neighbors, VerletNeighbors
from dyntrain.potential import Potential
from dyntrain.rollout import Adjoint, Backprop, Full, rollout
from dyntrain.state import State
from dyntrain.testing.agreement import Tolerances, require_close, require_slope
from dyntrain.testing.differences import flat, gradients_of, slope, trainable
from dyntrain.testing.structures import Random
from dyntrain.units import FS


def check_rollout_gradient(
    potential: Potential,
    state: State,
    tolerances: Tolerances | None = None,
    dt: float = 0.5 * FS,
    n_steps: int = 3,
    seed: int = 0,
) -> None:
    """The gradient through a whole roll-out (``Full``) against finite differences."""
    tolerances = tolerances or Tolerances.of(potential)
    neighbors = FrozenNeighbors(potential.cutoff)
    loss = _RolloutLoss(potential, state.detach(), dt, n_steps, seed)
    for name, gradients in loss.gradients(Full(), neighbors).items():
        variables = loss.variables[name]
        draw = loss.random.like_parameter if name == "parameters" else loss.random.like
        along = [draw(variable) for variable in variables]
        change = slope(lambda: loss(Full(), neighbors), variables, along, tolerances.step)
        what = f"roll-out gradient: autograd and finite differences over {n_steps} steps in the {name}"
        require_slope(what, gradients, along, change, tolerances)


def check_adjoint(
    potential: Potential,
    state: State,
    tolerances: Tolerances | None = None,
    dt: float = 0.5 * FS,
    n_steps: int = 3,
    seed: int = 0,
) -> None:
    """``Adjoint``, which evaluates the potential again to go backward, gives the gradient of ``Full``."""
    tolerance = (tolerances or Tolerances.of(potential)).symmetry
    loss = _RolloutLoss(potential, state.detach(), dt, n_steps, seed)
    by_full = loss.gradients(Full(), VerletNeighbors(potential.cutoff))
    by_adjoint = loss.gradients(Adjoint(), VerletNeighbors(potential.cutoff))
    for name in by_full:
        full, adjoint = flat(by_full[name]), flat(by_adjoint[name])
        allowed = tolerance * float(full.abs().max())
        require_close(f"adjoint: the gradients of Adjoint and Full in the {name}", adjoint, full, allowed)


class _RolloutLoss:
    """A random linear function of all that a roll-out yields, and the variables it depends on."""

    def __init__(self, potential: Potential, state: State, dt: float, n_steps: int, seed: int) -> None:
        self.potential, self.integrator, self.n_steps = potential, VelocityVerlet(dt), n_steps
        self.random = random = Random(state, seed)
        per_atom, per_system = state.positions, state.cell[:, 0, 0]
        self.weights = [
            [random.like(t) for t in (per_atom, per_atom, per_atom, per_system)] for _ in range(n_steps + 1)
        ]
        self.start = state.replace(
            positions=state.positions.clone().requires_grad_(),
            velocities=state.velocities.clone().requires_grad_(),
        )
        self.variables: dict[str, list[Tensor]] = {
            "start positions": [self.start.positions],
            "start velocities": [self.start.velocities],
        }
        if parameters := trainable(potential):
            self.variables["parameters"] = parameters

    def gradients(self, backprop: Backprop, neighbors: Neighbors) -> dict[str, list[Tensor]]:
        """By the name of the variables."""
        everything = [variable for group in self.variables.values() for variable in group]
        with torch.enable_grad():
            found = iter(gradients_of(self(backprop, neighbors), everything))
        return {name: [next(found) for _ in group] for name, group in self.variables.items()}

    def __call__(self, backprop: Backprop, neighbors: Neighbors) -> Tensor:
        total = self.start.positions.new_zeros(())
        frames = rollout(
            self.potential, self.start, self.integrator, self.n_steps, backprop=backprop, neighbors=neighbors
        )
        for frame, weights in zip(frames, self.weights, strict=True):
            state, prediction = frame.state, frame.prediction
            results = (state.positions, state.velocities, prediction.forces, prediction.energy)
            for result, weight in zip(results, weights, strict=True):
                total = total + (result * weight).sum()
        return total
