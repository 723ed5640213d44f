"""Structures of no run, each labelled by itself: read one by one, kept in few long arrays, for S = 1."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dyntrain.data.keys import AUTOMATIC, KeyMap
from dyntrain.data.readers import read_raw
from dyntrain.data.trajectory import FloatArray, Trajectory
from dyntrain.units import FS


def read_structure(
    file: str | os.PathLike[str],
    velocities: FloatArray,
    dt_fs: float,
    fixed_atoms: Sequence[int] = (),
    keys: KeyMap = AUTOMATIC,
) -> Trajectory:
    """Read the first structure of a file.

    Args:
        file: of a single calculation, or a run that begins with the structure.
        velocities: [n_atoms, 3] Å/ASE time; a single calculation knows none.
        dt_fs: time step of the runs that it will lie beside.
        fixed_atoms: atoms that never move.

    Raises:
        UserError: whatever is wrong with the file, in one sentence.
    """
    run = read_raw(Path(file), keys)
    return Trajectory(
        positions=run.positions[:1],
        velocities=velocities[None],
        forces=run.forces[:1],
        energies=run.energies[:1],
        cell=run.cell.reshape(-1, 3, 3)[0],
        pbc=run.pbc,
        atomic_numbers=run.atomic_numbers,
        masses=run.masses,
        dt=dt_fs * FS,
        file=run.file,
        reader=run.reader,
        notes=tuple(run.notes),
        fixed_atoms=tuple(fixed_atoms),
        stress=None if run.stress is None else run.stress[:1],
        alone=True,
    )


def joined(structures: Sequence[Trajectory]) -> list[Trajectory]:
    """Those of the same atoms in one set of arrays each: a file for every structure would be slow to open."""
    alike: dict[tuple[object, ...], list[Trajectory]] = {}
    for each in structures:
        atoms = (each.atomic_numbers.tobytes(), each.masses.tobytes(), each.fixed_atoms)
        rest = (each.pbc.tobytes(), each.dt, each.stress is None)
        alike.setdefault((*atoms, *rest), []).append(each)
    return [_as_one(group) for group in alike.values()]


def _as_one(group: Sequence[Trajectory]) -> Trajectory:
    names = ["positions", "velocities", "forces", "energies"]
    if group[0].stress is not None:
        names.append("stress")
    arrays = {name: np.concatenate([getattr(each, name) for each in group]) for name in names}
    cells = np.concatenate([np.broadcast_to(each.cell, (each.n_frames, 3, 3)) for each in group])
    return group[0].replace(**arrays, cell=cells[0] if (cells == cells[0]).all() else cells)
