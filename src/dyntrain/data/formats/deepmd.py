"""DeePMD: folders of type.raw and set.*/coord.npy, force.npy, energy.npy, box.npy (Å, eV)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dyntrain.data.formats.arrays import numbers, read_npy
from dyntrain.data.formats.frames import missing_files, numbers_of, one_cell, standard_masses
from dyntrain.data.formats.text import reading
from dyntrain.data.keys import KeyMap
from dyntrain.data.raw import RawRun
from dyntrain.data.trajectory import FloatArray
from dyntrain.errors import UserError

_VELOCITIES = ("velocity.npy", "velocities.npy", "velo.npy")


def is_deepmd(folder: Path) -> bool:
    """Whether a folder is a DeePMD system."""
    return (folder / "type.raw").is_file()


def read_deepmd(folder: Path, keys: KeyMap) -> RawRun:
    """Read the sets of a system, in the order of their numbers, as one run (no dt: stated or inferred).

    Raises:
        UserError: missing files, arrays of other shapes, atoms of several systems.
    """
    folder = folder if folder.is_dir() else folder.parent
    sets = sorted(path for path in folder.glob("set.*") if path.is_dir())
    lacking = [] if (folder / "type_map.raw").is_file() else ["type_map.raw"]
    lacking += [] if sets else ["set.000"]
    lacking += [
        f"{s.name}/{name}.npy"
        for s in sets
        for name in ("coord", "force", "energy")
        if not (s / f"{name}.npy").is_file()
    ]
    if lacking:
        raise missing_files(
            folder, lacking, "each is needed to know elements, positions, forces and energies"
        )
    if any((s / "real_atom_types.npy").is_file() for s in sets):
        raise UserError(
            f"{folder} is of DeePMD's mixed type, where each frame has other atoms; that is no run."
        )
    labels = _labels(folder)
    n_atoms, parts = len(labels), [_read_set(s, len(labels)) for s in sets]
    names = {name for part in parts for name in part}
    if any(part.keys() != names for part in parts):
        raise UserError(f"{folder}: some sets have box or velocities and others have not.")
    whole = {name: np.concatenate([part[name] for part in parts]) for name in names}
    atoms = numbers_of(labels, folder)
    periodic = "box" in whole and not (folder / "nopbc").is_file()
    velocities = whole.get("velocities")
    return RawRun(
        file=str(folder),
        reader="DeePMD npy",
        positions=whole["coord"].reshape(-1, n_atoms, 3),
        forces=whole["force"].reshape(-1, n_atoms, 3),
        energies=whole["energy"],
        cell=one_cell(whole["box"].reshape(-1, 3, 3)) if periodic else np.zeros((3, 3)),
        pbc=np.full(3, periodic),
        atomic_numbers=atoms,
        masses=standard_masses(labels, atoms),
        velocities=None
        if velocities is None
        else velocities.reshape(-1, n_atoms, 3) * (keys.factor("velocities") or 1),
        notes=[
            f"DeePMD system of {len(sets)} set(s), taken as consecutive frames in the order of the sets.",
            "The files have no masses: standard atomic masses.",
        ],
    )


def _labels(folder: Path) -> list[str]:
    with reading(folder / "type_map.raw", "DeePMD's type_map.raw") as lines:
        names = "".join(lines).split()
    with reading(folder / "type.raw", "DeePMD's type.raw") as lines:
        types = [int(word) for word in "".join(lines).split()]
    if not types or not 0 <= min(types) <= max(types) < len(names):
        raise UserError(f"{folder}/type.raw must name types 0 … {len(names) - 1} of type_map.raw.")
    return [names[number] for number in types]


def _read_set(folder: Path, n_atoms: int) -> dict[str, FloatArray]:
    def read(name: str, shape: tuple[int | None, ...]) -> FloatArray:
        return numbers(read_npy(folder / name), name, shape, str(folder))

    coord = read("coord.npy", (None, 3 * n_atoms))
    n_frames = coord.shape[0]
    energy = read_npy(folder / "energy.npy").reshape(-1)
    found = {
        "coord": coord,
        "force": read("force.npy", (n_frames, 3 * n_atoms)),
        "energy": numbers(energy, "energy.npy", (n_frames,), str(folder)),
    }
    if (folder / "box.npy").is_file():
        found["box"] = read("box.npy", (n_frames, 9))
    for name in _VELOCITIES:
        if (folder / name).is_file():
            found["velocities"] = read(name, (n_frames, 3 * n_atoms))
    return found
