"""Evaluation: the true potential has no error, bursts count, failures are found when they happen."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import typer
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from typer.testing import CliRunner, Result

from dyntrain.cli.evaluate import evaluate, model_names
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.evaluate import (
    FailureCriterion,
    ModelResult,
    criterion_for,
    evaluate_model,
    free_runs,
    judge,
    one_step_errors,
    pick_starts,
    rollout_errors,
    summary_rows,
)
from dyntrain.evaluate.verdict import fisher_test, sign_test
from dyntrain.models.analytic import Harmonic
from dyntrain.models.files import build_model, save_model
from dyntrain.neighbors import NeighborList
from dyntrain.potential import Conservative, Potential, Prediction
from dyntrain.simulate import simulate
from dyntrain.state import State, concatenate
from dyntrain.units import FS
from evaluations import MASSES, NEAR, NUMBERS, TRUE, made_up, record


@pytest.fixture(scope="module")
def nve() -> Trajectory:
    return record()


@pytest.fixture(scope="module")
def nvt() -> Trajectory:
    return record(thermostat=0.02, seed=1)


# --- roll-outs ----------------------------------------------------------------------------------------


def test_the_true_potential_follows_a_thermostatted_run_without_error(nvt: Trajectory) -> None:
    found = rollout_errors(TRUE, [nvt], horizon_fs=40.0, n_starts=4)
    assert found.kick_share > 0.01
    assert found.force_mae.max() < 1e-9 and found.position_rmsd.max() < 1e-11
    assert found.energy_error.max() < 1e-8
    assert found.one_step.force_mae < 1e-12 and found.one_step.energy_mae < 1e-10


def test_the_kicks_of_an_nve_run_are_rounding(nve: Trajectory) -> None:
    assert rollout_errors(TRUE, [nve], horizon_fs=20.0, n_starts=2).kick_share < 1e-12


def test_errors_are_those_of_a_roll_out_by_hand(nve: Trajectory) -> None:
    found = rollout_errors(NEAR, [nve], horizon_fs=10.0, n_starts=3, seed=4)
    assert found.times_fs.tolist() == [0.5 * k for k in range(21)]
    for column, (file, start) in enumerate(found.starts):
        assert file == "run0"
        for frame in simulate(NEAR, nve.state(start), nve.dt, 20):
            here = start + frame.step
            difference = frame.prediction.forces.numpy() - nve.forces[here]
            away = frame.state.positions.numpy() - nve.positions[here]
            energy = float(frame.prediction.energy[0]) - nve.energies[here]
            row = frame.step, column
            assert found.force_mae[row] == pytest.approx(np.abs(difference).mean(), abs=1e-10)
            assert found.force_rmse[row] == pytest.approx(np.sqrt((difference**2).mean()), abs=1e-10)
            assert found.position_rmsd[row] == pytest.approx(np.sqrt((away**2).sum() / 4), abs=1e-10)
            assert found.energy_error[row] == pytest.approx(1e3 * abs(energy) / 4, abs=1e-9)
            of_h = np.abs(difference[NUMBERS == 1]).mean()
            assert found.force_mae_per_element["H"][row] == pytest.approx(of_h, abs=1e-10)
    at_marks = found.at_marks(found.force_mae)
    assert list(at_marks) == [0.0, 10.0]
    assert at_marks[10.0] == pytest.approx(np.median(found.force_mae[20]))


def test_same_seed_same_numbers(nve: Trajectory) -> None:
    one, same, other = (rollout_errors(NEAR, [nve], horizon_fs=5.0, n_starts=4, seed=s) for s in (0, 0, 1))
    assert one.starts == same.starts != other.starts
    assert np.array_equal(one.force_mae, same.force_mae)


def test_no_roll_out_crosses_a_break_and_the_horizon_shrinks(nve: Trajectory) -> None:
    broken = nve.replace(breaks=(41, 90))
    # Stretches of 41, 49 and 31 frames; six windows of 44 frames lie in the longest, at 41 … 46.
    found = rollout_errors(NEAR, [broken], horizon_fs=150.0, n_starts=50)
    assert (found.horizon_asked_fs, found.horizon_fs) == (150.0, 21.5)
    assert [frame for _, frame in found.starts] == [41, 42, 43, 44, 45, 46]
    # What a run allows is followed to the end, even if only one start does.
    longest = rollout_errors(NEAR, [broken], horizon_fs=24.0, n_starts=50)
    assert longest.horizon_fs == 24.0 and [frame for _, frame in longest.starts] == [41]
    alone = rollout_errors(NEAR, [broken], horizon_fs=150.0, n_starts=1)
    assert alone.horizon_fs == 24.0
    shorter = rollout_errors(NEAR, [broken], horizon_fs=15.0, n_starts=50)
    assert shorter.n_starts == 11 + 19 + 1
    assert all(not broken.crosses_break(frame, frame + 31) for _, frame in shorter.starts)


def test_runs_of_different_size_share_a_batch(nve: Trajectory) -> None:
    small = nve.replace(
        positions=nve.positions[:, :2],
        velocities=nve.velocities[:, :2],
        forces=nve.forces[:, :2],
        atomic_numbers=NUMBERS[:2],
        masses=MASSES[:2],
        file="small",
    )
    both = rollout_errors(NEAR, [nve, small], horizon_fs=10.0, n_starts=2)
    assert [file for file, _ in both.starts] == ["run0", "small"]
    assert np.isnan(both.force_mae_per_element["O"][:, 1]).all()
    assert np.isfinite(both.force_mae_per_element["C"]).all()


def test_one_step_errors_by_hand(nve: Trajectory) -> None:
    one = one_step_errors(NEAR, [nve], max_frames=7)
    frames = np.linspace(0, 120, 7).round().astype(int)
    predictions = [next(iter(simulate(NEAR, nve.state(int(k)), nve.dt, 0))).prediction for k in frames]
    difference = np.array([p.forces.numpy() for p in predictions]) - nve.forces[frames]
    energy = 250 * (np.array([float(p.energy[0]) for p in predictions]) - nve.energies[frames])
    assert one.n_frames == 7
    assert one.force_mae == pytest.approx(np.abs(difference).mean())
    assert one.force_rmse == pytest.approx(np.sqrt((difference**2).mean()))
    assert one.force_mae_per_element["H"] == pytest.approx(np.abs(difference[:, NUMBERS == 1]).mean())
    assert one.energy_mae == pytest.approx(np.abs(energy).mean())
    assert one.energy_mae_shifted == pytest.approx(np.abs(energy - energy.mean()).mean())


class BreaksBeyond(Potential):
    """The true potential, until an atom is further than ``limit`` from where its system started."""

    cutoff = 10.0

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, state: State, neighbors: NeighborList) -> Prediction:
        energy, forces = TRUE(state, neighbors)
        far = state.positions.norm(dim=-1) > self.limit
        return Prediction(energy, torch.where(far[:, None], torch.nan, forces))


def test_burst_starts_are_counted_and_not_dropped(nve: Trajectory) -> None:
    reach = np.linalg.norm(nve.positions, axis=-1).max(1)
    found = rollout_errors(BreaksBeyond(np.quantile(reach, 0.9)), [nve], horizon_fs=30.0, n_starts=8)
    assert 0 < found.n_alive[-1] < found.n_starts == 8
    assert (np.diff(found.n_alive) <= 0).all()
    median = found.at_marks(found.force_mae, (25.0,))[25.0]
    assert (median is None) == bool(found.n_alive[50] < 5)
    assert dict(summary_rows([ModelResult("wild", found)]))["roll-outs burst"] == [
        f"{8 - found.n_alive[-1]} of 8"
    ]


def test_small_deviations_double_where_the_motion_is_unstable(nve: Trajectory) -> None:
    """On top of a barrier, ¨x = λ² x: deviations grow as exp(λ t) and double every ln 2 / λ."""

    class Barrier(Potential):
        cutoff = 1.0

        def forward(self, state: State, neighbors: NeighborList) -> Prediction:
            forces = state.masses[:, None] * rate**2 * state.positions
            return Prediction(torch.zeros(state.n_systems, dtype=torch.float64), forces)

    rate = 0.1 / FS
    still = nve.replace(
        positions=np.zeros_like(nve.positions), velocities=nve.velocities * 0, forces=nve.forces * 0
    )
    found = rollout_errors(Barrier(), [still], horizon_fs=60.0, n_starts=4)
    # ln cosh, from twins at rest beside each other, has its full slope after the first doublings.
    assert found.doubling_time_fs == pytest.approx(math.log(2) / 0.1, rel=0.1)
    calm = rollout_errors(Conservative(Harmonic(cutoff=10.0)), [nve], horizon_fs=60.0, n_starts=4)
    assert calm.doubling_time_fs is None


def test_wrong_runs_are_refused(nve: Trajectory) -> None:
    with pytest.raises(UserError, match=r"one time step .* run0 has 0\.5 fs and run0 has 1 fs"):
        rollout_errors(TRUE, [nve, nve.replace(dt=nve.dt * 2)])
    with pytest.raises(UserError, match="no held-out runs"):
        rollout_errors(TRUE, [])
    with pytest.raises(UserError, match="number of starts must be at least 1"):
        rollout_errors(TRUE, [nve], n_starts=0)


def test_progress_ends_at_its_total(nve: Trajectory) -> None:
    seen: list[tuple[int, int]] = []
    rollout_errors(
        BreaksBeyond(0.5), [nve], horizon_fs=10.0, n_starts=2, progress=lambda *steps: seen.append(steps)
    )
    done, totals = zip(*seen, strict=True)
    assert list(done) == sorted(done) and done[-1] == totals[-1] and len(set(totals)) == 1


# --- free runs ----------------------------------------------------------------------------------------


def dimer(speed: float = 0.0) -> State:
    return State.from_arrays(
        [[0, 0, 0], [0, 0, 0.75]], [1, 1], [1.0, 1.0], velocities=[[0, 0, -speed], [0, 0, speed]]
    )


class Nothing(Potential):
    """No forces at all, or a constant energy gain ``rate`` (eV/Å) with the way along z."""

    cutoff = 5.0

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, state: State, neighbors: NeighborList) -> Prediction:
        along = self.rate * state.positions[:, 2]
        energy = torch.zeros(state.n_systems, dtype=torch.float64).index_add(0, state.system_idx, along)
        return Prediction(energy, torch.zeros_like(state.positions))


def test_a_free_dimer_fails_when_its_bond_is_half_an_angstrom_longer() -> None:
    # Relative speed 0.02 Å/fs: 0.5 Å off after 25 fs; the check is at every step and strict.
    runs = free_runs(Nothing(), concatenate([dimer(0.01 / FS), dimer()]), 0.3 * FS, 60.0)
    assert runs.failed.tolist() == [True, False]
    assert runs.failure_fs.tolist() == pytest.approx([25.2, 60.0])
    assert runs.reasons == {0: "a bond length is off by 0.50 Å"}
    assert runs.time_to_failure() == {
        "median": pytest.approx(25.2),
        "restricted_mean": pytest.approx((25.2 + 60.0) / 2),
        "n_failed": 1,
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
    smallest = min(np.linalg.norm(p[i] - p[j]) for p in nve.positions for i in range(4) for j in range(i))
    assert reactive.closest == pytest.approx(0.8 * smallest, rel=0.02)
    runs = free_runs(Nothing(), dimer(-0.01 / FS), 0.5 * FS, 30.0, criterion=reactive)
    assert runs.failure_fs[0] == pytest.approx((0.75 - reactive.closest) / 0.02, abs=0.5)
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


# --- verdict and numbers ------------------------------------------------------------------------------


RANDOM = np.random.default_rng(0)
LOW = RANDOM.uniform(0.1, 0.2, size=(4, 16))


def test_tests_of_significance_against_tables() -> None:
    assert sign_test(16, 0) == pytest.approx(2 / 2**16)
    assert sign_test(13, 3) == pytest.approx(0.0213, abs=1e-4)
    assert sign_test(8, 8) == 1.0
    assert fisher_test(8, 8, 0, 8) == pytest.approx(2 / math.comb(16, 8))
    assert fisher_test(1, 10, 11, 14) == pytest.approx(0.00276, abs=1e-5)  # of the textbook tea-lady kind


@pytest.mark.parametrize(
    ("one", "other", "winner", "words"),
    [
        (made_up("A", LOW), made_up("B", 2 * LOW), "A", "A follows the recording more closely than B"),
        (made_up("A", 2 * LOW), made_up("B", LOW), "B", "closer in 16 of the 16 roll-outs"),
        (
            made_up("A", LOW),
            made_up("B", LOW[:, ::-1]),
            None,
            "follows the recording more closely is not settled",
        ),
        (made_up("A", LOW, 8), made_up("B", LOW[:, ::-1], 1), "B", "B is more stable"),
        (made_up("A", LOW, 3), made_up("B", LOW[:, ::-1], 1), None, "chance explains that"),
        (made_up("A", LOW, 8), made_up("B", 2 * LOW, 0), None, "B is more stable"),
        (
            made_up("A", np.where(np.arange(16) < 14, np.nan, LOW)),
            made_up("B", 2 * LOW),
            "B",
            "against burst eV/Å",
        ),
    ],
    ids=["A", "B", "equal", "stable", "too few", "mixed", "burst"],
)
def test_the_verdict_follows_the_numbers(
    one: ModelResult, other: ModelResult, winner: str | None, words: str
) -> None:
    verdict = judge([one, other])
    assert verdict.winner == winner
    assert (winner or "No clear winner") in verdict.headline
    assert words in " ".join(verdict.reasons)


def test_roll_outs_that_overlap_are_not_counted_as_independent() -> None:
    def spaced(name: str, errors: np.ndarray, spacing: int) -> ModelResult:
        result = made_up(name, errors)
        starts = tuple(("run", spacing * k) for k in range(errors.shape[1]))
        return dataclasses.replace(result, rollout=dataclasses.replace(result.rollout, starts=starts))

    # Frames are 10 fs apart. At 50 fs starts 2 frames apart leave every third one: 6 of 16.
    verdict = judge([spaced("A", LOW, 2), spaced("B", 2 * LOW, 2)])
    assert verdict.winner == "A" and "closer in 6 of the 6 roll-outs" in verdict.reasons[2]
    assert "after 50 fs" in verdict.reasons[2]
    # One frame apart leaves 4 at 50 fs, but 6 at 25 fs.
    assert "after 25 fs" in judge([spaced("A", LOW, 1), spaced("B", 2 * LOW, 1)]).reasons[2]
    near = judge([spaced("A", LOW[:, :5], 1), spaced("B", 2 * LOW[:, :5], 1)])
    assert near.winner is None and "too short to say" in near.reasons[2]


def test_one_model_is_judged_by_itself_and_three_by_pairs() -> None:
    alone = judge([made_up("A", LOW, 2)])
    assert alone.winner is None and "2 of 8 free runs failed within 1 ps" in alone.headline
    three = judge([made_up("A", 3 * LOW), made_up("B", LOW), made_up("C", 2 * LOW)])
    assert three.winner == "B" and three.headline == "B is better than A and C here."


def test_what_was_measured_goes_to_json(nve: Trajectory) -> None:
    result = evaluate_model(
        "model", NEAR, [nve], horizon_fs=20.0, n_starts=3, n_free_runs=2, free_length_fs=30.0
    )
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["force_mae_eV_A"].keys() == {"0", "10"}
    assert plain["rollout"]["n_alive"] == [3] * 41 and plain["rollout"]["kicks_applied"] is True
    assert plain["time_to_failure_fs"]["median"] is None
    assert plain["drift_meV_atom_ps"] is None  # 30 fs are too short for one
    burst = made_up("A", np.where(np.arange(4)[:, None] > 1, np.nan, LOW))
    assert burst.to_dict()["force_mae_eV_A"]["50"] is None


# --- the command --------------------------------------------------------------------------------------

app = typer.Typer()
app.command()(evaluate)


def run_evaluate(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def files(nve: Trajectory, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("evaluate")
    images = []
    for frame in range(61):
        atoms = Atoms(NUMBERS, nve.positions[frame], info={"time_fs": 0.5 * frame})
        atoms.set_masses(MASSES)
        atoms.set_velocities(nve.velocities[frame])
        atoms.calc = SinglePointCalculator(atoms, energy=nve.energies[frame], forces=nve.forces[frame])
        images.append(atoms)
    ase.io.write(folder / "run.traj", images)
    found = {"run": folder / "run.traj"}
    for name, elements in (("a", [1, 6, 8]), ("b", [1, 6, 8]), ("no_carbon", [1, 8])):
        torch.manual_seed(len(found))
        found[name] = folder / f"{name}.pt"
        save_model(Conservative(build_model("egnn", elements=elements, width=8, n_channels=4)), found[name])
    return found


FAST = ("--horizon", 10, "--starts", 3, "--free-runs", 2, "--free-length", 10)


def test_evaluate_prints_a_table_and_writes_the_numbers(files: dict[str, Path], tmp_path: Path) -> None:
    done = run_evaluate(files["a"], files["run"], "--model", files["b"], "--json", tmp_path / "n.json", *FAST)
    assert done.exit_code == 0, done.output
    assert "force error at 10 fs (eV/Å)" in done.stdout and "free runs failed" in done.stdout
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert [model["name"] for model in numbers["models"]] == ["a", "b"]
    assert numbers["verdict"]["headline"] in done.stdout
    again = run_evaluate(files["a"], files["run"], "--json", tmp_path / "m.json", *FAST)
    assert again.exit_code == 0
    one = json.loads((tmp_path / "m.json").read_text())["models"][0]
    assert one["rollout"] == numbers["models"][0]["rollout"]


def test_evaluate_says_when_the_runs_are_too_short(files: dict[str, Path]) -> None:
    done = run_evaluate(files["a"], files["run"], "--horizon", 500, "--free-runs", 0)
    assert done.exit_code == 0, done.output
    assert "the runs allow 27.5 fs, not the 500 fs asked for" in done.stdout


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.pt", "x/b.pt"], ["a", "b"]),
        (["run/one_step/model.pt", "run/dynamic/model.pt"], ["one_step", "dynamic"]),
        (["x/a.pt", "x/a.pt"], ["x/a.pt (1)", "x/a.pt (2)"]),
    ],
)
def test_models_get_names_that_differ(paths: list[str], names: list[str]) -> None:
    assert model_names([Path(path) for path in paths]) == names


@pytest.mark.parametrize(
    ("model", "run", "options", "words"),
    [
        ("none", "run", (), "there is no model file"),
        ("run", "run", (), "is not a dyntrain model file"),
        ("a", "none", (), "none"),
        ("no_carbon", "run", (), "holds C, but the model knows only H, O"),
        ("a", "run", ("--horizon", -1), "--horizon must be a time in fs above 0"),
        ("a", "run", ("--device", "tpu"), "--device must be one of auto, cpu"),
        ("a", "run", ("--json", "no/folder.json"), "no/folder.json cannot be written"),
    ],
)
def test_evaluate_refuses(
    files: dict[str, Path], model: str, run: str, options: tuple[object, ...], words: str
) -> None:
    done = run_evaluate(files.get(model, "none.pt"), files.get(run, "none.traj"), *options)
    assert isinstance(done.exception, UserError), done.output
    assert words in str(done.exception)
