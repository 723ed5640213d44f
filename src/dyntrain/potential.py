"""The Potential protocol, and the one place that differentiates an energy to forces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dyntrain.neighbors import NeighborList
from dyntrain.state import State


class Prediction(NamedTuple):
    """energy [n_systems] eV, forces [n_atoms, 3] eV/Å, both float64."""

    energy: Tensor
    forces: Tensor


class Potential(nn.Module, ABC):
    """(State, NeighborList) → Prediction; differentiable where gradients are enabled.

    Attributes:
        cutoff: the neighbour list must hold every pair closer than this, Å.
    """

    cutoff: float

    @property
    def elements(self) -> tuple[int, ...] | None:
        """Atomic numbers the potential knows; None: any."""
        return None

    @abstractmethod
    def forward(self, state: State, neighbors: NeighborList) -> Prediction:
        """Energy and forces of every system of the batch."""


class EnergyModel(nn.Module, ABC):
    """What a conservative potential is made of: an energy as a smooth function of the positions.

    Attributes:
        cutoff: range of the pairs it needs, Å.
        config: plain arguments (JSON) that build the model again; empty if it is not to be saved.
    """

    cutoff: float
    config: dict[str, Any]

    @property
    def elements(self) -> tuple[int, ...] | None:
        """Atomic numbers the model knows; None: any."""
        return None

    @abstractmethod
    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        """Potential energy of each system, [n_systems] eV, float64."""


class Conservative(Potential):
    """Forces F = −∂E/∂r of an energy model.

    A graph for second derivatives is kept exactly when ``torch.is_grad_enabled()``.
    """

    def __init__(self, energy_model: EnergyModel) -> None:
        super().__init__()
        self.energy_model = energy_model
        self.cutoff = float(energy_model.cutoff)

    @property
    def elements(self) -> tuple[int, ...] | None:
        return self.energy_model.elements

    def forward(self, state: State, neighbors: NeighborList) -> Prediction:
        keep_graph = torch.is_grad_enabled()
        positions = state.positions
        with torch.enable_grad():
            if not (keep_graph and positions.requires_grad):
                positions = positions.detach().requires_grad_()
            energy = self.energy_model(state.replace(positions=positions), neighbors)
            if not energy.requires_grad:
                raise ValueError(_DETACHED.format(name=type(self.energy_model).__name__))
            (gradient,) = torch.autograd.grad(
                energy.sum(), positions, create_graph=keep_graph, allow_unused=True
            )
        if gradient is None:
            raise ValueError(_DETACHED.format(name=type(self.energy_model).__name__))
        return Prediction(energy if keep_graph else energy.detach(), -gradient)


_DETACHED = (
    "the energy of {name} does not depend on state.positions through autograd, so it has no forces: the "
    "model detached or re-wrapped its input"
)
