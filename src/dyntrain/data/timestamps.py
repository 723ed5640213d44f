"""Time stamps: the interval between frames, and where time jumps, from what each frame says of its time."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from dyntrain.errors import UserError

# Keys of a frame's info that hold its time (first group) or the interval (second), and their unit in fs.
_TIMES = {"time_fs": 1.0, "time_ps": 1000.0, "time": 1.0, "Time": 1.0}
_INTERVALS = {"dt_fs": 1.0, "timestep_fs": 1.0, "time_step_fs": 1.0}
TIME_KEYS = (*_TIMES, *_INTERVALS)
_LARGEST_STRIDE = 100_000


def settle_time_stamps(
    stamps: Sequence[dict[str, Any]], file: str
) -> tuple[float | None, tuple[int, ...], list[str]]:
    """The interval between frames in fs (None without stamps), the frames where time jumps, and notes.

    Raises:
        UserError: stamps that are no numbers, stand in some frames only, or do not rise evenly.
    """
    for key, unit in _TIMES.items():
        if (times := _column(stamps, key, file)) is not None:
            interval, breaks, notes = _from_times(times * unit, key, file)
            if unit == 1.0 and not key.endswith("_fs"):
                notes.append(f"The time stamps `{key}` are taken as fs.")
            return interval, breaks, notes
    for key, unit in _INTERVALS.items():
        if (intervals := _column(stamps, key, file)) is not None:
            if np.ptp(intervals) > 1e-6 * abs(intervals[0]):
                raise UserError(f"{file}: `{key}` changes from {intervals.min():g} to {intervals.max():g}.")
            return float(intervals[0] * unit), (), []
    return None, (), []


def stride_of(steps: Sequence[int]) -> int | None:
    """Steps of the AIMD from frame to frame, of the frames' step numbers; None where these are uneven."""
    # Python's integers: the numbers of a damaged file may be of any size.
    gaps = Counter(int(after) - int(before) for before, after in itertools.pairwise(steps))
    if not gaps:
        return None
    ((stride, count),) = gaps.most_common(1)
    return stride if 0 < stride < _LARGEST_STRIDE and count > 0.9 * gaps.total() else None


def _column(stamps: Sequence[dict[str, Any]], key: str, file: str) -> np.ndarray | None:
    given = [key in stamp for stamp in stamps]
    if not any(given):
        return None
    if not all(given):
        raise UserError(f"{file}, frame {given.index(False)} has no `{key}`, but other frames have.")
    try:
        column = np.array([float(stamp[key]) for stamp in stamps])
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: `{key}` is no number ({error}).") from error
    if not np.isfinite(column).all():
        frame = int(np.flatnonzero(~np.isfinite(column))[0])
        raise UserError(f"{file}, frame {frame}: `{key}` is {column[frame]}, expected a finite number.")
    return column


def _from_times(times: np.ndarray, key: str, file: str) -> tuple[float | None, tuple[int, ...], list[str]]:
    steps = np.diff(times)
    if steps.size == 0:
        return None, (), []
    interval = float(np.median(steps))
    # A jump is off by a whole step; less than a quarter of one is what few printed digits leave.
    odd = np.abs(steps - interval) > 0.25 * abs(interval)
    if interval <= 0 or odd.mean() > 0.1:
        raise UserError(
            f"{file}: the time stamps `{key}` do not rise evenly (steps from {steps.min():g} to "
            f"{steps.max():g} fs); frames are shuffled or missing: sort or split the file."
        )
    interval = float(steps[~odd].mean())
    breaks = tuple(int(frame) for frame in 1 + np.flatnonzero(odd))
    notes = (
        [f"Time jumps at {len(breaks)} frames, first at {breaks[0]}; no window crosses them."]
        if breaks
        else []
    )
    return interval, breaks, notes
