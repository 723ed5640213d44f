"""Splits: which runs, or which time blocks of a single run, train, validate and test."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from dyntrain.data.trajectory import ARRAYS, Trajectory
from dyntrain.errors import UserError

# Of copies in another format: extended XYZ holds eight decimals.
_SAME_ENERGY, _SAME_PLACE = 1e-6, 1e-5


@dataclass(frozen=True, eq=False)
class Split:
    """Runs for training, validation and (perhaps) test, and one sentence on how they were chosen."""

    train: list[Trajectory]
    validation: list[Trajectory]
    test: list[Trajectory]
    how: str

    def __post_init__(self) -> None:
        for name in ("train", "validation"):
            if not getattr(self, name):
                raise UserError(f"The {name} split is empty: give it at least one run.")
        self._check_elements()
        self._check_disjoint()

    def _check_elements(self) -> None:
        known = {int(z) for run in self.train for z in run.atomic_numbers}
        for run in (*self.validation, *self.test):
            if unseen := sorted({int(z) for z in run.atomic_numbers} - known):
                raise UserError(
                    f"{run.file}, held out, has {', '.join(chemical_symbols[z] for z in unseen)}, which no "
                    "training run has; move a run with these elements to train."
                )

    def _check_disjoint(self) -> None:
        named = [(name, run) for name in ("train", "validation", "test") for run in getattr(self, name)]
        for (name, run), (other_name, other) in itertools.combinations(named, 2):
            if name == other_name:
                continue
            if _share_frames(run, other):
                raise UserError(
                    f"{run.file} is in both {name} and {other_name}; a frame belongs to one split only."
                )
            if _is_copy(run, other):
                raise UserError(
                    f"{run.file} ({name}) and {other.file} ({other_name}) hold the same frames; a frame "
                    "belongs to one split only: leave one of the files out."
                )


def _share_frames(run: Trajectory, other: Trajectory) -> bool:
    if run is other:
        return True
    if run.file == ARRAYS or Path(run.file).resolve() != Path(other.file).resolve():
        return False
    later, earlier = (run, other) if run.first_frame > other.first_frame else (other, run)
    return later.first_frame < earlier.first_frame + earlier.n_frames


def _is_copy(run: Trajectory, other: Trajectory) -> bool:
    """Whether files hold the same frames: one run in two formats, or with what came before a restart.

    One common frame is no copy: runs may begin at the same structure, or where another ended.
    """
    if run.file == ARRAYS or not np.array_equal(run.atomic_numbers, other.atomic_numbers):
        return False
    order = np.argsort(other.energies, kind="stable")
    energies = np.asarray(other.energies)[order]
    places = np.searchsorted(energies, run.energies - _SAME_ENERGY).clip(max=energies.size - 1)
    near = np.flatnonzero(np.abs(energies[places] - run.energies) < _SAME_ENERGY)
    gaps = np.asarray(run.positions[near]) - np.asarray(other.positions)[order[places[near]]]
    return int((np.abs(gaps).max(axis=(1, 2)) < _SAME_PLACE).sum()) > 1


def explicit_split(
    train: Sequence[Trajectory], validation: Sequence[Trajectory], test: Sequence[Trajectory] = ()
) -> Split:
    """The user's own choice of runs.

    Raises:
        UserError: an empty split, a run in two of them, or elements that only held-out runs have.
    """
    return Split(list(train), list(validation), list(test), "As listed in the configuration.")


def split_by_run(trajectories: Sequence[Trajectory], fraction: float = 0.2) -> Split:
    """The last runs, about `fraction` of them and at least one, validate; the others train."""
    n_runs = len(trajectories)
    if n_runs < 2:
        raise UserError(f"Splitting by run needs at least 2 runs, got {n_runs}.")
    _check_fraction(fraction)
    n_validation = min(max(1, round(fraction * n_runs)), n_runs - 1)
    train, validation = list(trajectories[:-n_validation]), list(trajectories[-n_validation:])
    return Split(train, validation, [], f"By run: the last {n_validation} of {n_runs} runs validate.")


def split_by_time(trajectory: Trajectory, max_length: int, fraction: float = 0.2) -> Split:
    """The last `fraction` of a single run validates, the time before it trains.

    Between the two blocks `max_length` frames stay unused, so that no training window of up to
    `max_length` frames touches a validation window, not even by a neighbouring frame.

    Raises:
        UserError: the run is too short for a window of `max_length` frames in both blocks.
    """
    _check_fraction(fraction)
    n_frames = trajectory.n_frames
    n_validation = max(round(fraction * n_frames), max_length, 2)
    n_train = n_frames - n_validation - max_length
    if n_train < max(max_length, 2):
        raise UserError(
            f"{trajectory.file} has {n_frames} frames, too few to train and validate on segments of "
            f"{max_length} frames: {n_validation} for validation and a gap of {max_length} leave "
            f"{max(n_train, 0)}; use a segment length of at most {max(n_frames // 3, 1)} or give more runs."
        )
    train = trajectory.slice(0, n_train)
    validation = trajectory.slice(n_train + max_length, n_frames)
    how = (
        f"By time: of one run of {n_frames} frames, frames 0-{n_train - 1} train and "
        f"{n_train + max_length}-{n_frames - 1} validate."
    )
    return Split([train], [validation], [], how)


def automatic_split(trajectories: Sequence[Trajectory], max_length: int, fraction: float = 0.2) -> Split:
    """By run when there are two or more, else by time blocks of the single run."""
    if not trajectories:
        raise UserError("There are no runs to split: give at least one file under `data`.")
    if len(trajectories) == 1:
        return split_by_time(trajectories[0], max_length, fraction)
    return split_by_run(trajectories, fraction)


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise UserError(f"The validation fraction must lie between 0 and 1, got {fraction:g}.")
