"""Export with proof: the file is kept only if the family's own calculator gives our numbers with it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator

from dyntrain.atomic import atomic_path
from dyntrain.errors import UserError
from dyntrain.models.family import FamilyModel
from dyntrain.neighbors import neighbor_list
from dyntrain.potential import Conservative, Potential, Prediction
from dyntrain.state import State

TOLERANCES = {"float64": (1e-10, 1e-10), "float32": (1e-6, 1e-5)}
"""By precision: of energies, relative, and of forces, relative to the largest."""


class Agreement(NamedTuple):
    """How closely two predictions agree.

    energy: difference relative to the energy, or to the largest force times 1 Å where that is larger
    forces: largest difference relative to the largest force
    """

    energy: float
    forces: float

    def within(self, precision: str) -> bool:
        energy, forces = TOLERANCES[precision]
        # NaN compares False: it agrees with nothing.
        return self.energy <= energy and self.forces <= forces


def export(potential: Potential, path: Path, structure: Atoms | None = None) -> Agreement:
    """Write a model in its family's own format, which its own tools load unchanged.

    The file appears at ``path`` only after the family's own ASE calculator, with this file, gave the
    potential's energy and forces.

    Args:
        structure: what they are compared on; default: a small one of the model's elements.

    Raises:
        UserError: the family has no other format than our own, or the two disagree.
    """
    network = potential.energy_model if isinstance(potential, Conservative) else None
    if not isinstance(network, FamilyModel):
        raise UserError(
            f"a {type(network or potential).__name__} is of no family that has a format to export to"
        )
    atoms = sample_structure(network) if structure is None else structure.copy()
    precision = str(next(network.parameters()).dtype).removeprefix("torch.")
    if precision not in network.native_precisions:
        (precision,) = network.native_precisions
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}: create it or choose another")
    with tempfile.TemporaryDirectory(prefix=".export", dir=path.parent) as folder:
        # Under its own name: some programs go by the ending.
        written = Path(folder) / path.name
        network.export(written)
        found = compare(potential, network.native_calculator(written, "cpu", precision), atoms)
        if not found.within(precision):
            raise UserError(
                f"{path} was not written: the {network.family} package's own calculator gives other numbers "
                f"with it (energy off by {found.energy:.1e}, forces by {found.forces:.1e}, relative)"
            )
        with atomic_path(path) as part:
            written.replace(part)
    return found


def compare(potential: Potential, calculator: Calculator, atoms: Atoms) -> Agreement:
    """Our numbers and those of any ASE calculator on one structure."""
    ours = predict(potential, atoms)
    atoms = atoms.copy()
    atoms.calc = calculator
    expected = Prediction(
        torch.tensor([atoms.get_potential_energy()], dtype=torch.float64),
        torch.as_tensor(np.array(atoms.get_forces()), dtype=torch.float64),
    )
    force = max(float(expected.forces.abs().max()), 1e-3)
    energy = max(float(expected.energy.abs()), force)
    return Agreement(
        float((ours.energy.cpu() - expected.energy).abs()) / energy,
        float((ours.forces.cpu() - expected.forces).abs().max()) / force,
    )


def predict(potential: Potential, atoms: Atoms) -> Prediction:
    """Energy [1] and forces of one structure, without a graph."""
    state = State.from_ase(atoms).to(next(potential.parameters()).device)
    with torch.no_grad():
        return potential(state, neighbor_list(state, potential.cutoff))


def sample_structure(model: FamilyModel) -> Atoms:
    """Eight atoms of the model's elements, near each other, in a periodic box that keeps images apart."""
    elements = model.elements[:: max(1, len(model.elements) // 8)]
    numbers = [elements[k % len(elements)] for k in range(8)]
    corners = np.stack(np.meshgrid(*[[0.0, 1.6]] * 3, indexing="ij"), -1).reshape(-1, 3)
    positions = corners + np.random.default_rng(0).uniform(-0.2, 0.2, corners.shape)
    return Atoms(numbers, positions + 4.0, cell=[10.0 + 2.0 * model.cutoff] * 3, pbc=True)
