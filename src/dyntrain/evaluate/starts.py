"""Where evaluations start: windows and frames drawn from held-out runs, spread over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dyntrain.data.segments import Segment, Segments, find_segments
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.state import State, concatenate

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""

# A batch holds at most about this many atoms: enough to fill a processor, little enough for any memory.
_ATOMS_AT_ONCE = 4096


def common_dt_fs(trajectories: Sequence[Trajectory]) -> float:
    if not trajectories:
        raise UserError("There are no held-out runs to evaluate on: give at least one file.")
    first = trajectories[0]
    for run in trajectories:
        if not math.isclose(run.dt, first.dt, rel_tol=1e-6):
            raise UserError(
                f"all runs must have one time step to be averaged over time, but {first.file} has "
                f"{first.dt_fs:g} fs and {run.file} has {run.dt_fs:g} fs: evaluate them one after the other"
            )
    return first.dt_fs


# Where the runs are shorter than asked, following a few starts a little shorter tells more than one alone.
_FEWEST_STARTS = 6


def longest_horizon(trajectories: Sequence[Trajectory], n_steps: int, n_starts: int) -> int:
    """``n_steps`` where some run allows them, else the most steps that leave a few starts (or one)."""
    lengths = [stop - first for run in trajectories for first, stop in run.stretches]
    if max(lengths) > n_steps:
        return n_steps
    wanted = min(n_starts, _FEWEST_STARTS, sum(lengths))
    steps = max(lengths) - 1
    while sum(max(0, length - steps) for length in lengths) < wanted:
        steps -= 1
    return steps


def spread(segments: Segments, n_wanted: int, seed: int) -> Segments:
    """Windows at equal distances, the first one drawn: spread out as far as they can be."""
    if n_wanted < 1:
        raise UserError(f"the number of starts must be at least 1, got {n_wanted}")
    if len(segments) <= n_wanted:
        return segments
    places = (np.arange(n_wanted) + np.random.default_rng(seed).random()) * len(segments) / n_wanted
    return segments.take(places.astype(np.int64))


def chunks_of(segments: Segments, trajectories: Sequence[Trajectory]) -> list[list[Segment]]:
    largest = max(run.n_atoms for run in trajectories)
    size = max(1, _ATOMS_AT_ONCE // largest)
    return [list(segments[first : first + size]) for first in range(0, len(segments), size)]


def pick_starts(trajectories: Sequence[Trajectory], n_runs: int, seed: int = 0) -> State:
    """Recorded positions and velocities to start free runs from, spread over all runs, as one batch."""
    chosen = spread(find_segments(trajectories, 1, "held-out"), n_runs, seed)
    return concatenate([trajectories[segment.run].state(segment.start) for segment in chosen])


def as_numpy(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()
