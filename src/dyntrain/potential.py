"""The Potential protocol, and the one place that differentiates an energy to forces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dyntrain.errors import UserError
from dyntrain.neighbors import NeighborList, pair_forces, pair_vectors
from dyntrain.state import State


class Prediction(NamedTuple):
    """energy [n_systems] eV, forces [n_atoms, 3] eV/Å, both float64."""

    energy: Tensor
    forces: Tensor


class PairSlopes(NamedTuple):
    """energy [n_systems] eV and slopes dE/dr_ij [n_pairs, 3] eV/Å of all pairs, both float64."""

    energy: Tensor
    slopes: Tensor


class Potential(nn.Module, ABC):
    """(State, NeighborList) → Prediction; differentiable where gradients are enabled.

    Attributes:
        cutoff: the neighbour list must hold every pair closer than this, Å.
        conservative: whether the forces are derivatives of the energy.
    """

    cutoff: float
    conservative: ClassVar[bool] = True

    @property
    def elements(self) -> tuple[int, ...] | None:
        """Atomic numbers the potential knows; None: any."""
        return None

    @abstractmethod
    def forward(self, state: State, neighbors: NeighborList) -> Prediction:
        """Energy and forces of every system of the batch."""

    def stress(self, state: State, neighbors: NeighborList) -> Tensor:
        """Stress of every system, [n_systems, 6] eV/Å³, as ASE has it: xx, yy, zz, yz, xz, xy; σ = 1/V ∂E/∂ε.

        Positive where the cell wants to shrink; the motion of the atoms adds nothing to it.

        Raises:
            UserError: a potential that has none, or a system that is not periodic in all directions.
        """
        raise UserError(f"{type(self).__name__} gives no stress, only energies and forces.")


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

    def pair_slopes(self, state: State, neighbors: NeighborList) -> PairSlopes | None:
        """The energies and their slopes without autograd, where a model can do this faster (default: None).

        Only models whose energy depends on positions and cell through ``pair_vectors`` alone. Used where
        gradients are disabled; must agree with ``forward`` to rounding.
        """
        return None


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
        found = None if keep_graph else self.energy_model.pair_slopes(state, neighbors)
        if found is not None:
            return Prediction(found.energy, pair_forces(state, neighbors, found.slopes))
        positions = state.positions
        with torch.enable_grad():
            if not (keep_graph and positions.requires_grad):
                positions = positions.detach().requires_grad_()
            energy = self.energy_model(state.replace(positions=positions), neighbors)
            if not energy.requires_grad:
                raise UserError(_DETACHED.format(name=type(self.energy_model).__name__))
            (gradient,) = torch.autograd.grad(
                energy.sum(), positions, create_graph=keep_graph, allow_unused=True
            )
        if gradient is None:
            raise UserError(_DETACHED.format(name=type(self.energy_model).__name__))
        return Prediction(energy if keep_graph else energy.detach(), -gradient)

    def stress(self, state: State, neighbors: NeighborList) -> Tensor:
        keep_graph = torch.is_grad_enabled()
        volumes = _volumes(state)
        found = None if keep_graph else self.energy_model.pair_slopes(state, neighbors)
        if found is not None:
            return _pair_virials(found.slopes, state, neighbors)[:, _VOIGT[0], _VOIGT[1]] / volumes[:, None]
        with torch.enable_grad():
            strain = torch.zeros_like(state.cell, requires_grad=True)
            # The symmetric part alone: a rotation is no strain.
            deformation = torch.eye(3, dtype=strain.dtype, device=strain.device) + 0.5 * (strain + strain.mT)
            positions = torch.einsum("ax,axy->ay", state.positions, deformation[state.system_idx])
            strained = state.replace(positions=positions, cell=state.cell @ deformation)
            energy = self.energy_model(strained, neighbors)
            if not energy.requires_grad:
                raise UserError(_DETACHED.format(name=type(self.energy_model).__name__))
            (gradient,) = torch.autograd.grad(energy.sum(), strain, create_graph=keep_graph)
        return gradient[:, _VOIGT[0], _VOIGT[1]] / volumes[:, None]


def _pair_virials(slopes: Tensor, state: State, neighbors: NeighborList) -> Tensor:
    """∂E/∂ε = Σ ½ (r gᵀ + g rᵀ) over a system's pairs, with g = dE/dr: [n_systems, 3, 3] eV."""
    vectors = pair_vectors(state, neighbors)
    products = vectors[:, :, None] * slopes[:, None, :]
    systems = state.system_idx.index_select(0, neighbors.i)
    virials = torch.zeros_like(state.cell).index_add_(0, systems, products)
    return 0.5 * (virials + virials.mT)


_VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])


def _volumes(state: State) -> Tensor:
    """Volume of each system's cell, [n_systems] Å³."""
    if not bool(state.pbc.all()):
        system = int((~state.pbc.all(1)).nonzero()[0])
        raise UserError(
            f"system {system} is not periodic in all directions (pbc {state.pbc[system].tolist()}), so it "
            "has no volume and no stress; give it a cell and pbc, or ask for energy and forces only"
        )
    return torch.linalg.det(state.cell).abs()


_DETACHED = (
    "the energy of {name} does not depend on state.positions through autograd, so it has no forces and "
    "cannot be trained through: the model detached or re-wrapped its input, or detached its output"
)
