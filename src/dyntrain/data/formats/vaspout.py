"""VASP's vaspout.h5 (VASP 6): every step's structure, energy, forces and stress in full precision."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dyntrain.data.formats.arrays import numbers
from dyntrain.data.formats.frames import ase_stress, common_length, numbers_of, one_cell, standard_masses
from dyntrain.data.formats.h5md import member, opened
from dyntrain.data.raw import RawRun
from dyntrain.data.trajectory import FloatArray, IntArray, check_cell, check_finite
from dyntrain.errors import UserError
from dyntrain.units import FS, KBAR

_STEPS = "intermediate/ion_dynamics"


def read_vaspout(file: Path) -> RawRun:
    """Read the run; forces belong to the free energy (TOTEN), so that is the energy taken.

    Velocities (Å/fs) are there where the INCAR says ``VELOCITY = .TRUE.``.

    Raises:
        UserError: no MD run, damaged content, or steps without forces.
    """
    with opened(file, "intermediate", "a vaspout.h5") as h5:
        return _Vaspout(h5, file).read()


class _Vaspout:
    def __init__(self, h5: h5py.File, file: Path) -> None:
        self.h5, self.file = h5, file
        self.notes: list[str] = []

    def read(self) -> RawRun:
        self._check_md()
        types, counts = self._types()
        n = int(counts.sum())
        frames = {
            "position_ions": self._steps("position_ions", (None, n, 3)),
            "lattice_vectors": self._steps("lattice_vectors", (None, 3, 3)),
            "forces": self._steps("forces", (None, n, 3)),
            "energies": self._energies(),
        }
        for name, optional in (("stress", (None, 3, 3)), ("ion_velocities", (None, n, 3))):
            if member(self.h5, f"{_STEPS}/{name}", self.file) is not None:
                frames[name] = self._steps(name, optional)
        lengths = {name: len(values) for name, values in frames.items()}
        if max(lengths.values()) > lengths["position_ions"] + 1:
            raise UserError(
                f"{self.file} holds positions of {lengths['position_ions']} steps but forces of "
                f"{lengths['forces']}: with NBLOCK > 1 it lacks positions; vasprun.xml has all."
            )
        n_frames = common_length(self.file, lengths, self.notes)
        frames = {name: values[:n_frames] for name, values in frames.items()}
        for name, values in frames.items():
            check_finite(values, name, str(self.file))
        cells = frames["lattice_vectors"] * self._scale()
        for frame, cell in enumerate(cells):
            check_cell(cell, np.ones(3, dtype=bool), str(self.file), frame)
        velocities = frames.get("ion_velocities")
        every, potim = int(self._incar("ML_OUTBLOCK") or 1), self._incar("POTIM")
        return RawRun(
            file=str(self.file),
            reader="VASP vaspout.h5",
            positions=frames["position_ions"] @ cells,
            forces=frames["forces"],
            energies=frames["energies"],
            cell=one_cell(cells),
            pbc=np.ones(3, dtype=bool),
            atomic_numbers=np.repeat(numbers_of(types, self.file), counts),
            masses=np.repeat(self._masses(types), counts),
            velocities=None if velocities is None else velocities / FS,
            dt_fs=None if potim is None else every * potim,
            notes=self.notes,
            stride=every if every > 1 else None,
            stress=ase_stress(list(frames.get("stress", [])), KBAR, self.notes),
        )

    def _check_md(self) -> None:
        ibrion = self._incar("IBRION")
        if ibrion:
            raise UserError(
                f"{self.file}: IBRION = {ibrion:g}, so this is no molecular dynamics (IBRION = 0)."
            )

    def _incar(self, tag: str) -> float | None:
        """The number of a tag of the INCAR, None where it is not set."""
        value = self._value(f"input/incar/{tag}")
        return None if value is None else float(np.ravel(value)[0])

    def _value(self, path: str) -> Any:
        found = member(self.h5, path, self.file)
        return found[()] if isinstance(found, h5py.Dataset) else None

    def _steps(self, name: str, shape: tuple[int | None, ...]) -> FloatArray:
        values = self._value(f"{_STEPS}/{name}")
        if values is None:
            raise UserError(f"{self.file} has no {_STEPS}/{name}; dyntrain needs every step's.")
        return numbers(np.asarray(values), f"{_STEPS}/{name}", shape, str(self.file))

    def _types(self) -> tuple[list[str], IntArray]:
        """The elements of the types of atoms, and how many atoms each has."""
        types, counts = (
            self._value(f"results/positions/{name}") for name in ("ion_types", "number_ion_types")
        )
        if types is None or counts is None or np.size(types) != np.size(counts):
            raise UserError(f"{self.file}: results/positions does not tell the elements of its atoms.")
        return [_text(name).strip() for name in np.ravel(types)], np.ravel(counts).astype(np.int64)

    def _energies(self) -> FloatArray:
        tags = self._value(f"{_STEPS}/energies_tags")
        columns = [] if tags is None else [k for k, tag in enumerate(np.ravel(tags)) if "TOTEN" in _text(tag)]
        if not columns:
            raise UserError(f"{self.file}: no energy TOTEN in {_STEPS}/energies_tags.")
        return self._steps("energies", (None, np.size(tags)))[:, columns[0]]

    def _scale(self) -> float:
        """The scaling factor of the POSCAR, by which the lattice vectors are multiplied."""
        scale = self._value(f"{_STEPS}/scale")
        scale = self._value("results/positions/scale") if scale is None else scale
        factor = 1.0 if scale is None else float(np.ravel(scale)[0])
        if not factor > 0:
            raise UserError(f"{self.file}: the scaling factor of the cell must be positive, got {factor:g}.")
        return factor

    def _masses(self, types: list[str]) -> FloatArray:
        """POMASS of the INCAR, else of the POTCAR, one a type."""
        for path, pattern in (
            ("input/incar/POMASS", r"[\d.]+"),
            ("input/potcar/content", r"POMASS\s*=\s*([\d.]+)"),
        ):
            found = re.findall(pattern, _text(self._value(path)))
            if len(found) == len(types):
                return np.array([float(mass) for mass in found])
        self.notes.append("The file has no POMASS: standard atomic masses (POTCARs have H 1.000 u).")
        return standard_masses(types, numbers_of(types, self.file))


def _text(value: Any) -> str:
    """A string of HDF5, or numbers as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
