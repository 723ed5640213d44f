"""ASE files: any format ASE reads with positions, energy and forces, as a RawRun."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dyntrain.data.raw import RawRun
from dyntrain.data.timestamps import TIME_KEYS, settle_time_stamps
from dyntrain.data.trajectory import FloatArray
from dyntrain.errors import UserError

# Extended XYZ may carry velocities in a column of one of these names (momenta are ASE's own).
_VELOCITY_KEYS = ("velocities", "velocity", "velo", "vel")


def read_ase(file: Path) -> RawRun:
    """Read all frames of a file.

    Raises:
        UserError: no such file, a format ASE does not know, damaged content, frames without energy or
            forces, atoms that change along the run; the message names file and frame.
    """
    frames = _Frames(str(file))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for atoms in _iterate(file):
            frames.add(atoms)
    run = frames.finish()
    run.notes += sorted({f"ASE warns: {' '.join(str(w.message).split())}" for w in caught})
    return run


def _iterate(file: Path) -> Iterator[Any]:
    from ase.io import iread

    n_read = 0
    try:
        # A `do_not_split_by_at_sign` keeps ASE from reading part of a file name as an index.
        for atoms in iread(file, index=":", do_not_split_by_at_sign=True):
            yield atoms
            n_read += 1
    except UserError:
        raise
    # ASE's readers raise whatever their parsing trips over; the user needs the place, not our traceback.
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{file}, frame {n_read}: ASE cannot read it ({said[:200]}); the file is damaged, cut off, or "
            "of a format ASE does not know."
        ) from error


class _Frames:
    """Frames of one file, collected one by one and checked against the first."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.positions: list[FloatArray] = []
        self.forces: list[FloatArray] = []
        self.energies: list[float] = []
        self.cells: list[FloatArray] = []
        self.velocities: list[FloatArray | None] = []
        self.times: list[dict[str, float]] = []
        self.free_energy_frames = 0
        self.first: Any = None
        self.masses: FloatArray | None = None

    def add(self, atoms: Any) -> None:
        frame = len(self.positions)
        if self.first is None:
            self.first = atoms
        self._check_same_atoms(atoms, frame)
        results = {} if atoms.calc is None else dict(atoms.calc.results)
        self.energies.append(self._energy(results, atoms, frame))
        self.forces.append(self._forces(results, atoms, frame))
        self.positions.append(atoms.get_positions())
        self.cells.append(atoms.cell.array.copy())
        self.velocities.append(self._velocities(atoms, frame))
        self.times.append({k: atoms.info[k] for k in TIME_KEYS if k in atoms.info})

    def _check_same_atoms(self, atoms: Any, frame: int) -> None:
        first = self.first
        if len(atoms) != len(first) or (atoms.numbers != first.numbers).any():
            raise UserError(
                f"{self.file}, frame {frame}: the atoms change ({first.get_chemical_formula()} in frame 0, "
                f"here {atoms.get_chemical_formula()} or another order); a file must hold one run of the "
                "same atoms."
            )
        if (atoms.pbc != first.pbc).any():
            raise UserError(
                f"{self.file}, frame {frame}: pbc changes from {first.pbc.tolist()} to {atoms.pbc.tolist()}."
            )
        masses = self._floats(atoms.get_masses(), "masses", (len(atoms),), frame)
        if not (masses > 0).all():
            raise UserError(
                f"{self.file}, frame {frame}: every mass must be positive, got {masses.min():g} u."
            )
        if self.masses is None:
            self.masses = masses
        if not np.allclose(masses, self.masses, rtol=1e-6):
            raise UserError(f"{self.file}, frame {frame}: the masses differ from those of frame 0.")

    def _energy(self, results: dict[str, Any], atoms: Any, frame: int) -> float:
        # Forces are the gradient of the free energy where a code smears the occupations and gives both.
        if results.get("free_energy") is not None:
            energy = results["free_energy"]
            self.free_energy_frames += "energy" in results and results["energy"] != energy
        else:
            energy = results.get("energy")
        if energy is None:
            raise UserError(self._missing("energy", atoms.info, frame))
        try:
            return float(energy)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.file}, frame {frame}: the energy is no number: {energy!r}.") from error

    def _forces(self, results: dict[str, Any], atoms: Any, frame: int) -> FloatArray:
        forces = results.get("forces")
        if forces is None:
            raise UserError(self._missing("forces", atoms.arrays, frame))
        return self._floats(forces, "forces", (len(atoms), 3), frame)

    def _velocities(self, atoms: Any, frame: int) -> FloatArray | None:
        """Velocities in Å/ASE time: momenta over masses, or a column of velocities."""
        shape = (len(atoms), 3)
        if "momenta" in atoms.arrays:
            momenta = self._floats(atoms.arrays["momenta"], "momenta", shape, frame)
            return momenta / self._floats(atoms.get_masses(), "masses", shape[:1], frame)[:, None]
        for key in _VELOCITY_KEYS:
            if key in atoms.arrays:
                return self._floats(atoms.arrays[key], key, shape, frame)
        return None

    def _floats(self, values: Any, name: str, shape: tuple[int, ...], frame: int) -> FloatArray:
        try:
            array = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.file}, frame {frame}: {name} are no numbers ({error}).") from error
        if array.shape != shape:
            raise UserError(f"{self.file}, frame {frame}: {name} must have shape {shape}, got {array.shape}.")
        return array

    def _missing(self, what: str, found: dict[str, Any], frame: int) -> str:
        similar = [key for key in found if what.rstrip("s")[:5] in key.lower()]
        hint = f"; it has {', '.join(sorted(similar))}: rename that to `{what}`" if similar else ""
        return (
            f"{self.file}, frame {frame} has no {what}; each frame needs positions, energy and forces{hint}."
        )

    def finish(self) -> RawRun:
        if self.first is None or self.masses is None:
            raise UserError(f"{self.file} holds no frames that ASE can read.")
        notes = []
        if self.free_energy_frames:
            notes.append("Energies are the free energies, of which the forces are the gradient.")
        cells = np.stack(self.cells)
        dt_fs, breaks, time_notes = settle_time_stamps(self.times, self.file)
        return RawRun(
            file=self.file,
            reader="ase",
            positions=np.stack(self.positions),
            forces=np.stack(self.forces),
            energies=np.array(self.energies),
            cell=cells[0] if (cells == cells[0]).all() else cells,
            pbc=np.array(self.first.pbc),
            atomic_numbers=np.array(self.first.numbers, dtype=np.int64),
            masses=self.masses,
            velocities=self._all_velocities(),
            dt_fs=dt_fs,
            breaks=breaks,
            notes=notes + time_notes,
        )

    def _all_velocities(self) -> FloatArray | None:
        given = [v is not None for v in self.velocities]
        if not any(given):
            return None
        if not all(given):
            raise UserError(
                f"{self.file}, frame {given.index(False)} has no velocities, but frame {given.index(True)} "
                "has; give all frames velocities, or none."
            )
        return np.stack([v for v in self.velocities if v is not None])
