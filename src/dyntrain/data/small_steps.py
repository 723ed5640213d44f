"""Small steps between frames that lie too far apart for one: how many, and the friction between frames."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dyntrain.data.constraints import find_held
from dyntrain.data.contents import energy_exchange
from dyntrain.data.segments import Segments
from dyntrain.data.spectrum import STABLE_SHARE, fastest_period_fs
from dyntrain.data.thermostat import noise_between_frames
from dyntrain.data.trajectory import Trajectory

# Where no file says how many steps lie between its frames, this many are taken of the fastest period.
_STEPS_A_PERIOD = 20
# Kinetic and potential energies of a run exchange with at least this correlation, thermostatted or not; those
# of a few dozen frames that do not belong together with less.
_EXCHANGE = 0.6


def with_small_steps(run: Trajectory, *, every_step: bool) -> Trajectory:
    """The run with the number of steps that a roll-out takes between its frames.

    One, with the frame's kick, where velocity Verlet is stable over the interval. Else as many as the AIMD
    took, which is exact up to what the thermostat did, or where the file does not say it a twentieth of the
    fastest period each, whose error of phase, (ωh)²/24, remains.

    Left as they are, and refused by ``check_step`` if unrolled: runs of which nothing lies between frames
    (`every_step`), whose velocities were rebuilt from frames so far apart, whose cell changes, in which
    constraints hold bonds or coordinates, whose kinetic energies do not mirror the potential ones, or whose
    atoms noise pushes one by one (Langevin), of which nothing in the frames tells.
    """
    period = None if run.alone else fastest_period_fs(run)
    if period is None:
        return run
    near = run.dt_fs < STABLE_SHARE * period / math.pi
    if near or every_step or run.velocities_origin == "rebuilt" or find_held(run).is_special:
        return run
    if not energy_exchange(run) > _EXCHANGE or noise_between_frames(run):
        return run
    assumed = math.ceil(_STEPS_A_PERIOD * run.dt_fs / period)
    return run.replace(small_steps=run.stride or assumed)


def by_small_steps(segments: Segments, runs: Sequence[Trajectory]) -> list[Segments]:
    """The windows in groups that can be unrolled together: those of as many small steps a frame."""
    if len(segments) == 0:
        return []
    steps = np.array([run.small_steps for run in runs])[segments.runs]
    if segments.length == 1:  # nothing is unrolled
        return [segments]
    return [segments.take(np.flatnonzero(steps == n)) for n in np.unique(steps)]
