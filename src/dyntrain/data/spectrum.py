"""The fastest vibration of a recorded run, which limits how long a step of a roll-out may be."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dyntrain.data.motion import instant_period
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.units import FS

STABLE_SHARE = 0.8
"""Velocity Verlet is stable for steps below T_min/π; this share of it leaves room for a stiffer model."""

# What holds less than this share of an atom's kinetic energy are leakage and overtones of slower modes: in a
# Morse bond of depth D with the energy E in its vibration the overtone has E/(4 D), 4 % at 0.8 of 5 eV.
_SHARE_OF_ENERGY = 0.05
_SHORTEST, _FEWEST = 32, 16


def fastest_period_fs(trajectory: Trajectory) -> float | None:
    """Period of the fastest mode that carries kinetic energy, fs; None where the run is too short to tell.

    From the power spectrum of each atom's forces over each stretch between breaks (Hann window), divided by
    ω²: that of its velocities without what a thermostat or barostat adds to them. It is the frequency above
    which only a twentieth of the power lies; the atom with the highest counts, so that one O–H bond is seen
    in a thousand atoms. A period below two intervals between frames is not seen in the spectrum: it would
    look longer. Where there may be one, accelerations and velocities tell it (`_unsampled_period_fs`).
    """
    fastest = _unsampled_period_fs(trajectory)
    for first, stop in trajectory.stretches:
        n = stop - first
        if n < _SHORTEST:
            continue
        # The middle part of long runs tells as much as all of it.
        n = min(n, 4096)
        forces = np.asarray(trajectory.forces[first : first + n])
        varying = (forces - forces.mean(axis=0)) * np.hanning(n)[:, None, None]
        power = (np.abs(np.fft.rfft(varying, axis=0)) ** 2).sum(axis=2)[1:]
        power /= np.arange(1, power.shape[0] + 1)[:, None] ** 2
        tail = power[::-1].cumsum(axis=0)[::-1]
        moving = tail[0] > 0
        if trajectory.fixed is not None:
            moving &= ~trajectory.fixed
        if not moving.any():
            continue
        above = (tail[:, moving] > _SHARE_OF_ENERGY * tail[0, moving]).any(axis=1)
        period = n * trajectory.dt_fs / (1 + int(np.flatnonzero(above)[-1]))
        fastest = period if fastest is None else min(fastest, period)
    return fastest


def _unsampled_period_fs(run: Trajectory) -> float | None:
    """`instant_period` in fs, if below four intervals, else None."""
    if run.n_frames < _FEWEST:
        return None
    some = slice(None, None, max(1, run.n_frames // 4096))
    period = instant_period(run.velocities[some], run.forces[some], run.masses)
    return None if period is None or period > 4 * run.dt else period / FS


def check_step(trajectories: Sequence[Trajectory], stride: int) -> None:
    """Refuse steps of ``stride`` frames that velocity Verlet cannot take, where no small ones are made.

    Raises:
        UserError: a run whose step is above 0.8 T_min/π, with the largest stride that is not.
    """
    for run in trajectories:
        period = fastest_period_fs(run)
        if period is None or (run.small_steps > 1 and stride == 1):
            continue
        limit = STABLE_SHARE * period / math.pi
        step = stride * run.dt_fs
        if step > limit:
            most = int(limit / run.dt_fs)
            mend = f"use a stride of at most {most}" if most else "save the run more often"
            raise UserError(
                f"{run.file}: a step of {step:.3g} fs is too long for its fastest motion (period "
                f"{period:.3g} fs): roll-outs are stable up to {limit:.3g} fs; {mend}."
            )
