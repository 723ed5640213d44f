"""LAMMPS's `pair_style mliap unified`: domain-decomposed runs, on a LAMMPS that was built with Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from dyntrain.errors import UserError
from dyntrain.models.files import load_model
from dyntrain.neighbors import NeighborList
from dyntrain.potential import Conservative, EnergyModel
from dyntrain.state import State


class UnifiedModel:
    """What ML-IAP's unified interface asks of a Python model; hand it over with ``load_unified``, unpickled.

    LAMMPS gives pairs, not positions, and its ghost atoms are atoms like others here: the energies of the
    atoms of this process are differentiated with respect to all pairs, and LAMMPS sends the forces on ghosts
    home. So ghosts need neighbours too, as far as messages travel: ``pair_style mliap unified EXISTS
    ghostneigh`` and, for a model of n message-passing layers, ``comm_modify cutoff`` n × (cutoff + skin).

    Args:
        model: a model file, or a potential whose energy is a sum over atoms.
        device: "cpu" or "cuda"; None: where it is.

    Raises:
        UserError: forces that are no gradient, an energy that is no sum over atoms, or elements unknown.
    """

    def __init__(self, model: Conservative | Path | str, device: str | None = None) -> None:
        potential = model if isinstance(model, Conservative) else load_model(model)
        if not isinstance(potential, Conservative) or potential.elements is None:
            raise UserError(
                f"{type(potential).__name__} does not name its elements or is no gradient of an energy: "
                "ML-IAP needs a model of atomic energies, as `dyntrain train` makes"
            )
        self._model = potential.energy_model if device is None else potential.to(device).energy_model
        self._device = next((t.device for t in self._model.buffers()), torch.device("cpu"))
        self._numbers = torch.tensor(potential.elements)
        # The names that LAMMPS asks for.
        self.interface: Any = None
        self.element_types = [chemical_symbols[number] for number in potential.elements]
        self.ndescriptors, self.nparams = 1, 1
        self.rcutfac = 0.5 * potential.cutoff  # LAMMPS's cutoff is twice this times the radius 1
        _refuse_if_no_sum(self._model, potential.elements[0])

    def compute_descriptors(self, data: Any) -> None:
        """Nothing: all is done in ``compute_forces``."""

    def compute_gradients(self, data: Any) -> None:
        """Nothing: all is done in ``compute_forces``."""

    def compute_forces(self, data: Any) -> None:
        """Add forces to ``data.f`` [ntotal, 3] and set ``data.energy`` and ``data.eatoms``.

        Args:
            data: LAMMPS's MLIAPData: ntotal, nlistatoms, natomneigh, elems [ntotal], and the pairs of all
                listed atoms in both directions: pair_i, pair_j [npairs], rij [npairs, 3] = x_j − x_i.

        Raises:
            RuntimeError: ghosts come without neighbours.
        """
        if data.ntotal > data.nlistatoms and data.natomneigh <= data.nlistatoms:
            raise RuntimeError(
                "ghost atoms have no neighbours: use `pair_style mliap unified EXISTS ghostneigh`"
            )
        once = np.flatnonzero(data.pair_i < data.pair_j)
        once = once[np.lexsort((data.pair_j[once], data.pair_i[once]))]
        i, j, vectors = (
            torch.from_numpy(np.array(values[once])).to(self._device)
            for values in (data.pair_i.astype(np.int64), data.pair_j.astype(np.int64), data.rij)
        )
        numbers = self._numbers[torch.from_numpy(np.array(data.elems, dtype=np.int64))].to(self._device)
        energies, pull = _atomic_energies(self._model, numbers, i, j, vectors, data.nlistatoms)
        forces = torch.zeros(data.ntotal, 3, dtype=torch.float64, device=self._device)
        forces.index_add_(0, i, pull).index_add_(0, j, -pull)
        data.f[:] += forces.cpu().numpy()
        data.energy = float(energies.sum())
        data.eatoms = energies.cpu().numpy()


def _atomic_energies(
    model: EnergyModel, numbers: Tensor, i: Tensor, j: Tensor, vectors: Tensor, n_own: int
) -> tuple[Tensor, Tensor]:
    """Energies of the first n_own atoms, [n_own] eV, and of their sum the gradient by the pair vectors.

    Each atom is a system of its own for the sum over atoms. All stand at the origin: in a cell of unit
    vectors the shifts of the pairs are the vectors between them.
    """
    n_atoms = numbers.shape[0]
    vectors = vectors.detach().requires_grad_()
    zeros = torch.zeros(n_atoms, 3, dtype=torch.float64, device=vectors.device)
    state = State(
        positions=zeros,
        velocities=zeros,
        masses=torch.ones_like(zeros[:, 0]),
        atomic_numbers=numbers,
        system_idx=torch.arange(n_atoms, device=vectors.device),
        cell=torch.eye(3, dtype=torch.float64, device=vectors.device).expand(n_atoms, 3, 3),
        pbc=torch.ones(n_atoms, 3, dtype=torch.bool, device=vectors.device),
    )
    with torch.enable_grad():
        energies = model(state, NeighborList(i, j, vectors))[:n_own]
        (gradient,) = torch.autograd.grad(energies.sum(), vectors)
    return energies.detach(), gradient


def _refuse_if_no_sum(model: EnergyModel, number: int) -> None:
    """Of two like atoms each must have half the energy."""
    device = next((t.device for t in model.buffers()), torch.device("cpu"))
    numbers, first = torch.full((2,), number, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    vector = torch.tensor([[0.0, 0.0, 0.4 * model.cutoff]], dtype=torch.float64, device=device)
    energies, _ = _atomic_energies(model, numbers, first, first + 1, vector, 2)
    pair = State.from_arrays(torch.cat([0.0 * vector, vector]), numbers, [1.0, 1.0]).to(device)
    with torch.no_grad():
        whole = model(pair, NeighborList(first, first + 1, torch.zeros_like(vector)))[0]
    if not torch.allclose(energies, 0.5 * whole, rtol=1e-4, atol=1e-6):
        raise UserError(
            f"the energy of {type(model).__name__} is not a sum over atoms, so LAMMPS cannot divide it among "
            "processes: use dyntrain.deploy.lammps (`fix external`)"
        )
