"""The fastest period of a run, and the step that it allows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dyntrain.data.spectrum import check_step, fastest_period_fs
from dyntrain.errors import UserError
from dyntrain.units import FS
from made_runs import morse_trajectory


def vibrating(  # type: ignore[no-untyped-def]
    period_fs: float,
    dt_fs: float = 0.5,
    n_frames: int = 400,
    breaks: tuple[int, ...] = (),
    overtone: float = 0.0,
):
    """One atom swings with the period, the others ten times slower.

    Args:
        overtone: velocity's amplitude at twice the frequency.
    """
    run = morse_trajectory(n_frames, dt_fs=dt_fs)
    phase = 2 * math.pi * np.arange(n_frames)[:, None] * dt_fs
    slow, fast = 10 * period_fs, period_fs
    forces = np.repeat(np.sin(phase / slow)[:, None], run.n_atoms, axis=1)
    pushes = np.repeat(-slow * np.cos(phase / slow)[:, None], run.n_atoms, axis=1)
    forces[:, 1] += 10 * (np.sin(phase / fast) + 2 * overtone * np.sin(2 * phase / fast))
    pushes[:, 1] -= 10 * fast * (np.cos(phase / fast) + overtone * np.cos(2 * phase / fast))
    velocities = pushes * FS / (2 * math.pi) / run.masses[:, None]
    alike = (np.broadcast_to(x, run.forces.shape).copy() for x in (forces, velocities))
    return run.replace(**dict(zip(("forces", "velocities"), alike, strict=True)), breaks=breaks)


@pytest.mark.parametrize("period_fs", [7.3, 11.0, 20.0])
def test_the_period_is_found_though_one_atom_alone_has_it(period_fs: float) -> None:
    found = fastest_period_fs(vibrating(period_fs))
    assert found is not None
    # Never slower than it is; faster by the width of the window function at most.
    assert 0.9 * period_fs < found <= period_fs * 1.01


def test_the_overtone_of_a_hot_bond_is_no_faster_mode() -> None:
    """It has 6 % of the bond's kinetic energy, 3 % of the atom's."""
    found = fastest_period_fs(vibrating(9.0, overtone=0.25))
    assert found is not None and found == pytest.approx(9.0, rel=0.08)


@pytest.mark.parametrize("dt_fs", [4.0, 9.0, 21.5, 22.5])
def test_frames_too_far_apart_for_the_spectrum_are_seen_by_accelerations(dt_fs: float) -> None:
    """Near 22 fs an 11 fs vibration seems to stand still; in a mean over modes it is a bit slower."""
    found = fastest_period_fs(vibrating(11.0, dt_fs=dt_fs, n_frames=50))
    assert found is not None and 9.0 < found < 16.0


def test_breaks_leave_stretches_and_short_runs_leave_nothing() -> None:
    assert fastest_period_fs(vibrating(11.0, breaks=(180,))) == pytest.approx(10.3, abs=0.8)
    assert fastest_period_fs(vibrating(11.0, n_frames=30)) is None


def test_too_long_a_step_is_refused_with_the_longest_that_is_not() -> None:
    run = vibrating(11.0)
    check_step([run], 5)
    with pytest.raises(UserError, match=r"a step of 3 fs is too long .* use a stride of at most 5"):
        check_step([run], 6)
    with pytest.raises(UserError, match="save the run more often"):
        check_step([vibrating(11.0, dt_fs=4.0)], 1)
