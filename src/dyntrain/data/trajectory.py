"""Trajectory: one reference run as contiguous arrays, with its time step, breaks and provenance."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from ase.data import chemical_symbols
from ase.symbols import Symbols

from dyntrain.errors import UserError
from dyntrain.integrators import Kicks, VelocityVerlet
from dyntrain.state import State
from dyntrain.units import FS

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# `slice` is a method below, so its type needs another name inside the class.
_Slice = slice

# No position, velocity, force or energy comes near (ASE's units); squares of larger ones would overflow.
_ABSURD = 1e12
# Arrays are checked in pieces of about this many numbers (8 MB).
_PIECE = 1_000_000

ARRAYS = "(arrays)"
"""The `file` of a run that was not read from one."""

VelocitiesOrigin = Literal["read", "rebuilt", "shifted"]
DtOrigin = Literal["given", "file", "inferred"]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One reference run: consecutive frames of the same atoms, `dt` apart.

        field           shape                       unit
        positions       [n_frames, n_atoms, 3]      Å             unwrapped
        velocities      [n_frames, n_atoms, 3]      Å / ASE time  of the same instant as the positions
        forces          [n_frames, n_atoms, 3]      eV/Å
        energies        [n_frames]                  eV            potential energy
        cell            [3, 3] or [n_frames, 3, 3]  Å             lattice vectors are rows
        pbc             [3]                         bool
        atomic_numbers  [n_atoms]                   int64
        masses          [n_atoms]                   u
        dt              number                      ASE time      between frames
        breaks          frame indices b, ascending                no window may hold both b − 1 and b
        fixed_atoms     atom indices, ascending                   atoms that never move
        stress          [n_frames, 6] or None       eV/Å³         xx, yy, zz, yz, xz, xy; ASE's sign, without
                                                                  the atoms' motion
        stride          number or None                            steps of the AIMD from frame to frame, by
                                                                  the file
        small_steps     number                                    steps a roll-out takes from frame to frame
        alone           bool                                      frames are structures of no run, with breaks
                                                                  between all: windows for S = 1

    Provenance: `file`, `reader`, `first_frame` (number in the file of frame 0 here), `notes` (plain
    sentences: what was assumed or repaired), where the velocities and dt come from, and whether the
    file's positions were wrapped into the cell (here they never are).

    Raises:
        UserError: arrays that do not fit together, are not finite, or a periodic direction without a
            cell vector; the message names file, frame and quantity.
    """

    positions: FloatArray
    velocities: FloatArray
    forces: FloatArray
    energies: FloatArray
    cell: FloatArray
    pbc: npt.NDArray[np.bool_]
    atomic_numbers: IntArray
    masses: FloatArray
    dt: float
    breaks: tuple[int, ...] = ()
    file: str = ARRAYS
    reader: str = "arrays"
    first_frame: int = 0
    notes: tuple[str, ...] = ()
    velocities_origin: VelocitiesOrigin = "read"
    dt_origin: DtOrigin = "given"
    wrapped: bool = False
    fixed_atoms: tuple[int, ...] = ()
    stress: FloatArray | None = None
    stride: int | None = None
    small_steps: int = 1
    alone: bool = False

    def __post_init__(self) -> None:
        self._settle({field.name for field in dataclasses.fields(self)})

    def _settle(self, unchecked: Collection[str]) -> None:
        """Bring fields to their types and check them; of the arrays only those named are touched."""
        for name in ("positions", "velocities", "forces", "energies", "cell", "masses"):
            if name in unchecked:
                self._coerce(name, np.float64)
        if "stress" in unchecked and self.stress is not None:
            self._coerce("stress", np.float64)
        self._coerce("pbc", np.bool_)
        self._coerce("atomic_numbers", np.int64)
        object.__setattr__(self, "dt", float(self.dt))
        breaks = range(1, self.n_frames) if self.alone else sorted({int(b) for b in self.breaks})
        object.__setattr__(self, "breaks", tuple(breaks))
        object.__setattr__(self, "notes", tuple(self.notes))
        self._check_shapes()
        self._check_values(unchecked)
        if "cell" in unchecked or "pbc" in unchecked:
            check_cell(self.cell, self.pbc, self.file, self.first_frame)

    def _coerce(self, name: str, dtype: Any) -> None:
        try:
            array = np.ascontiguousarray(getattr(self, name), dtype=dtype)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.file}: {name} is not an array of numbers ({error}).") from error
        object.__setattr__(self, name, array)

    def _check_shapes(self) -> None:
        if self.positions.ndim != 3 or self.positions.shape[2] != 3:
            raise UserError(
                f"{self.file}: positions must have shape [n_frames, n_atoms, 3], got {self.positions.shape}."
            )
        n_frames, n_atoms = self.n_frames, self.n_atoms
        if n_atoms == 0:
            raise UserError(f"{self.file}: the frames hold no atoms.")
        if n_frames < (1 if self.alone else 2):
            raise UserError(
                f"{self.file} holds {n_frames} frame(s); a run needs at least 2 consecutive frames."
            )
        expected: dict[str, tuple[tuple[int, ...], ...]] = {
            "velocities": ((n_frames, n_atoms, 3),),
            "forces": ((n_frames, n_atoms, 3),),
            "energies": ((n_frames,),),
            "cell": ((3, 3), (n_frames, 3, 3)),
            "pbc": ((3,),),
            "atomic_numbers": ((n_atoms,),),
            "masses": ((n_atoms,),),
            **({} if self.stress is None else {"stress": ((n_frames, 6),)}),
        }
        for name, shapes in expected.items():
            if (found := getattr(self, name).shape) not in shapes:
                wanted = " or ".join(str(shape) for shape in shapes)
                raise UserError(f"{self.file}: {name} must have shape {wanted}, got {found}.")

    def _check_values(self, unchecked: Collection[str]) -> None:
        for name in ("positions", "velocities", "forces", "energies", "stress"):
            if name in unchecked and getattr(self, name) is not None:
                check_finite(getattr(self, name), name, self.file, self.first_frame)
        if not (np.isfinite(self.dt) and self.dt > 0):
            raise UserError(f"{self.file}: the time step must be positive, got {self.dt_fs:g} fs.")
        check_masses(self.masses, self.file)
        if not ((self.atomic_numbers > 0) & (self.atomic_numbers < len(chemical_symbols))).all():
            found = sorted(set(self.atomic_numbers.tolist()))
            raise UserError(f"{self.file}: unknown atomic numbers in {found}.")
        if self.breaks and not 0 < self.breaks[0] <= self.breaks[-1] < self.n_frames:
            raise UserError(
                f"{self.file}: breaks must lie between 1 and {self.n_frames - 1}, got {list(self.breaks)}."
            )

    @property
    def n_frames(self) -> int:
        return int(self.positions.shape[0])

    @property
    def n_atoms(self) -> int:
        return int(self.positions.shape[1])

    def __len__(self) -> int:
        return self.n_frames

    @property
    def dt_fs(self) -> float:
        """Time between frames in fs."""
        return self.dt / FS

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        return tuple(chemical_symbols[number] for number in self.atomic_numbers)

    @cached_property
    def formula(self) -> str:
        """Composition in Hill order, as C2H6O."""
        return str(Symbols(self.atomic_numbers).get_chemical_formula("hill"))

    @cached_property
    def fixed_cell(self) -> bool:
        """Whether all frames have the same cell."""
        return self.cell.ndim == 2 or bool((self.cell == self.cell[0]).all())

    def cell_at(self, frame: int) -> FloatArray:
        """Cell of one frame, [3, 3] Å."""
        return self.cell if self.cell.ndim == 2 else self.cell[frame]

    @property
    def fixed(self) -> npt.NDArray[np.bool_] | None:
        """Which atoms never move, [n_atoms]; None where all do."""
        return np.isin(np.arange(self.n_atoms), self.fixed_atoms) if self.fixed_atoms else None

    @cached_property
    def unlabelled_atoms(self) -> tuple[int, ...]:
        """Fixed atoms whose forces are all exactly zero, as codes write them that leave these forces out."""
        fixed = np.array(self.fixed_atoms, dtype=np.int64)
        some = self.forces[:: max(1, self.n_frames // 100)][:, fixed]
        return tuple(fixed[~some.any(axis=(0, 2))].tolist())

    @property
    def stretches(self) -> list[tuple[int, int]]:
        """The parts between breaks as (first frame, frame after the last)."""
        edges = [0, *self.breaks, self.n_frames]
        return list(itertools.pairwise(edges))

    def state(self, frame: int) -> State:
        """Positions and velocities of one frame as a State of one system."""
        return State.from_arrays(
            self.positions[frame].copy(),
            self.atomic_numbers.copy(),
            self.masses.copy(),
            velocities=self.velocities[frame].copy(),
            cell=self.cell_at(frame).copy(),
            pbc=self.pbc.copy(),
            fixed=self.fixed,
        )

    def friction(self, frames: _Slice) -> FloatArray:
        """ξ in a = F/m − ξ v between each of these frames and the next, 1/ASE time, [n − 1].

        From the energy the run gains or loses: d(E_pot + E_kin)/dt = −2 ξ E_kin, whatever lies between the
        frames. That is all that Nosé–Hoover, Berendsen, CSVR and rescaling do; noise (Langevin) is not seen.
        """
        velocities = self.velocities[frames]
        kinetic = 0.5 * np.einsum("kia,kia,i->k", velocities, velocities, self.masses)
        gained = np.diff(self.energies[frames] + kinetic)
        twice_mean = kinetic[1:] + kinetic[:-1]
        interval = self.dt * (frames.step or 1)
        return -np.divide(gained, interval * twice_mean, out=np.zeros_like(gained), where=twice_mean > 0)

    def kicks(self, start: int = 0, stop: int | None = None) -> Kicks:
        """What the run did beside velocity Verlet between frames start … stop − 1.

        Args:
            start: first frame; only these frames are touched.
            stop: one past the last, as in a Python slice.

        Returns:
            Kicks of ``stop − start − 1`` steps (METHOD: idea 2). Across a break they hold the jump.
        """
        frames = slice(start, self.n_frames if stop is None else stop)
        positions, velocities, forces = (
            torch.from_numpy(array[frames].copy()) for array in (self.positions, self.velocities, self.forces)
        )
        kicks = VelocityVerlet(self.dt).record_kicks(positions, velocities, forces, self.state(start))
        if self.fixed_cell:
            return kicks
        cells = torch.from_numpy(self.cell[frames][1:].copy())
        return Kicks(kicks.positions, kicks.velocities, cells[:, None])

    def slice(self, start: int, stop: int) -> Trajectory:
        """Frames start … stop − 1 as a run of their own: views, no copies; breaks and dt are kept."""
        if not 0 <= start < stop <= self.n_frames:
            raise UserError(f"{self.file}: no frames {start}:{stop} in a run of {self.n_frames}.")
        frames = slice(start, stop)
        return self._exchanged(
            (),
            positions=self.positions[frames],
            velocities=self.velocities[frames],
            forces=self.forces[frames],
            energies=self.energies[frames],
            cell=self.cell if self.cell.ndim == 2 else self.cell[frames],
            breaks=tuple(b - start for b in self.breaks if start < b < stop),
            stress=None if self.stress is None else self.stress[frames],
            first_frame=self.first_frame + start,
        )

    def __getitem__(self, frames: _Slice) -> Trajectory:
        start, stop, step = frames.indices(self.n_frames)
        if step != 1:
            raise UserError(f"{self.file}: a run can only be sliced with step 1, got {step}.")
        return self.slice(start, stop)

    def replace(self, **changes: Any) -> Trajectory:
        """The same run with some fields exchanged; those that stay are not checked again."""
        return self._exchanged(changes.keys(), **changes)

    def _exchanged(self, unchecked: Collection[str], **changes: Any) -> Trajectory:
        names = [field.name for field in dataclasses.fields(self)]
        if unknown := changes.keys() - set(names):
            raise TypeError(f"a Trajectory has no {', '.join(sorted(unknown))}")
        other = object.__new__(type(self))
        for name in names:
            object.__setattr__(other, name, changes.get(name, getattr(self, name)))
        other._settle(unchecked)
        return other

    def crosses_break(self, start: int, stop: int) -> bool:
        """Whether frames start … stop − 1 lie on both sides of a break."""
        return bisect.bisect_right(self.breaks, start) != bisect.bisect_right(self.breaks, stop - 1)


def check_finite(array: FloatArray, name: str, file: str, first_frame: int = 0) -> None:
    """Refuse NaN, infinity and absurd size in an array [n_frames, ...], naming the first frame (and atom)."""
    # Piece by piece: the array may be a mapped file that is larger than memory.
    piece = max(1, _PIECE * array.shape[0] // max(array.size, 1))
    for start in range(0, array.shape[0], piece):
        finite = np.abs(array[start : start + piece]) < _ABSURD  # false for NaN as well
        if not finite.all():
            where = np.argwhere(~finite)[0] + [start, *[0] * (array.ndim - 1)]
            break
    else:
        return
    name = {"energies": "energy"}.get(name, name)
    atom = f" of atom {where[1]}" if where.size > 1 and name != "cell" else ""
    raise UserError(
        f"{file}, frame {first_frame + where[0]}: {name}{atom} is {array[tuple(where)]:g}, expected a finite "
        "number; remove the frame or repair the file."
    )


def check_masses(masses: FloatArray, file: str) -> None:
    """Refuse masses [n_atoms] that are not positive numbers."""
    good = (masses > 0) & (masses < _ABSURD)
    if not good.all():
        worst = int(np.argmin(good))
        raise UserError(f"{file}: every mass must be positive, but atom {worst} has {masses[worst]:g} u.")


def check_cell(cell: FloatArray, pbc: Sequence[bool] | npt.NDArray[np.bool_], file: str, first: int) -> None:
    """Refuse a cell that is not finite or lacks a vector (or volume) along periodic directions."""
    periodic = np.asarray(pbc, dtype=bool)
    cells = cell.reshape(-1, 3, 3)
    check_finite(cells, "cell", file, first)
    lengths = np.linalg.norm(cells, axis=2)
    missing = np.argwhere((lengths < 1e-3) & periodic)
    if missing.size:
        frame, axis = missing[0]
        raise UserError(
            f"{file}, frame {first + frame}: pbc is on along {'abc'[axis]} but that cell vector is zero or "
            "missing; give the cell or switch pbc off in that direction."
        )
    if periodic.all() and (flat := np.abs(np.linalg.det(cells)) < 1e-6 * lengths.prod(1)).any():
        raise UserError(f"{file}, frame {first + int(flat.argmax())}: the periodic cell has no volume.")
