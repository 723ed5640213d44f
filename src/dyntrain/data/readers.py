"""Readers: paths, folders and patterns to Trajectories; the layout of each decides how it is read."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dyntrain.data.formats.deepmd import is_deepmd
from dyntrain.data.formats.frames import restated_masses
from dyntrain.data.formats.h5md import read_h5md
from dyntrain.data.formats.table import RUN_SUFFIXES, find_format, is_run
from dyntrain.data.keys import AUTOMATIC, KeyMap
from dyntrain.data.natural_order import natural_order
from dyntrain.data.raw import RawRun, to_trajectory
from dyntrain.data.store import is_store, open_store
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError


def read_trajectories(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    dt_fs: float | None = None,
    keys: KeyMap = AUTOMATIC,
) -> list[Trajectory]:
    """Read reference runs, in the order given (within a pattern or folder by number and name).

    Args:
        paths: files, folders of them, or patterns as ``runs/*.traj``. Of a run in several files (CP2K,
            cp.x, i-PI, VASP) one is named and the others are found beside it.
        dt_fs: time between frames in fs. Without it the files' time stamps count, else dt is inferred
            from positions and forces where these fit exactly.
        keys: which keys hold what, and in which units, where the files do not say.

    Raises:
        UserError: whatever is wrong with a path or its content, in one sentence.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    return [run for file in expand_paths(paths) for run in read_runs(file, dt_fs, keys)]


def read_runs(
    file: str | os.PathLike[str], dt_fs: float | None = None, keys: KeyMap = AUTOMATIC
) -> list[Trajectory]:
    """Read one file: a single run, or all runs of a store (see `read_trajectories`)."""
    file = Path(file)
    if not file.exists():
        raise UserError(f"There is no file {file}.")
    if not is_stored(file):
        return [to_trajectory(read_raw(file, keys), dt_fs)]
    runs = open_store(file)
    for run in runs:
        if keys.masses:
            raise UserError(f"{run.file} is stored with its masses; convert again to change them.")
        if dt_fs is not None and abs(dt_fs / run.dt_fs - 1) > 1e-9:
            raise UserError(f"{run.file} is stored with dt = {run.dt_fs:g} fs; convert again to change it.")
    return runs


def is_stored(file: Path) -> bool:
    """Whether a file is a store."""
    return find_format(file).read is read_h5md and is_store(file)


def read_raw(file: Path, keys: KeyMap) -> RawRun:
    """What a file says of its run, with the masses that the user states."""
    return _with_masses(find_format(file).read(file, keys), keys)


def read_raw_structures(file: Path, keys: KeyMap) -> list[RawRun]:
    """The same of structures of no run, those of the same atoms together."""
    chosen = find_format(file)
    if chosen.read_structures is None:
        return [read_raw(file, keys)]
    return [_with_masses(run, keys) for run in chosen.read_structures(file, keys)]


def _with_masses(run: RawRun, keys: KeyMap) -> RawRun:
    """The run with the masses that the user states."""
    if not keys.masses:
        return run
    told = ", ".join(f"{symbol} {mass:g} u" for symbol, mass in keys.masses.items())
    masses = restated_masses(run.atomic_numbers, run.masses, keys.masses)
    notes = [*run.notes, f"Masses as you state them: {told}."]
    return dataclasses.replace(run, masses=masses, notes=notes)


def read_trajectory(
    file: str | os.PathLike[str], dt_fs: float | None = None, keys: KeyMap = AUTOMATIC
) -> Trajectory:
    """Read a file that holds one run (see `read_trajectories`)."""
    runs = read_runs(file, dt_fs, keys)
    if len(runs) > 1:
        raise UserError(f"{file} holds {len(runs)} runs, where one is expected.")
    return runs[0]


def expand_paths(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The files (and DeePMD folders) that paths, folders and patterns stand for.

    Raises:
        UserError: nothing there, a folder without runs, or a file that is listed twice.
    """
    files: list[Path] = []
    for path in paths:
        files += _expand(os.fspath(path))
    if not files:
        raise UserError("No files with reference runs are given.")
    seen: set[Path] = set()
    for file in files:
        if (real := file.resolve()) in seen:
            raise UserError(f"{file} is listed twice.")
        seen.add(real)
    return files


def _expand(path: str) -> list[Path]:
    expanded = Path(path).expanduser()
    if expanded.is_dir():
        return _runs_in(expanded, path)
    if expanded.exists():
        return [expanded]
    if glob.has_magic(path):
        found = [Path(name) for name in glob.glob(str(expanded), recursive=True)]
        if files := [file for file in found if file.is_file() or is_deepmd(file)]:
            return sorted(files, key=natural_order)
        raise UserError(f"No file matches {path}.")
    raise UserError(f"There is no file {path}.")


def _runs_in(folder: Path, path: str) -> list[Path]:
    if is_deepmd(folder):
        return [folder]
    entries = list(folder.iterdir())
    names = [file for file in entries if (file.is_file() and is_run(file)) or is_deepmd(file)]
    if not names:
        raise UserError(
            f"The folder {path} holds no runs ({', '.join('*' + s for s in RUN_SUFFIXES)}, or those of VASP, "
            "CP2K, Quantum ESPRESSO, FHI-aims, DeePMD by their names); name the files."
        )
    return sorted(names, key=natural_order)
