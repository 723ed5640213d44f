"""What every engine asks for: energy, forces and virial of one set of atoms, as numpy arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dyntrain.models.files import load_model
from dyntrain.neighbors import VerletNeighbors
from dyntrain.potential import Potential
from dyntrain.state import State

FloatArray = npt.NDArray[np.float64]


class Evaluation(NamedTuple):
    """energy in eV; forces [n_atoms, 3] eV/Å; virial [6] eV (xx, yy, zz, yz, xz, xy) or None.

    The virial is −∂E/∂strain, the volume times minus the stress.
    """

    energy: float
    forces: FloatArray
    virial: FloatArray | None


class Evaluator:
    """A potential for an engine that keeps its own atoms; the neighbour list is kept between calls.

    Args:
        model: a model file, or a potential.
        device: "cpu" or "cuda"; None leaves a potential where it is and puts a file's model on the CPU.
        skin: of the neighbour list, Å.
    """

    def __init__(self, model: Potential | Path | str, device: str | None = None, skin: float = 1.0) -> None:
        self.potential = model if isinstance(model, Potential) else load_model(model)
        if device is not None:
            self.potential = self.potential.to(device)
        tensors = [*self.potential.parameters(), *self.potential.buffers()]
        self._device = tensors[0].device if tensors else torch.device("cpu")
        self._neighbors = VerletNeighbors(self.potential.cutoff, skin)

    def __call__(
        self, positions: Any, atomic_numbers: Any, cell: Any = None, pbc: Any = None, *, virial: bool = False
    ) -> Evaluation:
        """Energy, forces and, of a system that is periodic in all directions, the virial.

        Args:
            positions: [n_atoms, 3] Å.
            atomic_numbers: [n_atoms].
            cell: [3, 3] Å, vectors are rows; None: none.
            pbc: [3]; None: not periodic.
        """
        state = State.from_arrays(
            np.array(positions, dtype=np.float64),
            atomic_numbers,
            np.ones(len(positions)),  # an engine has its own masses
            cell=cell,
            pbc=(False, False, False) if pbc is None else pbc,
        ).to(self._device)
        with torch.no_grad():
            neighbors = self._neighbors(state)
            energy, forces = self.potential(state, neighbors)
            tensor = None
            if virial:
                volume = torch.linalg.det(state.cell[0]).abs()
                tensor = (-volume * self.potential.stress(state, neighbors)[0]).cpu().numpy()
        return Evaluation(float(energy[0]), forces.cpu().numpy(), tensor)
