"""MD17, rMD17 and sGDML: npz files of one molecule, mostly in kcal/mol."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase.data import atomic_masses

from dyntrain.data.formats.arrays import numbers, read_npz
from dyntrain.data.keys import KeyMap
from dyntrain.data.raw import RawRun
from dyntrain.data.trajectory import FloatArray, IntArray
from dyntrain.data.unit_names import factor
from dyntrain.errors import UserError

_NAMES = {
    "positions": ("R", "coords", "positions", "coordinates"),
    "energy": ("E", "energies", "energy"),
    "forces": ("F", "forces", "force"),
    "velocities": ("V", "velocities", "velocity"),
    "atomic_numbers": ("z", "Z", "nuclear_charges", "atomic_numbers", "numbers"),
}


def read_md17(file: Path, keys: KeyMap) -> RawRun:
    """Read an npz file of positions, energies, forces and atomic numbers (no dt: it is stated or inferred).

    Units are those of the fields r_unit and e_unit, else those the user states.

    Raises:
        UserError: keys that are missing or ambiguous, units that are not known, damaged content.
    """
    arrays = read_npz(file)
    found = {quantity: _key(arrays, quantity, keys, file) for quantity in _NAMES}
    positions_key, forces_key, energy_key = (
        _needed(found, q, arrays, file) for q in ("positions", "forces", "energy")
    )
    place = str(file)
    positions = numbers(arrays[positions_key], positions_key, (None, None, 3), place)
    n_frames, n_atoms = positions.shape[:2]
    forces = numbers(arrays[forces_key], forces_key, (n_frames, n_atoms, 3), place)
    energies = arrays[energy_key]
    if energies.ndim == 2 and energies.shape[1] == 1:
        energies = energies[:, 0]
    length, energy, force, notes = _units(arrays, keys, file)
    z = _atomic_numbers(arrays[_needed(found, "atomic_numbers", arrays, file)], n_atoms, place)
    velocities_key = found["velocities"]
    velocities = None
    if velocities_key is not None:
        speed = keys.factor("velocities") or 1.0
        velocities = numbers(arrays[velocities_key], velocities_key, positions.shape, place) * speed
    cell, pbc = _cell(arrays, length, place)
    return RawRun(
        file=place,
        reader="npz (MD17, sGDML)",
        positions=positions * length,
        forces=forces * force,
        energies=numbers(energies, energy_key, (n_frames,), place) * energy,
        cell=cell,
        pbc=pbc,
        atomic_numbers=z,
        masses=np.array(atomic_masses[z], dtype=np.float64),
        velocities=velocities,
        notes=[*notes, "The file has no masses: standard atomic masses."],
    )


def _key(arrays: dict[str, np.ndarray], quantity: str, keys: KeyMap, file: Path) -> str | None:
    said = getattr(keys, quantity)
    if said is not None:
        if said not in arrays:
            raise UserError(
                f"{file} has no `{said}`, which keys.{quantity} names; it has {', '.join(arrays)}."
            )
        return str(said)
    there = [name for name in _NAMES[quantity] if name in arrays]
    if len(there) > 1:
        raise UserError(f"{file} has {', '.join(there)}: say with `keys: {{{quantity}: …}}` which is meant.")
    return there[0] if there else None


def _needed(found: dict[str, str | None], quantity: str, arrays: dict[str, np.ndarray], file: Path) -> str:
    if (key := found[quantity]) is None:
        raise UserError(
            f"{file} has no {quantity} ({', '.join(_NAMES[quantity])}), only "
            f"{', '.join(arrays) or 'nothing'}; name the key with `keys: {{{quantity}: …}}`."
        )
    return key


def _units(arrays: dict[str, np.ndarray], keys: KeyMap, file: Path) -> tuple[float, float, float, list[str]]:
    """Factors of positions, energies and forces, and a note on where they come from."""
    r_unit, e_unit = (str(arrays[name]) if name in arrays else "" for name in ("r_unit", "e_unit"))
    place = f"{file}, r_unit and e_unit"
    energy = keys.factor("energy") or (factor("energy", e_unit, place) if e_unit else None)
    if energy is None:
        raise UserError(
            f"{file} does not say its units (no e_unit); state them as "
            "`keys: {units: {energy: kcal/mol}}` (MD17 and rMD17) or `{energy: eV}`."
        )
    length = keys.factor("positions") or (factor("positions", r_unit, place) if r_unit else 1.0)
    said = "as its fields say" if e_unit and "energy" not in keys.units else "as you state"
    name = keys.units.get("energy") or e_unit
    note = f"Energies are in {name} and forces in {name} per length unit, {said}."
    return length, energy, keys.factor("forces") or energy / length, [note]


def _atomic_numbers(values: np.ndarray, n_atoms: int, place: str) -> IntArray:
    if values.ndim == 2 and values.shape[0] and (values == values[0]).all():
        values = values[0]
    z = numbers(values, "atomic numbers", (n_atoms,), place).astype(np.int64)
    if not ((z > 0) & (z < len(atomic_masses))).all():
        raise UserError(f"{place}: unknown atomic numbers in {sorted(set(z.tolist()))[:10]}.")
    return z


def _cell(arrays: dict[str, np.ndarray], length: float, place: str) -> tuple[FloatArray, np.ndarray]:
    """sGDML's `lattice` has the vectors in its columns."""
    if "lattice" not in arrays:
        return np.zeros((3, 3)), np.zeros(3, dtype=bool)
    return numbers(arrays["lattice"], "lattice", (3, 3), place).T * length, np.ones(3, dtype=bool)
