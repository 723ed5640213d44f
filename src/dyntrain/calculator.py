"""An ASE calculator around any potential of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import all_changes

from dyntrain.neighbors import VerletNeighbors
from dyntrain.potential import Potential
from dyntrain.state import State


class Calculator(AseCalculator):
    """Energy (eV) and forces (eV/Å) of a trained model for anything ASE does with them.

    The neighbour list is kept between calls and made again when an atom has moved half a skin, or when
    the atoms, the cell or pbc have changed.

    Args:
        model: a model file, or a ``Potential``.
        device: "cpu" or "cuda"; None leaves a potential where it is and puts a file's model on the CPU.
        skin: of the neighbour list, Å.
        kwargs: passed on to ``ase.calculators.calculator.Calculator``.

    Raises:
        UserError: the file holds no model of ours, or the structure an element the model does not know.
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012 (ASE's own convention)

    def __init__(
        self, model: Potential | Path | str, device: str | None = None, *, skin: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(model, Potential):
            self.potential = model
        else:
            from dyntrain.models.files import load_model

            self.potential = load_model(model)
        if device is not None:
            self.potential = self.potential.to(device)
        tensors = [*self.potential.parameters(), *self.potential.buffers()]
        self._device = tensors[0].device if tensors else torch.device("cpu")
        self.neighbors = VerletNeighbors(self.potential.cutoff, skin)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Called by ASE when something has changed since the last call."""
        super().calculate(atoms, properties, system_changes)
        state = State.from_ase(self.atoms).to(self._device)
        with torch.no_grad():
            energy, forces = self.potential(state, self.neighbors(state))
        self.results = {
            "energy": float(energy[0]),
            # No smearing: nothing sets the free energy apart from the energy.
            "free_energy": float(energy[0]),
            "forces": forces.cpu().numpy(),
        }
