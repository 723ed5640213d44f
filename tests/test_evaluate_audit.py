"""The audit: right on one's own way or not, each reference calculation made once, failures counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from ase import Atoms

from dyntrain.errors import UserError
from dyntrain.evaluate import (
    EvaluationSettings,
    FreeRuns,
    audit,
    check_reference,
    evaluate_model,
    free_runs,
    pick_starts,
    summary_rows,
)
from dyntrain.evaluate.audit import AuditCurve
from dyntrain.neighbors import neighbor_list
from dyntrain.potential import Potential
from dyntrain.state import State
from evaluations import FAR, NEAR, TRUE, BreaksBeyond, record


@dataclass
class Labelled:
    energy: float
    forces: np.ndarray


class Oracle:
    """A potential of ours as the reference; calculation number ``failing`` does not converge."""

    name = "oracle"

    def __init__(self, potential: Potential = TRUE, failing: int | None = None) -> None:
        self.potential, self.failing, self.n_calls = potential, failing, 0

    def label(self, atoms: Atoms) -> Labelled:
        self.n_calls += 1
        if self.n_calls - 1 == self.failing:
            raise RuntimeError("the SCF did not converge")
        state = State.from_ase(atoms)
        with torch.no_grad():
            energy, forces = self.potential(state, neighbor_list(state, self.potential.cutoff))
        return Labelled(float(energy[0]), forces.numpy())


NVE = record()


@pytest.fixture(scope="module")
def near() -> FreeRuns:
    return free_runs(NEAR, pick_starts([NVE], 3), NVE.dt, 120.0)


def test_the_true_potential_has_no_error_on_its_own_way() -> None:
    curve = audit(TRUE, free_runs(TRUE, pick_starts([NVE], 2), NVE.dt, 60.0), Oracle())
    assert curve.times_fs.tolist() == [0.0, 50.0] and curve.runs.tolist() == [0, 1]
    assert curve.force_mae.max() < 1e-12 and curve.energy_error.max() < 1e-9
    assert curve.n_whole.tolist() == [2, 2] and curve.failures == ()


def test_the_error_is_that_of_the_model_where_it_went(near: FreeRuns) -> None:
    curve = audit(NEAR, near, Oracle(), max_runs=2)
    assert curve.force_mae.shape == (3, 2)
    for snapshot in near.snapshots:
        if snapshot.run > 1:
            continue
        pairs = neighbor_list(snapshot.state, 10.0)
        with torch.no_grad():
            difference = NEAR(snapshot.state, pairs).forces - TRUE(snapshot.state, pairs).forces
        place = curve.times_fs.tolist().index(snapshot.time_fs), snapshot.run
        assert curve.force_mae[place] == pytest.approx(float(difference.abs().mean()))
        assert curve.force_rmse[place] == pytest.approx(float((difference**2).mean() ** 0.5))
    assert curve.energy_error[0].tolist() == [0.0, 0.0]


def test_a_failed_calculation_is_counted_and_never_a_number(near: FreeRuns) -> None:
    curve = audit(NEAR, near, Oracle(failing=4))
    assert curve.failures == ("run 1 at 50 fs: the SCF did not converge",)
    assert np.isnan(curve.force_mae[1, 1]) and np.isfinite(np.delete(curve.force_mae.ravel(), 4)).all()
    assert curve.quantile(0.5)[1] == pytest.approx(np.mean(curve.force_mae[1, [0, 2]]))
    assert curve.n_whole.tolist() == [3, 3, 3]


def test_failed_runs_count_as_infinitely_wrong() -> None:
    starts = pick_starts([NVE], 2)
    limit = 1.02 * float(starts.positions.norm(dim=-1).max())
    free = free_runs(BreaksBeyond(limit), starts, NVE.dt, 1000.0)
    assert free.failed.all()
    curve = audit(TRUE, free, Oracle())
    for column, run in enumerate(curve.runs):
        assert (np.isposinf(curve.force_mae[:, column]) == (curve.times_fs >= free.failure_fs[run])).all()
    with pytest.raises(UserError, match="no free run left a structure"):
        audit(TRUE, free_runs(BreaksBeyond(0.1), starts, NVE.dt, 5.0), Oracle())


def test_a_reactive_run_fails_when_its_error_is_three_times_the_start(near: FreeRuns) -> None:
    errors = np.array([[0.1, 0.1, 0.1], [0.2, 0.31, np.nan], [0.4, 0.1, np.inf]])
    times = np.array([0.0, 50.0, 100.0])
    curve = AuditCurve("x", 0.0, times, np.arange(3), errors, errors, errors)
    found = curve.exceeding(3.0)
    assert {run: at for run, (at, _) in found.items()} == {0: 100.0, 1: 50.0}
    later = near.failing_also(found)
    assert later.failed.tolist() == [True, True, False]
    assert later.failure_fs.tolist() == pytest.approx([100.0, 50.0, 120.0])
    assert later.reasons[1] == "the force error in the audit is 3.1 × its start"
    assert np.isnan(later.total_energy[later.times_fs >= 50.0, 1]).all()
    # What failed earlier by another criterion stays as it was.
    assert later.failing_also({1: (80.0, "later")}).failure_fs[1] == 50.0


def test_another_method_is_refused_before_it_is_used() -> None:
    assert check_reference(Oracle(), [NVE]) < 1e-12
    with pytest.raises(UserError, match=r"another method than that of the held-out runs.*differ by 1\d%"):
        check_reference(Oracle(FAR), [NVE])
    with pytest.raises(UserError, match=r"cannot even label a recorded structure \(run0, frame 20\)"):
        check_reference(Oracle(failing=0), [NVE])


def test_an_evaluation_with_a_reference_audits() -> None:
    settings = EvaluationSettings(
        horizon_fs=5.0, n_starts=2, n_free_runs=2, free_length_fs=60.0, audit_runs=1
    )
    oracle = Oracle()
    result = evaluate_model("near", NEAR, [NVE], settings, reference=oracle)
    assert result.audit is not None and result.audit.agreement < 1e-12
    assert oracle.n_calls == 3 + 2
    assert "audit: force error at 50 fs (eV/Å)" in dict(summary_rows([result]))
    plain = result.to_dict()["audit"]
    assert plain["times_fs"] == [0.0, 50.0] and plain["n_failed_calculations"] == 0
