"""TorchSim's simulations with our potentials: a potential as a TorchSim model (State ↔ SimState)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch_sim
from torch import Tensor
from torch_sim.models.interface import ModelInterface

from dyntrain.models.files import load_model
from dyntrain.neighbors import VerletNeighbors
from dyntrain.potential import Potential
from dyntrain.state import State

_VOIGT = torch.tensor([[0, 5, 4], [5, 1, 3], [4, 3, 2]])


class TorchSimModel(ModelInterface):
    """A potential for TorchSim's integrators, optimisers and autobatchers.

    Written against TorchSim 0.3 (the newest for Python 3.11), whose states hold cell vectors as columns and
    one pbc for all systems; 0.4 and later keep the names used here, with a pbc for each direction.

    Args:
        model: a model file, or a potential.
        device: "cpu" or "cuda"; None leaves a potential where it is and puts a file's model on the CPU.
        compute_stress: give stresses too (slower); all systems must be periodic.
        skin: of the neighbour list, Å.

    Raises:
        UserError: the file holds no model of ours, or stresses are asked for where there are none.
    """

    def __init__(
        self,
        model: Potential | Path | str,
        device: str | None = None,
        *,
        compute_stress: bool = False,
        skin: float = 1.0,
    ) -> None:
        super().__init__()
        self.potential = model if isinstance(model, Potential) else load_model(model)
        if device is not None:
            self.potential = self.potential.to(device)
        tensors = [*self.potential.parameters(), *self.potential.buffers()]
        self._device = tensors[0].device if tensors else torch.device("cpu")
        self._dtype = torch.float64
        self._compute_stress, self._compute_forces = compute_stress, True
        self._neighbors = VerletNeighbors(self.potential.cutoff, skin)

    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """energy [n_systems] eV, forces [n_atoms, 3] eV/Å, if asked for stress [n_systems, 3, 3] eV/Å³."""
        ours = state_of(state).to(self._device)
        with torch.no_grad():
            neighbors = self._neighbors(ours)
            energy, forces = self.potential(ours, neighbors)
            results = {"energy": energy, "forces": forces}
            if self._compute_stress:
                results["stress"] = self.potential.stress(ours, neighbors)[:, _VOIGT.to(self._device)]
        return {name: values.to(state.positions.dtype) for name, values in results.items()}


def state_of(state: Any) -> State:
    """A TorchSim state (or the dictionary of one) as ours; velocities where it has momenta."""
    if isinstance(state, dict):
        state = torch_sim.SimState(**state)
    double = torch.float64
    pbc = torch.as_tensor(state.pbc, dtype=torch.bool, device=state.positions.device)
    masses = state.masses.to(double)
    momenta = getattr(state, "momenta", None)
    velocities = torch.zeros_like(state.positions) if momenta is None else momenta / state.masses[:, None]
    n_systems = state.cell.shape[0]
    return State(
        positions=state.positions.detach().to(double),
        velocities=velocities.detach().to(double),
        masses=masses,
        atomic_numbers=state.atomic_numbers.to(torch.int64),
        system_idx=state.system_idx.to(torch.int64),
        cell=state.cell.detach().mT.to(double).contiguous(),
        pbc=pbc.expand(n_systems, 3).contiguous(),
    )


def sim_state_of(state: State) -> Any:
    """Our batch as a TorchSim state.

    Raises:
        ValueError: systems of different periodicity, which TorchSim 0.3 does not have.
    """
    pbc = state.pbc.any().item()
    if not bool((state.pbc == pbc).all()):
        raise ValueError("TorchSim 0.3 knows only batches that are periodic in all directions, or in none")
    return torch_sim.SimState(
        positions=state.positions,
        masses=state.masses,
        cell=state.cell.mT.contiguous(),
        pbc=pbc,
        atomic_numbers=state.atomic_numbers,
        system_idx=state.system_idx,
    )
