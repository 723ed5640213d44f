"""Structures of no run, each labelled by itself: read one by one, kept in few long arrays, for S = 1."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dyntrain.data.keys import AUTOMATIC, KeyMap
from dyntrain.data.raw import RawRun, as_told
from dyntrain.data.readers import (
    expand_paths,
    is_stored,
    read_raw,
    read_raw_structures,
    read_runs,
    read_trajectories,
)
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
    first = _alone(read_raw(Path(file), keys)).slice(0, 1)
    return first.replace(velocities=velocities[None], dt=dt_fs * FS, fixed_atoms=tuple(fixed_atoms))


def read_structures(paths: Sequence[str | os.PathLike[str]], keys: KeyMap = AUTOMATIC) -> list[Trajectory]:
    """Read labelled structures of no run, as training sets hold them: any atoms, in any order.

    Args:
        paths: files, folders of them, or patterns; also runs, of which every frame is taken for itself.
        keys: which keys hold what, and in which units, where the files do not say.

    Returns:
        Those of the same atoms together; velocities that are not there are zero.

    Raises:
        UserError: whatever is wrong with a path or its content, in one sentence.
    """
    found: list[Trajectory] = []
    for file in expand_paths(paths):
        if is_stored(file):
            found += [run.replace(alone=True) for run in read_runs(file, keys=keys)]
        else:
            found += [_alone(run) for run in read_raw_structures(file, keys)]
    return joined(found)


def read_runs_and_structures(
    runs: Sequence[str], structures: Sequence[str], dt_fs: float | None = None, keys: KeyMap = AUTOMATIC
) -> list[Trajectory]:
    """What ``read_trajectories`` and ``read_structures`` read of their paths, of which there may be none."""
    found = read_trajectories(runs, dt_fs, keys) if runs else []
    return found + (read_structures(structures, keys) if structures else [])


def _alone(run: RawRun) -> Trajectory:
    """Frames of a file as structures of no run, whose dt means nothing."""
    velocities = np.zeros_like(run.positions) if run.velocities is None else run.velocities
    return as_told(run, velocities=velocities, dt=FS, breaks=(), alone=True)


def joined(structures: Sequence[Trajectory]) -> list[Trajectory]:
    """Those of the same atoms in one set of arrays each: a file for every structure would be slow to open."""
    alike: dict[tuple[object, ...], list[Trajectory]] = {}
    for each in structures:
        atoms = (each.atomic_numbers.tobytes(), each.masses.tobytes(), each.fixed_atoms)
        rest = (each.pbc.tobytes(), each.stress is None)
        alike.setdefault((*atoms, *rest), []).append(each)
    return [_as_one(group) for group in alike.values()]


def _as_one(group: Sequence[Trajectory]) -> Trajectory:
    names = ["positions", "velocities", "forces", "energies"]
    if group[0].stress is not None:
        names.append("stress")
    arrays = {name: np.concatenate([getattr(each, name) for each in group]) for name in names}
    cells = np.concatenate([np.broadcast_to(each.cell, (each.n_frames, 3, 3)) for each in group])
    return group[0].replace(**arrays, cell=cells[0] if (cells == cells[0]).all() else cells)
