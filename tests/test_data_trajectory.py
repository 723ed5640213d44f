"""Trajectory: refuses what does not fit together, slices, and records kicks that reproduce every run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dyntrain.data.readers import read_trajectories
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.integrators import VelocityVerlet
from made_runs import morse_trajectory

SHIPPED = Path(__file__).parent / "data" / "h2pd6gra_80.traj"


def rolled(run: Trajectory) -> tuple[float, float]:
    """Largest deviation (Å, Å/ASE time) from a run of velocity Verlet with its forces and kicks."""
    verlet, kicks, forces = VelocityVerlet(run.dt), run.kicks(), torch.from_numpy(run.forces)
    state, away, astray = run.state(0), 0.0, 0.0
    for k in range(run.n_frames - 1):
        drifted = verlet.drift(state, forces[k], kicks.positions[k])
        state = verlet.finish(drifted, forces[k], forces[k + 1], kicks.velocities[k])
        away = max(away, float((state.positions - torch.from_numpy(run.positions[k + 1])).abs().max()))
        astray = max(astray, float((state.velocities - torch.from_numpy(run.velocities[k + 1])).abs().max()))
    return away, astray


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "largest_kick"),
    [
        # Å: δr and δv dt. Rounding where only velocity Verlet acted (PWmat prints 10 digits of ~5 Å).
        ("mgo_nve_dft", 5e-14),
        ("h2pd6gra", 5e-15),
        ("ch4_nve_dft", 5e-4),
        ("ch4_nvt_dft", 2e-3),
        ("ethanol_nvt_dft", 2e-3),
    ],
)
def test_kicks_reproduce_every_run_to_rounding(shared_data: Path, name: str, largest_kick: float) -> None:
    for run in read_trajectories(shared_data / "data" / name):
        kicks = run.kicks()
        size = max(float(kicks.positions.abs().max()), float(kicks.velocities.abs().max()) * run.dt)
        assert 0 < size < largest_kick
        away, astray = rolled(run)
        assert away <= 1e-15  # Å: not one of the recorded digits differs
        assert astray <= 1e-17


@pytest.mark.shared
def test_between_its_resets_the_methane_run_is_velocity_verlet(shared_data: Path) -> None:
    (run,) = read_trajectories(shared_data / "data" / "ch4_nve_dft")
    kicks = run.kicks()
    steps = torch.ones(run.n_frames - 1, dtype=torch.bool)
    steps[98::100] = False
    assert float(kicks.positions.abs().max()) < 1e-9
    assert float(kicks.velocities[steps].abs().max()) * run.dt < 1e-9


def test_the_shipped_run_is_velocity_verlet() -> None:
    (run,) = read_trajectories(SHIPPED)
    assert (run.n_frames, run.formula, run.dt_fs) == (80, "C49H2Pd6", 0.5)
    assert float(run.kicks().positions.abs().max()) < 5e-15
    assert rolled(run) == (0.0, 0.0)


def test_kicks_of_a_window_are_those_of_the_run() -> None:
    run = morse_trajectory()
    window, whole = run.kicks(10, 18), run.kicks()
    assert window.n_steps == 7
    torch.testing.assert_close(window.positions, whole.positions[10:17], rtol=0, atol=0)
    torch.testing.assert_close(window.velocities, whole.velocities[10:17], rtol=0, atol=0)


@given(st.integers(0, 39), st.integers(1, 40), st.sets(st.integers(1, 39)))
def test_a_slice_keeps_frames_breaks_and_dt(start: int, n: int, breaks: set[int]) -> None:
    run = morse_trajectory(40).replace(breaks=tuple(breaks))
    stop = min(start + max(n, 2), 40)
    if stop - start < 2:
        with pytest.raises(UserError, match="at least 2 consecutive frames"):
            run[start:stop]
        return
    part = run[start:stop]
    assert part.breaks == tuple(sorted(b - start for b in breaks if start < b < stop))
    assert (part.dt, part.first_frame) == (run.dt, start)
    assert np.shares_memory(part.positions, run.positions)
    np.testing.assert_array_equal(part.forces, run.forces[start:stop])


def test_a_slice_with_a_step_is_refused() -> None:
    with pytest.raises(UserError, match="only be sliced with step 1, got 2"):
        morse_trajectory()[::2]


def test_state_and_kicks_do_not_alias_the_run() -> None:
    run = morse_trajectory()
    before = run.positions.copy()
    run.state(3).positions.add_(1.0)
    run.kicks().positions.add_(1.0)
    np.testing.assert_array_equal(run.positions, before)


def test_a_changing_cell_is_kept_frame_by_frame() -> None:
    run = morse_trajectory(5)
    cells = run.cell * np.linspace(1.0, 1.1, 5)[:, None, None]
    grown = run.replace(cell=cells)
    assert not grown.fixed_cell
    np.testing.assert_array_equal(grown.cell_at(3), cells[3])
    np.testing.assert_array_equal(grown[2:5].cell_at(0), cells[2])
    assert grown.replace(cell=np.stack([run.cell] * 5)).fixed_cell


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"forces": np.zeros((60, 3, 3))}, r"forces must have shape \(60, 4, 3\), got \(60, 3, 3\)"),
        ({"energies": np.zeros(59)}, r"energies must have shape \(60,\), got \(59,\)"),
        ({"positions": np.zeros((60, 4))}, r"positions must have shape \[n_frames, n_atoms, 3\]"),
        ({"cell": np.zeros((3, 3))}, "frame 0: pbc is on along a but that cell vector is zero or missing"),
        ({"cell": np.ones((3, 3))}, "frame 0: the periodic cell has no volume"),
        ({"cell": np.full((3, 3), np.nan)}, "frame 0: cell is nan"),
        ({"dt": 0.0}, "time step must be positive, got 0 fs"),
        ({"dt": float("nan")}, "time step must be positive, got nan fs"),
        ({"masses": np.array([12.0, 1.0, -1.0, 1.0])}, "atom 2 has -1 u"),
        ({"atomic_numbers": np.array([6, 1, 0, 1])}, r"unknown atomic numbers in \[0, 1, 6\]"),
        ({"breaks": (60,)}, r"breaks must lie between 1 and 59, got \[60\]"),
        ({"velocities": "fast"}, "velocities is not an array of numbers"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        morse_trajectory().replace(**changes)


@pytest.mark.parametrize(
    ("name", "where", "sentence"),
    [
        ("energies", 17, "made_0, frame 17: energy is nan"),
        ("forces", (4, 2, 1), "made_0, frame 4: forces of atom 2 is nan"),
        ("positions", (0, 0, 0), "made_0, frame 0: positions of atom 0 is nan"),
    ],
)
def test_nan_is_refused_by_frame_and_name(name: str, where: Any, sentence: str) -> None:
    run = morse_trajectory()
    array = getattr(run, name).copy()
    array[where] = np.nan
    with pytest.raises(UserError, match=sentence):
        run.replace(**{name: array})
