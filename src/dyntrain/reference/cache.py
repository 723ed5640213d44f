"""Reference energies and forces of single structures, stored so that no calculation is ever repeated."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.calculators.calculator import CalculatorError

from dyntrain.atomic import atomic_path
from dyntrain.errors import UserError
from dyntrain.reference.calculators import TBLITE_METHODS, new_calculator, running_calculator

# Positions and cells that agree to this many decimals (Å) are the same structure.
_DECIMALS = 8


class ReferenceFailed(RuntimeError):
    """The reference calculation of one structure gave no result (most often: no self-consistent field)."""


@dataclass(frozen=True, eq=False)
class Label:
    """energy eV; forces [n_atoms, 3] eV/Å."""

    energy: float
    forces: npt.NDArray[np.float64]


class StoredReference:
    """A reference method that answers from a folder what it has been asked before.

    One file a structure, named after a hash of the structure, the method and its options; it appears whole or
    not at all, so several processes may share a folder. Failures are not stored: they may have other reasons
    than the structure.

    Args:
        method: ``tblite`` (GFN2-xTB), a tblite method, or the name of an ASE calculator
            (``calculators.new_calculator``).
        options: keywords of the method; tblite's also ``charge`` and ``unpaired_electrons`` of the system,
            which otherwise come from the structure.
        folder: is made when the first result is stored.

    Attributes:
        n_calculated, n_read: calculations made, and results found in the folder.

    Raises:
        UserError: unknown method or option, or a package that is not installed.
    """

    def __init__(self, method: str, options: Mapping[str, Any] | None, folder: Path | str) -> None:
        self.method = "GFN2-xTB" if method == "tblite" else method
        self.folder = Path(folder)
        self.n_calculated = self.n_read = 0
        self._options = dict(options or {})
        self._charge, self._unpaired = self._system_options()
        new_calculator(self.method, self._options)  # refuses early what could never work
        self._told = json.dumps([self.method, self._options], sort_keys=True)

    def _system_options(self) -> tuple[float | None, float | None]:
        if self.method not in TBLITE_METHODS:
            return None, None  # many ASE calculators have a keyword "charge" of their own
        charge, unpaired = (self._options.pop(name, None) for name in ("charge", "unpaired_electrons"))
        for name, value in (("charge", charge), ("unpaired_electrons", unpaired)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise UserError(f"{name} must be a whole number, got {value!r}")
        return charge, unpaired

    @property
    def name(self) -> str:
        """Method and options as words."""
        options = {**self._options, "charge": self._charge, "unpaired_electrons": self._unpaired}
        given = ", ".join(f"{key} {value}" for key, value in options.items() if value is not None)
        return f"{self.method} ({given})" if given else self.method

    def label(self, atoms: Atoms) -> Label:
        """Energy and forces of a structure.

        Raises:
            ReferenceFailed: the calculation gave no finite result.
            UserError: a stored file is damaged, the folder cannot be written, or a program is missing.
        """
        atoms = self._with_electrons(atoms)
        path = self.path_of(atoms)
        if path.exists():
            self.n_read += 1
            return _read(path)
        found = self._calculate(atoms)
        self.n_calculated += 1
        _write(path, found, atoms, self._told)
        return found

    def path_of(self, atoms: Atoms) -> Path:
        """Where the result of a structure is, or would be."""
        digest = hashlib.sha256(self._told.encode())
        digest.update(atoms.numbers.astype("<i8").tobytes())
        for array in (atoms.positions, atoms.cell.array):
            # Adding zero makes −0 a 0: the same structure, but other bytes.
            digest.update((np.round(array, _DECIMALS) + 0.0).astype("<f8").tobytes())
        digest.update(atoms.pbc.tobytes())
        for total in (atoms.get_initial_charges().sum(), atoms.get_initial_magnetic_moments().sum()):
            digest.update(np.float64(total + 0.0).tobytes())
        name = digest.hexdigest()[:40]
        return self.folder / name[:2] / f"{name}.npz"

    def _with_electrons(self, atoms: Atoms) -> Atoms:
        atoms = atoms.copy()
        first = np.arange(len(atoms)) == 0
        if self._charge is not None:
            atoms.set_initial_charges(first * float(self._charge))
        if self._unpaired is not None:
            atoms.set_initial_magnetic_moments(first * float(self._unpaired))
        return atoms

    def _calculate(self, atoms: Atoms) -> Label:
        # A calculator of its own for each structure: the result must not depend on what was asked before.
        with running_calculator(self.method, self._options) as calculator:
            try:
                atoms.calc = calculator
                found = Label(float(atoms.get_potential_energy()), np.asarray(atoms.get_forces(), np.float64))
            except UserError:
                raise
            except (CalculatorError, RuntimeError, subprocess.SubprocessError) as error:
                words = " ".join(str(error).split()) or type(error).__name__
                raise ReferenceFailed(f"{self.name} failed: {words}") from error
        if not (np.isfinite(found.energy) and np.isfinite(found.forces).all()):
            raise ReferenceFailed(f"{self.name} gave an energy or a force that is not finite")
        return found


def _write(path: Path, label: Label, atoms: Atoms, told: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path.parent} for reference results: {error}") from error
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez(
            file,
            energy=np.float64(label.energy),
            forces=label.forces,
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            method=np.array(told),
        )


def _read(path: Path) -> Label:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return Label(float(stored["energy"]), stored["forces"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is a damaged reference result ({error}): delete it") from error
