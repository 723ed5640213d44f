"""Readers: paths, folders and patterns to Trajectories; the layout of each decides how it is read."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from dyntrain.data.ase_files import read_ase
from dyntrain.data.paper_layout import read_paper_layout, velocity_file
from dyntrain.data.raw import to_trajectory
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError

# What is taken from a folder; single files may have any name and format that ASE knows.
_FOLDER_SUFFIXES = (".traj", ".extxyz", ".xyz")
_PACKED = (".gz", ".bz2", ".xz")


def read_trajectories(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], dt_fs: float | None = None
) -> list[Trajectory]:
    """Read reference runs, one a file, in the order given (within a pattern or folder by number and name).

    Args:
        paths: files that ASE reads with positions, energy and forces; files `traj_<i>.traj` beside a
            `velall-<i>`; folders of such files; patterns as ``runs/*.traj``.
        dt_fs: time between frames in fs. Without it the files' time stamps count, else dt is inferred
            from positions and forces where these fit exactly.

    Raises:
        UserError: whatever is wrong with a path or its content, in one sentence.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    return [read_trajectory(file, dt_fs) for file in expand_paths(paths)]


def read_trajectory(file: str | os.PathLike[str], dt_fs: float | None = None) -> Trajectory:
    """Read one file (see `read_trajectories`)."""
    file = Path(file)
    velocities = velocity_file(file)
    run = read_ase(file) if velocities is None else read_paper_layout(file, velocities)
    return to_trajectory(run, dt_fs)


def expand_paths(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The files that paths, folders and patterns stand for.

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
        names = [file for file in expanded.iterdir() if file.is_file() and _is_run(file)]
        if not names:
            raise UserError(
                f"The folder {path} holds no runs ({', '.join('*' + s for s in _FOLDER_SUFFIXES)}); name the "
                "files."
            )
        return sorted(names, key=_natural)
    if expanded.exists():
        return [expanded]
    if glob.has_magic(path):
        found = [Path(name) for name in glob.glob(str(expanded), recursive=True)]
        if files := [file for file in found if file.is_file()]:
            return sorted(files, key=_natural)
        raise UserError(f"No file matches {path}.")
    raise UserError(f"There is no file {path}.")


def _is_run(file: Path) -> bool:
    name = file.name
    for packed in _PACKED:
        name = name.removesuffix(packed)
    return name.endswith(_FOLDER_SUFFIXES)


def _natural(file: Path) -> list[tuple[int, int | str]]:
    """Sort run_2 before run_10."""
    return [(0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"(\d+)", str(file)) if p]
