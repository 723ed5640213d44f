"""An ASE calculator around any potential of ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import all_changes

from dyntrain.errors import UserError
from dyntrain.neighbors import VerletNeighbors
from dyntrain.potential import Potential
from dyntrain.state import State
from dyntrain.threads import keep_freed_memory


def _potential(model: Potential | Path | str) -> Potential:
    if isinstance(model, Potential):
        return model
    if not isinstance(model, str | Path):
        raise UserError(
            f"a model file or a Potential is expected, got {type(model).__name__}; a network of your own "
            "becomes one by dyntrain.potential_from"
        )
    from dyntrain.models.files import load_model

    return load_model(model)


def _seen_of(atoms: Atoms) -> dict[str, np.ndarray]:
    """All that a potential sees, by ASE's names."""
    return {
        "positions": atoms.positions,
        "numbers": atoms.numbers,
        "cell": atoms.cell.array,
        "pbc": atoms.pbc,
    }


class Calculator(AseCalculator):
    """Energy (eV), forces (eV/Å) and stress (eV/Å³, of periodic systems) of a trained model, for ASE.

    The neighbour list is kept between calls and made again when an atom has moved half a skin, or when
    the atoms, the cell or pbc have changed.

    Args:
        model: a model file, or a ``Potential``.
        device: "cpu" or "cuda"; None leaves a potential where it is and puts a file's model on the CPU.
        skin: of the neighbour list, Å.

    Raises:
        UserError: the file holds no model of ours, there is no such device, the structure has no atoms or
            an element the model does not know, a stress is asked for where not all directions are periodic,
            or what the model gives is not finite.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 (ASE's own)

    def __init__(
        self, model: Potential | Path | str, device: str | None = None, *, skin: float = 1.0
    ) -> None:
        super().__init__()
        self.potential = _potential(model)
        if device is not None:
            try:
                self.potential = self.potential.to(device)
            except (AssertionError, RuntimeError) as error:  # torch without CUDA; no such device
                raise UserError(f"there is no device {device!r} here ({error}); take cpu") from error
        tensors = [*self.potential.parameters(), *self.potential.buffers()]
        self._device = tensors[0].device if tensors else torch.device("cpu")
        self.neighbors = VerletNeighbors(self.potential.cutoff, skin)
        self._known: tuple[Atoms, State] | None = None
        keep_freed_memory()

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed of all that a potential sees; called by ASE three times a step of MD.

        ASE's own comparison, of charges and magnetic moments too, would take a tenth of a small step.
        """
        if self.atoms is None:
            return list(all_changes)
        old, new = _seen_of(self.atoms), _seen_of(atoms)
        return [
            name
            for name, array in old.items()
            if array.shape != new[name].shape or not bool((array == new[name]).all())
        ]

    def _state_of(self, atoms: Atoms | None, system_changes: Sequence[str]) -> State:
        """That of ``atoms``, which are copied; where only they have moved, all else is as it was."""
        known, self._known = self._known, None  # nothing is known if this fails
        if known is not None and atoms is not None and list(system_changes) == ["positions"]:
            self.atoms, state = known
            self.atoms.positions[:] = atoms.positions
            state = state.replace(positions=torch.from_numpy(atoms.positions.copy()).to(self._device))
        else:
            super().calculate(atoms)
            if not self.atoms:
                raise UserError("the structure has no atoms: energy and forces of nothing are not defined")
            state = State.from_ase(self.atoms).to(self._device)
        self._known = self.atoms, state
        return state

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Called by ASE when something has changed since the last call."""
        state = self._state_of(atoms, system_changes)
        with torch.no_grad():
            neighbors = self.neighbors(state)
            energy, forces = self.potential(state, neighbors)
            stress = self.potential.stress(state, neighbors)[0] if "stress" in properties else None
        total, of_atoms = float(energy[0]), forces.cpu().numpy()
        if not (math.isfinite(total) and np.isfinite(of_atoms).all()):
            raise UserError(
                "the model's energy or forces are not finite for this structure: look for atoms on top of "
                "each other, or for a model whose training failed"
            )
        self.results = {
            "energy": total,
            # No smearing: nothing sets the free energy apart from the energy.
            "free_energy": total,
            "forces": of_atoms,
        }
        if stress is not None:
            self.results["stress"] = stress.cpu().numpy()
