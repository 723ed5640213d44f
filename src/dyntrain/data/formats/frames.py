"""Frames: what the readers share on the way from parsed numbers to a RawRun."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase.data import atomic_masses, atomic_masses_legacy, atomic_numbers

from dyntrain.data.raw import RawRun
from dyntrain.data.trajectory import FloatArray, IntArray
from dyntrain.errors import UserError

_DEUTERIUM, _TRITIUM = 2.01410178, 3.01604928


def numbers_of(labels: Sequence[str], file: Path | str) -> IntArray:
    """Atomic numbers of labels as codes print them: C, H1, Fe_pv, O:2, D, int64 [n_atoms].

    Raises:
        UserError: a label that starts with no element.
    """
    known = {label: _number_of(label, file) for label in set(labels)}
    return np.array([known[label] for label in labels], dtype=np.int64)


def _number_of(label: str, file: Path | str) -> int:
    if label in ("D", "T"):
        return 1
    match = re.match(r"[A-Za-z]{1,2}", label)
    if match:
        for symbol in (match[0].capitalize(), match[0][0].upper()):
            if symbol in atomic_numbers and symbol != "X":
                return int(atomic_numbers[symbol])
    raise UserError(f"{file}: the atom label {label!r} names no element.")


def standard_masses(labels: Sequence[str], numbers: IntArray) -> FloatArray:
    """Standard atomic masses, u [n_atoms]; D and T are the isotopes."""
    return _with_isotopes(labels, atomic_masses[numbers])


def older_masses(labels: Sequence[str], numbers: IntArray) -> FloatArray:
    """The same from the older table (H 1.00794, O 15.9994) that CP2K and i-PI use."""
    return _with_isotopes(labels, atomic_masses_legacy[numbers])


def _with_isotopes(labels: Sequence[str], elements: FloatArray) -> FloatArray:
    masses = np.array(elements, dtype=np.float64)
    for number, label in enumerate(labels):
        if label in ("D", "T"):
            masses[number] = _DEUTERIUM if label == "D" else _TRITIUM
    return masses


def restated_masses(numbers: IntArray, masses: FloatArray, stated: Mapping[str, float]) -> FloatArray:
    """Masses [n_atoms] u with those exchanged that the user states by element.

    Hydrogens that the file has as deuterium or tritium are D and T, the others H.
    """
    isotopes = {"D": (1, 1.9, 2.1), "T": (1, 2.9, 3.1), "H": (1, 0.0, 1.9)}
    restated = masses.copy()
    for symbol, mass in stated.items():
        number, above, below = isotopes.get(symbol, (atomic_numbers.get(symbol, 0), 0.0, np.inf))
        chosen = (numbers == number) & (masses > above) & (masses < below)
        restated[chosen] = mass
    return restated


def one_cell(cells: Sequence[FloatArray] | FloatArray) -> FloatArray:
    """[3, 3] where all frames have the same cell, else [n_frames, 3, 3]."""
    stacked = np.asarray(cells, dtype=np.float64)
    return stacked[0] if (stacked == stacked[0]).all() else stacked


def common_length(file: Path | str, lengths: dict[str, int], notes: list[str]) -> int:
    """The number of frames that all files of a run have, with a note where some have more.

    A job that is killed leaves its files a few frames apart.

    Raises:
        UserError: a file without any frame.
    """
    shortest = min(lengths, key=lambda name: lengths[name])
    n_frames = lengths[shortest]
    if n_frames == 0:
        raise UserError(f"{file}: {shortest} holds no complete frame.")
    if max(lengths.values()) > n_frames:
        longer = ", ".join(f"{name} {count}" for name, count in lengths.items() if count > n_frames)
        notes.append(
            f"Only the first {n_frames} frames are used, as many as {shortest} has ({longer}): the run was "
            "cut off."
        )
    return n_frames


def check_same_steps(file: Path | str, steps: Mapping[str, Sequence[int]], n_frames: int) -> None:
    """Refuse files of one run whose frames belong to different steps."""
    (first, expected), *others = steps.items()
    for name, found in others:
        for frame in range(n_frames):
            if found[frame] != expected[frame]:
                raise UserError(
                    f"{file}: frame {frame} is step {expected[frame]} in {first} but {found[frame]} in "
                    f"{name}; the files must be of one run and written at the same steps."
                )


def missing_files(file: Path | str, needed: Iterable[str], why: str) -> UserError:
    """The refusal of a run of which files are missing."""
    names = list(needed)
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    are = "is" if len(names) == 1 else "are"
    return UserError(f"{file}: {listed} {are} missing beside it; {why}.")


def left_out(count: int) -> list[str]:
    """The note on steps that lack something they need."""
    return (
        [f"{count} incomplete step(s) are left out; time jumps over those inside the run."] if count else []
    )


def check_numbered(numbers: Sequence[int], file: Path | str, frame: int) -> None:
    """Refuse rows that are not numbered 1, 2, 3 …, one an atom."""
    for expected, found in enumerate(numbers, start=1):
        if found != expected:
            raise UserError(
                f"{file}, frame {frame}: the force of atom {expected} is missing (atom {found} is there)."
            )


def ase_stress(pressures: Sequence[FloatArray | None], unit: float, notes: list[str]) -> FloatArray | None:
    """ASE's stress, [n_frames, 6] eV/Å³, of the pressure tensors that codes print; None where one lacks.

    Args:
        pressures: each [3, 3], positive where the cell wants to grow: −σ.
        unit: of the numbers, in eV/Å³.
        notes: told where only some frames have it.
    """
    if not (tensors := every_stress(pressures, notes)):
        return None
    return -unit * np.stack(tensors)[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


def every_stress(found: Sequence[FloatArray | None], notes: list[str]) -> list[FloatArray]:
    """The stresses of all frames; none, with a note, where only some have one."""
    there = [stress for stress in found if stress is not None]
    if 0 < len(there) < len(found):
        notes.append(f"Only {len(there)} of {len(found)} frames have a stress, so none is taken.")
    return there if len(there) == len(found) else []


@dataclass
class Steps:
    """The ionic steps of a run, periodic in all directions, as the reader of a log collects them.

    positions, forces: [n_atoms, 3] Å and eV/Å; cells: [3, 3] Å; energies: eV.
    pressures: [3, 3] in the code's unit, or None.
    """

    positions: list[FloatArray] = field(default_factory=list)
    forces: list[FloatArray] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)
    cells: list[FloatArray] = field(default_factory=list)
    pressures: list[FloatArray | None] = field(default_factory=list)

    def run(
        self,
        file: Path,
        reader: str,
        labels: Sequence[str],
        masses: FloatArray,
        *,
        pressure_unit: float,
        notes: list[str],
        dt_fs: float | None,
        breaks: tuple[int, ...] = (),
        stride: int | None = None,
    ) -> RawRun:
        """The run of atoms with these labels and masses; `pressure_unit` in eV/Å³."""
        return RawRun(
            file=str(file),
            reader=reader,
            positions=np.stack(self.positions),
            forces=np.stack(self.forces),
            energies=np.array(self.energies),
            cell=one_cell(self.cells),
            pbc=np.ones(3, dtype=bool),
            atomic_numbers=numbers_of(labels, file),
            masses=np.asarray(masses, dtype=np.float64),
            dt_fs=dt_fs,
            breaks=breaks,
            stress=ase_stress(self.pressures, pressure_unit, notes),
            notes=notes,
            stride=stride,
        )


CUT_OFF = "The last frame is incomplete (the run was cut off); it is left out."
