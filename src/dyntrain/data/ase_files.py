"""ASE files: any format ASE reads with positions, energy and forces, as a RawRun."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from ase.formula import Formula
from ase.stress import full_3x3_to_voigt_6_stress

from dyntrain.data.ase_frames import Frame, is_traj, of_atoms, traj_frames
from dyntrain.data.ase_keys import LabelKeys, values_of
from dyntrain.data.formats.frames import CUT_OFF, every_stress
from dyntrain.data.formats.text import plain_name, unpacked
from dyntrain.data.keys import AUTOMATIC, KeyMap
from dyntrain.data.raw import RawRun
from dyntrain.data.timestamps import TIME_KEYS, settle_time_stamps, stride_of
from dyntrain.data.trajectory import FloatArray
from dyntrain.errors import UserError

# Keys of a frame's info that hold the number of its step.
_STEP_KEYS = ("step", "Step", "md_step", "MD_step")

# Text formats in which a number that is cut off at the end of the file would still be read as one.
_LINES = (".xyz", ".extxyz")


def read_ase(file: Path, keys: KeyMap = AUTOMATIC) -> RawRun:
    """Read all frames of a file.

    Args:
        keys: the user's word on keys and units; without it keys are found by name and units are ASE's.

    Raises:
        UserError: no such file, a format ASE does not know, damaged content, frames without energy or
            forces, several candidates for one of them, atoms that change along the run; the message names
            file and frame.
    """
    frames = _Frames(str(file), keys)
    with warnings.catch_warnings(record=True) as caught, unpacked(file) as plain:
        warnings.simplefilter("always")
        lines = plain_name(file).endswith(_LINES)
        try:
            for number, frame in enumerate(_iterate(plain, file)):
                frames.add(frame, number)
        except UserError:
            if not (lines and _ends_within(plain, frames)):
                raise
            frames.notes.append(CUT_OFF)
        else:
            if lines and not _ends_with_a_line(plain):
                frames.drop_last()
    run = frames.finish()
    run.notes += sorted({f"ASE warns: {' '.join(str(w.message).split())}" for w in caught})
    return run


def read_ase_structures(file: Path, keys: KeyMap = AUTOMATIC) -> list[RawRun]:
    """Read all frames of a file as structures of no run: any atoms, those of the same ones together.

    Raises:
        UserError: as of ``read_ase``, but for atoms that change; a file whose last line is not whole.
    """
    alike: dict[tuple[bytes, ...], _Frames] = {}
    with warnings.catch_warnings(), unpacked(file) as plain:
        warnings.simplefilter("ignore")
        for number, frame in enumerate(_iterate(plain, file)):
            atoms = tuple(np.asarray(column).tobytes() for column in (frame.numbers, frame.pbc, frame.masses))
            timeless = frame._replace(info={k: v for k, v in frame.info.items() if k not in TIME_KEYS})
            alike.setdefault(atoms, _Frames(str(file), keys)).add(timeless, number)
        if plain_name(file).endswith(_LINES) and not _ends_with_a_line(plain):
            raise UserError(f"{file} is cut off in its last line; leave the last structure out.")
    if not alike:
        raise UserError(f"{file} holds no structures that ASE can read.")
    return [frames.finish() for frames in alike.values()]


def _ends_with_a_line(file: Path) -> bool:
    with open(file, "rb") as stream:
        stream.seek(max(0, file.stat().st_size - 1))
        return stream.read(1) == b"\n"


def _ends_within(file: Path, frames: _Frames) -> bool:
    """Whether the frame after those that were read is the last and lacks its end: the job was killed."""
    if frames.first is None:
        return False
    with open(file, "rb") as stream:
        n_lines = sum(1 for _ in stream)
    n_whole, n_left = divmod(n_lines, len(frames.first.numbers) + 2)
    if n_left:
        return len(frames.positions) == n_whole
    return len(frames.positions) == n_whole - 1 and not _ends_with_a_line(file)


def _rows(file: Path) -> Iterator[Any]:
    """Frames of an ASE database in the order they were added, with their key-value pairs as info."""
    from ase.db import connect

    for row in connect(file, type="db").select(sort="id"):
        atoms = row.toatoms()
        atoms.info.update(row.key_value_pairs)
        yield atoms


def _frames_of(plain: Path) -> Iterator[Frame]:
    """Frames of a .traj, a database or whatever else ASE reads."""
    from ase.io import iread

    if is_traj(plain):
        return traj_frames(plain)
    # A `do_not_split_by_at_sign` keeps ASE from reading part of a file name as an index.
    atoms = _rows(plain) if plain.suffix == ".db" else iread(plain, ":", do_not_split_by_at_sign=True)
    return map(of_atoms, atoms)


def _iterate(plain: Path, file: Path) -> Iterator[Frame]:
    """Frames of the (unpacked) file; errors name the file as the user knows it."""
    n_read = 0
    try:
        for frame in _frames_of(plain):
            yield frame
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


def _formula(numbers: np.ndarray) -> str:
    known = ((numbers >= 0) & (numbers < len(chemical_symbols))).all()
    return (
        Formula.from_list([chemical_symbols[z] for z in numbers]).format("hill")
        if known
        else f"atomic numbers {sorted(set(numbers.tolist()))}"
    )


class _Frames:
    """Frames of one file, collected one by one and checked against the first."""

    def __init__(self, file: str, keys: KeyMap = AUTOMATIC) -> None:
        self.file = file
        self.keys = keys
        self.labels: LabelKeys | None = None
        self.notes: list[str] = []
        self.positions: list[FloatArray] = []
        self.forces: list[FloatArray] = []
        self.energies: list[float] = []
        self.cells: list[FloatArray] = []
        self.velocities: list[FloatArray | None] = []
        self.times: list[dict[str, float]] = []
        self.stress: list[FloatArray | None] = []
        self.steps: list[Any] = []
        self.free_energy_frames = 0
        self.first: Frame | None = None
        self.masses: FloatArray | None = None

    def add(self, atoms: Frame, frame: int) -> None:
        """Take in a frame; ``frame`` is its number in the file, for sentences."""
        if self.first is None or self.labels is None:
            self.first = atoms
            self.labels = LabelKeys(atoms, self.keys, self.file)
        self._check_same_atoms(atoms, self.first, frame)
        self.energies.append(self._energy(atoms, frame))
        self.forces.append(self._forces(atoms, frame))
        self.positions.append(self._floats(atoms.positions, "positions", (len(atoms.numbers), 3), frame))
        self.cells.append(self._floats(atoms.cell, "cell", (3, 3), frame))
        self.velocities.append(self._velocities(atoms, frame))
        self.stress.append(self._stress(atoms, frame))
        self.steps.append(next((atoms.info[k] for k in _STEP_KEYS if k in atoms.info), None))
        self.times.append({k: atoms.info[k] for k in TIME_KEYS if k in atoms.info})

    def drop_last(self) -> None:
        """Forget the last frame, whose last number may lack its end."""
        columns: tuple[list[Any], ...] = (
            self.positions,
            self.forces,
            self.energies,
            self.cells,
            self.velocities,
            self.times,
            self.stress,
            self.steps,
        )
        for column in columns:
            del column[-1:]
        self.notes.append(CUT_OFF)

    def _check_same_atoms(self, atoms: Frame, first: Frame, frame: int) -> None:
        if atoms is not first and all(x is y for x, y in zip(atoms[:3], first[:3], strict=True)):
            return  # a .traj says it once
        if len(atoms.numbers) != len(first.numbers) or (atoms.numbers != first.numbers).any():
            raise UserError(
                f"{self.file}, frame {frame}: the atoms change ({_formula(first.numbers)} in frame 0, here "
                f"{_formula(atoms.numbers)} or another order); a file must hold one run of the same atoms, "
                "unless it is named under `data.structures`."
            )
        if (atoms.pbc != first.pbc).any():
            raise UserError(
                f"{self.file}, frame {frame}: pbc changes from {first.pbc.tolist()} to {atoms.pbc.tolist()}."
            )
        masses = self._floats(atoms.masses, "masses", atoms.numbers.shape, frame)
        if not (masses > 0).all():
            raise UserError(
                f"{self.file}, frame {frame}: every mass must be positive, got {masses.min():g} u."
            )
        if self.masses is None:
            self.masses = masses
        if not np.allclose(masses, self.masses, rtol=1e-6):
            raise UserError(f"{self.file}, frame {frame}: the masses differ from those of frame 0.")

    def _energy(self, atoms: Frame, frame: int) -> float:
        held = values_of("energy", atoms)
        key = self.labels.energy if self.labels else None
        energy = held.get(key) if key is not None else None
        if energy is None:
            raise UserError(self._missing("energy", key, atoms.info, frame))
        # Forces are the gradient of the free energy where a code smears the occupations and gives both.
        if key == "free_energy":
            self.free_energy_frames += "energy" in held and held["energy"] != energy
        try:
            return float(energy) * (self.keys.factor("energy") or 1.0)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.file}, frame {frame}: the energy is no number: {energy!r}.") from error

    def _forces(self, atoms: Frame, frame: int) -> FloatArray:
        key = self.labels.forces if self.labels else None
        forces = values_of("forces", atoms).get(key) if key is not None else None
        if forces is None:
            raise UserError(self._missing("forces", key, atoms.arrays, frame))
        return self._floats(forces, "forces", (len(atoms.numbers), 3), frame) * (
            self.keys.factor("forces") or 1.0
        )

    def _stress(self, atoms: Frame, frame: int) -> FloatArray | None:
        """ASE's own or what stands under the user's key, six numbers or the whole tensor: [6] eV/Å³."""
        if self.keys.stress is None:
            stress = atoms.results.get("stress")
        elif (stress := {**atoms.info, **atoms.results}.get(self.keys.stress)) is None:
            raise UserError(self._missing("stress", self.keys.stress, atoms.info, frame))
        if stress is None or np.size(stress) == 6:
            return None if stress is None else self._floats(stress, "stress", (6,), frame)
        tensor = self._floats(np.ravel(stress), "stress", (9,), frame).reshape(3, 3)
        return np.asarray(full_3x3_to_voigt_6_stress(tensor))

    def _velocities(self, atoms: Frame, frame: int) -> FloatArray | None:
        """Velocities in Å/ASE time: momenta over masses, or a column of velocities."""
        key = self.labels.velocities if self.labels else None
        if key is None or (key not in atoms.arrays and self.keys.velocities is None):
            return None
        if key not in atoms.arrays:
            raise UserError(self._missing("velocities", key, atoms.arrays, frame))
        shape = (len(atoms.numbers), 3)
        values = self._floats(atoms.arrays[key], key, shape, frame)
        if key == "momenta":
            values = values / atoms.masses[:, None]
        return values * (self.keys.factor("velocities") or 1.0)

    def _floats(self, values: Any, name: str, shape: tuple[int, ...], frame: int) -> FloatArray:
        try:
            array = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.file}, frame {frame}: {name} are no numbers ({error}).") from error
        if array.shape != shape:
            raise UserError(f"{self.file}, frame {frame}: {name} must have shape {shape}, got {array.shape}.")
        return array

    def _missing(self, what: str, key: str | None, found: dict[str, Any], frame: int) -> str:
        if key is not None:
            return f"{self.file}, frame {frame} has no `{key}`, where its {what} should be."
        similar = [name for name in found if what.rstrip("s")[:5] in name.lower()]
        hint = (
            f"; it has {', '.join(sorted(similar))}: say with `keys: {{{what}: …}}` if that is meant"
            if similar
            else ""
        )
        return (
            f"{self.file}, frame {frame} has no {what}; each frame needs positions, energy and forces{hint}."
        )

    def finish(self) -> RawRun:
        if self.first is None or self.masses is None or self.labels is None or not self.positions:
            raise UserError(f"{self.file} holds no frames that ASE can read.")
        notes = [*self.labels.notes, *self.notes]
        if self.free_energy_frames:
            notes.append("Energies are the free energies, of which the forces are the gradient.")
        length = self.keys.factor("positions") or 1.0
        cells = np.stack(self.cells) * length
        dt_fs, breaks, time_notes = settle_time_stamps(self.times, self.file)
        stress = every_stress(self.stress, notes)
        return RawRun(
            file=self.file,
            reader="ase",
            positions=np.stack(self.positions) * length,
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
            stride=self._stride(),
            stress=np.stack(stress) if stress else None,
        )

    def _stride(self) -> int | None:
        """Of the steps' numbers where these are more than the frames'."""
        if not all(isinstance(step, int | np.integer) for step in self.steps):
            return None
        stride = stride_of(self.steps)
        return stride if stride != 1 else None

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
