"""Free runs and the criteria by which they fail."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.data import covalent_radii

from dyntrain.data.trajectory import Trajectory
from dyntrain.evaluate import (
    FailureCriterion,
    criterion_for,
    free_runs,
    pick_starts,
)
from dyntrain.state import State, concatenate
from dyntrain.units import FS
from evaluations import TRUE, BreaksBeyond, Nothing, dimer, record


@pytest.fixture(scope="module")
def nve() -> Trajectory:
    return record()


def test_a_free_dimer_fails_when_its_bond_is_half_an_angstrom_longer() -> None:
    # Relative speed 0.02 Å/fs: 0.5 Å off after 25 fs; the check is at every step and strict.
    runs = free_runs(Nothing(), concatenate([dimer(0.01 / FS), dimer()]), 0.3 * FS, 60.0)
    assert runs.failed.tolist() == [True, False]
    assert runs.failure_fs.tolist() == pytest.approx([25.2, 60.0])
    assert runs.reasons == {0: "a bond length is off by 0.50 Å"}
    assert runs.time_to_failure() == {
        "median": pytest.approx(25.2),
        "restricted_mean": pytest.approx((25.2 + 60.0) / 2),
        "median_low": pytest.approx(25.2),
        "median_high": None,
        "n_failed": 1,
        "n_censored": 1,
        "n_runs": 2,
        "run_length_fs": pytest.approx(60.0),
    }
    shown = np.isfinite(runs.total_energy)
    assert (shown[:, 0] == (runs.times_fs < 25.1)).all() and shown[:, 1].all()


def test_an_energy_that_is_off_by_one_electronvolt_is_a_failure() -> None:
    # Both atoms move along z at 0.02 Å/fs; the energy rises by 2 · 0.5 eV/Å · 0.02 Å/fs: 1 eV after 50 fs.
    moving = dimer().replace(velocities=torch.tensor([[0, 0, 0.02 / FS]] * 2, dtype=torch.float64))
    runs = free_runs(Nothing(rate=0.5), moving, 0.3 * FS, 90.0)
    assert runs.failure_fs.tolist() == pytest.approx([50.1])
    assert runs.reasons == {0: "the total energy is off by +1.00 eV"}
    assert runs.times_fs[-1] < 51, "no step is taken once all runs have failed"


def test_the_drift_is_that_of_the_total_energy() -> None:
    moving = dimer().replace(velocities=torch.tensor([[0, 0, 0.02 / FS]] * 2, dtype=torch.float64))
    rate = 1e-5  # eV/Å, times 0.02 Å/fs an atom: 2e-7 eV/fs/atom = 0.2 meV/atom/ps
    runs = free_runs(Nothing(rate), concatenate([moving, moving]), 1.0 * FS, 150.0)
    assert runs.drift == pytest.approx([0.2, 0.2])
    assert runs.drift_meV_atom_ps == pytest.approx(0.2)
    assert runs.total_energy[-1] == pytest.approx([3e-5, 3e-5])
    assert free_runs(Nothing(rate), moving, 1.0 * FS, 90.0).drift_meV_atom_ps is None  # too short to tell


def test_a_conserving_potential_does_not_drift(nve: Trajectory) -> None:
    runs = free_runs(TRUE, pick_starts([nve], 3), nve.dt, 400.0)
    assert not runs.failed.any()
    assert np.abs(runs.drift).max() < 0.01
    assert runs.time_to_failure()["median"] is None


def test_a_burst_is_a_failure_with_its_reason(nve: Trajectory) -> None:
    starts = pick_starts([nve], 2)
    limit = 1.02 * float(starts.positions.norm(dim=-1).max())
    runs = free_runs(BreaksBeyond(limit), starts, nve.dt, 2000.0)
    assert runs.failed.all()
    for run, reason in runs.reasons.items():
        assert reason.startswith("burst: the force on atom") and 0 < runs.failure_fs[run] < 2000
    at_once = free_runs(BreaksBeyond(0.1), starts, nve.dt, 50.0)
    assert at_once.failed.all() and at_once.failure_fs.tolist() == [0.0, 0.0]
    assert at_once.drift_meV_atom_ps is None


def test_the_criterion_is_one_that_the_recording_passes(nve: Trajectory) -> None:
    assert criterion_for([nve]) == FailureCriterion()
    apart = nve.positions.copy()
    apart[:, 1] += np.linspace(0, 2, len(nve))[:, None]  # the H leaves: a reaction
    reactive = criterion_for([nve, nve.replace(positions=apart)])
    assert reactive.bond_change is None
    assert reactive.kind == "reactive" and reactive.audit_ratio == 3.0 and reactive.closest is not None
    smallest = min(np.linalg.norm(p[0] - p[2]) for p in nve.positions)
    assert reactive.closest[6, 8] == pytest.approx(0.8 * smallest)
    limit = 0.8 * 2 * covalent_radii[1]  # no two H came within bonding distance in the recording
    assert reactive.closest[1, 1] == pytest.approx(limit)
    runs = free_runs(Nothing(), dimer(-0.01 / FS), 0.5 * FS, 30.0, criterion=reactive)
    assert runs.failure_fs[0] == pytest.approx((0.75 - limit) / 0.02, abs=0.5)
    assert "a pair is closer than" in runs.reasons[0]


def test_bonds_across_the_boundary_are_watched() -> None:
    start = State.from_arrays(
        [[0.1, 2, 2], [5.65, 2, 2]],
        [1, 1],
        [1.0, 1.0],
        velocities=[[0.01 / FS, 0, 0], [-0.01 / FS, 0, 0]],
        cell=np.eye(3) * 6,
        pbc=[True] * 3,
    )
    runs = free_runs(Nothing(), start, 0.3 * FS, 60.0)
    assert runs.failure_fs.tolist() == pytest.approx([25.2])
