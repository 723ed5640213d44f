"""Evaluation: the true potential has no error, bursts count, failures are found when they happen."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import ase.io
import ase.units
import numpy as np
import pytest
import torch
import typer
from ase import Atoms
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.verlet import VelocityVerlet
from typer.testing import CliRunner, Result

from dyntrain.adapters.function import potential_from_forces
from dyntrain.cli.evaluate import evaluate, model_names
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.evaluate import (
    EvaluationSettings,
    ModelResult,
    evaluate_model,
    evaluate_models,
    judge,
    one_step_errors,
    rollout_errors,
    summary_rows,
)
from dyntrain.models.analytic import Harmonic
from dyntrain.models.files import build_model, save_model
from dyntrain.neighbors import NeighborList
from dyntrain.potential import Conservative, Potential, Prediction
from dyntrain.report import write_report
from dyntrain.simulate import simulate
from dyntrain.state import State
from dyntrain.units import FS
from evaluations import MASSES, NEAR, NUMBERS, TRUE, BreaksBeyond, made_up, record


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


# --- the numbers and the command ----------------------------------------------------------------------


def test_what_was_measured_goes_to_json(nve: Trajectory) -> None:
    settings = EvaluationSettings(horizon_fs=20.0, n_starts=3, n_free_runs=2, free_length_fs=30.0)
    result = evaluate_model("model", NEAR, [nve], settings)
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["force_mae_eV_A"].keys() == {"0", "10"}
    assert plain["rollout"]["n_alive"] == [3] * 41 and plain["rollout"]["kicks_applied"] is True
    assert plain["time_to_failure_fs"]["median"] is None
    assert plain["drift_meV_atom_ps"] is None  # 30 fs are too short for one
    burst = made_up("A", np.where(np.arange(4)[:, None] > 1, np.nan, np.full((4, 16), 0.1)))
    assert burst.to_dict()["force_mae_eV_A"]["50"] is None


app = typer.Typer()
app.command()(evaluate)


def test_a_model_that_gives_forces_directly_is_marked(nve: Trajectory, tmp_path: Path) -> None:
    def drag(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return positions.new_zeros(len(positions)), -0.1 * positions

    models = {"true": TRUE, "direct": potential_from_forces(drag, cutoff=3.0)}
    fast = EvaluationSettings(horizon_fs=2.0, n_starts=2, n_free_runs=1, free_length_fs=5.0)
    results = evaluate_models(models, [nve], fast)
    assert [one.to_dict()["conservative"] for one in results] == [True, False]
    assert ("forces", ["of the energy", "given, not conservative"]) in summary_rows(results)
    assert "forces" not in dict(summary_rows(results[:1]))
    write_report(tmp_path / "page.html", "Forces", judge(results), results)
    assert "given, not conservative" in (tmp_path / "page.html").read_text(encoding="utf-8")


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


def test_without_free_runs_their_speed_is_not_measured(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dyntrain.evaluate.result.measure_speed", lambda *_: pytest.fail("measured"))
    page = tmp_path / "page.html"
    words = ("--horizon", 10, "--starts", 3, "--free-runs", 0, "--json", "-", "--report", page)
    done = run_evaluate(files["a"], files["run"], "--model", files["b"], *words)
    assert done.exit_code == 0, done.output
    assert [model["speed"] for model in json.loads(done.stdout)["models"]] == [None, None]
    assert "roll-outs beside the held-out runs" in done.stderr
    for text in (done.stderr, page.read_text(encoding="utf-8")):
        assert "ns/day" not in text and "time for a step" not in text


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.pt", "x/b.pt"], ["a", "b"]),
        (["run/one_step/model.pt", "run/dynamic/model.pt"], ["one_step", "dynamic"]),
        (["x/a.pt", "x/a.pt"], ["x/a.pt (1)", "x/a.pt (2)"]),
        (["chgnet-0.3.0", "tuned/model.pt"], ["chgnet-0.3.0", "model"]),
        (["sevennet-0", "plain/model.pt", "replay/model.pt"], ["sevennet-0", "plain", "replay"]),
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
        ("a", "run", ("--json", "/dev/null"), "--json would replace /dev/null, which is no .json file"),
        ("a", "run", ("--failure", "liquid"), "the recorded system is one molecule"),
    ],
)
def test_evaluate_refuses(
    files: dict[str, Path], model: str, run: str, options: tuple[object, ...], words: str
) -> None:
    done = run_evaluate(files.get(model, "none.pt"), files.get(run, "none.traj"), *options)
    assert isinstance(done.exception, UserError), done.output
    assert words in str(done.exception)


def test_seeds_are_not_negative(files: dict[str, Path]) -> None:
    done = run_evaluate(files["a"], files["run"], "--seed", -1)
    assert done.exit_code == 2 and "--seed" in done.output


def test_the_command_audits_with_a_reference_and_stores_what_it_computed(
    files: dict[str, Path], tmp_path: Path
) -> None:
    options, store, numbers = tmp_path / "lj.yaml", tmp_path / "store", tmp_path / "n.json"
    options.write_text("epsilon: 0.01\n")
    run = tmp_path / "lj.traj"
    atoms = ase.io.read(files["run"], 0)
    atoms.info.clear()
    atoms.calc = LennardJones(epsilon=0.01)
    with VelocityVerlet(atoms, timestep=0.5 * ase.units.fs, trajectory=str(run)) as dynamics:
        dynamics.run(40)
    words = ("--reference", "lj", "--calculator", options, "--reference-store", store, "--audit-runs", 1)
    for _ in range(2):
        done = run_evaluate(files["a"], run, *words, "--json", numbers, *FAST)
        assert done.exit_code == 0, done.output
        assert "audit: force error at 0 fs (eV/Å)" in done.stdout
    assert len(list(store.rglob("*.npz"))) == 3 + 1
    audit = json.loads(numbers.read_text())["models"][0]["audit"]
    assert audit["reference"] == "lj (epsilon 0.01)" and audit["agreement"] < 1e-9
    wrong = run_evaluate(files["a"], files["run"], *words, *FAST)
    assert isinstance(wrong.exception, UserError) and "is another method" in str(wrong.exception)


def test_hotter_starts_and_a_criterion_by_name(files: dict[str, Path], tmp_path: Path) -> None:
    page, numbers = tmp_path / "p.html", tmp_path / "n.json"
    words = ("--free-temperature", 900, "--failure", "reactive", "--report", page, "--json", numbers)
    done = run_evaluate(files["a"], files["run"], *words, *FAST)
    assert done.exit_code == 0, done.output
    free = json.loads(numbers.read_text())["models"][0]["free_runs"]
    assert (free["temperature_K"], free["criterion_kind"]) == (900.0, "reactive")
    assert "velocities drawn for 900 K" in page.read_text()


def test_every_key_of_the_numbers_is_explained(files: dict[str, Path], tmp_path: Path) -> None:
    numbers = tmp_path / "n.json"
    assert run_evaluate(files["a"], files["run"], "--json", numbers, *FAST).exit_code == 0
    settings = EvaluationSettings(horizon_fs=5.0, n_starts=2, n_free_runs=2, free_length_fs=110.0)
    whole = evaluate_model("true", TRUE, [record(240)], settings, reference=Itself()).to_dict()
    assert whole["audit"] and whole["motion"]["curves"] and whole["speed"]

    def keys(part: object) -> set[str]:
        if isinstance(part, list):
            return set().union(*map(keys, part))
        if isinstance(part, dict):
            return set(part).union(*map(keys, part.values()))
        return set()

    # Names of elements, of the model, numbers of runs and times are no keys of ours.
    ours = {
        key for key in keys([json.loads(numbers.read_text()), whole]) if re.fullmatch("[a-z][a-zA-Z_]+", key)
    }
    explained = (Path(__file__).parents[1] / "docs" / "verdict.md").read_text(encoding="utf-8")
    assert {key for key in ours if f"`{key}`" not in explained} == set()


class Itself:
    """The true potential as the reference of its own run."""

    name = "itself"

    def label(self, atoms: Atoms) -> Prediction:
        state = State.from_ase(atoms)
        energy, forces = next(iter(simulate(TRUE, state, 1.0, 0))).prediction
        return Prediction(energy[0], forces.numpy())
