"""The reference that continues the model's motion: which one it is, and its forces as a Potential."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from dyntrain.config import ImproveConfig
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.evaluate.audit import Reference as Labels
from dyntrain.evaluate.audit import check_reference, to_atoms
from dyntrain.neighbors import NeighborList
from dyntrain.potential import Potential, Prediction
from dyntrain.reference.cache import Label, StoredReference
from dyntrain.state import State

FILES = "files"
"""The reference that is run by the user, elsewhere."""

# Energies of one method agree to far better than this, eV per atom; another zero of energy is far from it.
_SAME_ENERGY = 0.005
_N_CHECKED = 3


@dataclass(frozen=True)
class Reference:
    """A method by name: plain values, so that processes can hand it on.

    name:    tblite, an ASE calculator, a model file (.pt), or ``files``
    method:  of tblite
    options: keywords of the calculator
    """

    name: str
    method: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: ImproveConfig) -> Reference:
        """The reference that a configuration names.

        Raises:
            UserError: a method for what has none, or options for a model file.
        """
        name, method = config.reference, config.method
        if name == "tblite":
            return cls(name, method or "GFN2-xTB", config.options)
        if method is not None:
            raise UserError(
                f"improve.method: {method!r} would be a method of tblite, but the reference is {name!r}: "
                "give the keywords of another calculator under improve.options"
            )
        if name.endswith(".pt"):
            if config.options:
                raise UserError("improve.options: a model file as the reference takes none; leave them out")
            return cls(str(Path(name).resolve()))
        return cls(name, None, config.options)

    def __str__(self) -> str:
        return f"{self.method} ({self.name})" if self.method else self.name

    @property
    def by_hand(self) -> bool:
        """Whether the user runs it."""
        return self.name == FILES

    def labels(self, folder: Path) -> Labels:
        """What labels structures; results are stored in a folder and never calculated twice.

        Raises:
            UserError: unknown name, method or option, or a package that is not installed.
        """
        if self.name.endswith(".pt"):
            return ModelLabels(self.name)
        return StoredReference(self.method or self.name, self.options, folder)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class ModelLabels:
    """Labels by a trained model: distillation. Nothing is stored, it is quick enough."""

    def __init__(self, path: str) -> None:
        from dyntrain.calculator import Calculator

        self.name, self._calculator = path, Calculator(path)

    def label(self, atoms: Atoms) -> Label:
        """Energy and forces of a structure."""
        atoms = atoms.copy()
        atoms.calc = self._calculator
        return Label(float(atoms.get_potential_energy()), atoms.get_forces(apply_constraint=False))


class ReferencePotential(Potential):
    """Forces of a reference for the one roll-out loop, one system at a time."""

    cutoff = 0.1  # the method knows its own pairs

    def __init__(self, labels: Labels) -> None:
        super().__init__()
        self.labels, self.n_asked = labels, 0

    def forward(self, state: State, neighbors: NeighborList | None = None) -> Prediction:
        """Raises RuntimeError where the calculation fails."""
        self.n_asked += 1
        label = self.labels.label(to_atoms(state))
        energy = torch.tensor([label.energy], dtype=torch.float64)
        return Prediction(energy, torch.as_tensor(label.forces, dtype=torch.float64))


def check_same_method(labels: Labels, runs: Sequence[Trajectory], *, with_energy: bool) -> float:
    """Refuse a reference that is not what labelled the training runs: mixed labels spoil a model silently.

    Args:
        with_energy: whether energies are trained on; their zero must be the same then.

    Returns:
        How far the forces differ, relative (``check_reference``).

    Raises:
        UserError: forces or energies differ, or the reference fails on recorded structures.
    """
    difference = check_reference(labels, runs)
    for number in range(_N_CHECKED if with_energy else 0):
        run = runs[number * len(runs) // _N_CHECKED]
        frame = (2 * number + 1) * run.n_frames // (2 * _N_CHECKED)
        energy = labels.label(to_atoms(run.state(frame))).energy
        apart = abs(energy - float(run.energies[frame])) / run.n_atoms
        if not apart <= _SAME_ENERGY:
            raise UserError(
                f"the energies of the reference {labels.name} differ from those of the training runs by "
                f"{apart:.3g} eV per atom ({run.file}, frame {run.first_frame + frame}), though the forces "
                "agree: their zero is another; give runs with the method's own energies, or train without "
                "them (`loss: {energy: null}`)"
            )
    return difference


def largest_force(runs: Sequence[Trajectory]) -> float:
    """The largest force on an atom in all recorded frames, eV/Å."""
    return max(float(np.linalg.norm(run.forces, axis=2).max()) for run in runs)
