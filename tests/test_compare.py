"""The comparison: equal labelled frames, budget and start; resumable; numbers and page that agree."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dyntrain.compare import Comparison, run_comparison
from dyntrain.compare.arms import (
    DYNAMIC,
    NOISE,
    ONE_STEP,
    STOP_GRADIENT,
    Measured,
    arm_config,
    arms_of,
    dynamic_config,
    labelled_frames,
)
from dyntrain.compare.held_out import make_plan
from dyntrain.compare.measuring import rms_drift
from dyntrain.compare.record import to_dict
from dyntrain.config import Config, parse_config
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.evaluate import EvaluationSettings
from dyntrain.models.analytic import Morse
from dyntrain.potential import Conservative
from dyntrain.report.compare_page import write_compare_page
from dyntrain.training import Silent, setup
from made_runs import morse_trajectory
from test_report import page_of
from training_runs import config_of, weights, write_run

FAST = EvaluationSettings(horizon_fs=12.0, n_starts=8, n_free_runs=2, free_length_fs=20.0)


class Quiet:
    """Remembers which trainings there were."""

    def __init__(self) -> None:
        self.trainings: list[str] = []
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        self.texts.append(text)

    @contextmanager
    def training(self, name: str) -> Iterator[Silent]:
        self.trainings.append(name)
        yield Silent()

    @contextmanager
    def progress(self) -> Iterator[Any]:
        yield lambda what, done, total: None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("runs")
    lengths = {"train": 40, "validation": 20, "test": 200}
    return {
        part: [write_run(folder / f"{part}.traj", n_frames=n, seed=seed)]
        for seed, (part, n) in enumerate(lengths.items())
    }


# --- arms ---------------------------------------------------------------------------------------------------

STAGES = {"stages": [{"segment_length": s, "share": 1} for s in (1, 2, 4)], "epochs": 2}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training_points": 3},
        {"training_points": 3, "stride": 2},
        {"training_points": 500},
        {"training_points": 3, "point_length": 6},
        {"curriculum": {"stages": [{"segment_length": 4, "share": 1}], "epochs": 2}},
        {"curriculum": {"stages": [{"segment_length": 4, "share": 1}], "epochs": 2}, "stride": 3},
        {"curriculum": {"kind": "plateau", "max_length": 4}, "training_points": 3},
    ],
    ids=str,
)
def test_all_arms_learn_from_the_same_labelled_frames(changes: dict[str, Any]) -> None:
    """Also where breaks leave stretches that only single frames, or short segments, fit into."""
    runs = [morse_trajectory(30).replace(breaks=(2, 4, 9, 10)), morse_trajectory(15, seed=1)]
    runs.append(morse_trajectory(5, seed=2).replace(alone=True))  # structures of no run
    config = config_of(["none"], Path("out"), **{"curriculum": STAGES, **changes})
    sets = [labelled_frames(arm_config(config, arm, 5), runs) for arm in arms_of(config)]
    assert len(sets) == 4
    for frames in sets[1:]:
        np.testing.assert_array_equal(frames, sets[0])
    if changes == {"training_points": 3}:
        points = setup.training_points(arm_config(config, DYNAMIC, 5), runs)
        held = {(segment.run, segment.start + k) for segment in points for k in range(4)}
        assert {tuple(frame) for frame in sets[0].tolist()} == held


def test_a_one_step_arm_trains_on_every_frame_of_the_points() -> None:
    """Not on the first frames alone: S labelled frames are what a segment costs the user."""
    runs = [morse_trajectory(30)]
    config = config_of(["none"], Path("out"), curriculum=STAGES, training_points=3)
    one_step = arm_config(config, ONE_STEP, 0)
    windows = setup.training_segments(one_step, runs, 1)
    assert len(windows) == len(labelled_frames(config, runs)) > 3
    assert one_step.max_length == 1


def test_arms_differ_in_nothing_but_what_is_asked_about() -> None:
    config = config_of(["none"], Path("out"), curriculum=STAGES, max_time="40s")
    measured = Measured(500.0, {DYNAMIC: 1.5, STOP_GRADIENT: 1.1}, {3: 0.02})
    arms = {arm: arm_config(config, arm, 3, measured).model_dump() for arm in arms_of(config)}
    differing = {
        arm: {key for key in values if values[key] != arms[DYNAMIC][key]} - {"output", "budget"}
        for arm, values in arms.items()
    }
    assert differing == {
        DYNAMIC: set(),
        ONE_STEP: {"curriculum"},
        NOISE: {"curriculum", "noise"},
        STOP_GRADIENT: {"backprop"},
    }
    assert {values["seed"] for values in arms.values()} == {3}
    assert {values["budget"]["evaluations"] for values in arms.values()} == {500.0}
    assert arms[DYNAMIC]["budget"]["costs"]["rollout"] == 1.5
    assert arms[STOP_GRADIENT]["budget"]["costs"]["rollout"] == 1.1
    assert arms[NOISE]["noise"] == 0.02


def test_stop_gradient_is_no_arm_where_it_is_what_was_asked_for() -> None:
    for backprop in ("stop_gradient", {"truncated": 1}):
        config = config_of(["none"], Path("out"), backprop=backprop)
        assert arms_of(config) == [DYNAMIC, ONE_STEP, NOISE]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"curriculum": {"stages": [{"segment_length": 1, "share": 1}]}}, "never goes beyond"),
        ({"max_epochs": 3}, "max_epochs would end"),
        ({"budget": None, "curriculum": {"kind": "plateau"}}, "give max_time"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        dynamic_config(config_of(["none"], Path("out"), **changes))


def test_stages_that_are_left_out_are_those_of_the_dynamic_preset() -> None:
    values = {"data": ["none"], "curriculum": {"epochs": 3, "lr": 0.02}}
    preset = parse_config({**values, "preset": "dynamic"})
    assert dynamic_config(parse_config(values)).curriculum == preset.curriculum
    assert preset.max_length == 8
    asked = config_of(["none"], Path("out"), curriculum=STAGES)
    assert dynamic_config(asked) == asked


# --- noise --------------------------------------------------------------------------------------------------


def test_the_noise_is_as_wide_as_the_drift_at_the_middle_of_a_segment() -> None:
    """A model without forces leaves the recording by ½ F/m t², which is known."""
    run = morse_trajectory(40)
    config = config_of(["none"], Path("out"), curriculum=STAGES)
    idle = Conservative(Morse(depth=1e-12, a=1.5, d0=1.3, cutoff=4.0))
    middle = 2
    aways = []
    for start in range(run.n_frames - 3):
        straight = run.positions[start] + run.velocities[start] * run.dt * middle
        kicks = run.kicks(start, start + middle + 1)
        moved = kicks.positions.sum(0) + run.dt * kicks.velocities[0]
        aways.append(straight + moved.numpy() - run.positions[start + middle])
    expected = np.sqrt(np.mean(np.square(aways)))
    assert rms_drift(idle, config, [run]) == pytest.approx(expected, rel=0.01)


def test_a_model_that_bursts_at_once_has_no_drift() -> None:
    wild = Conservative(Morse(depth=1e9, a=1.5, d0=1.0, cutoff=4.0))
    with pytest.raises(UserError, match="bursts within 2 steps from every training segment"):
        rms_drift(wild, config_of(["none"], Path("out"), curriculum=STAGES), [morse_trajectory(20)])


# --- what was planned ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_frames", "mark"), [(450, 25.0), (1000, 50.0), (260, 10.0), (60, None)])
def test_the_tested_mark_leaves_six_starts_that_do_not_overlap(n_frames: int, mark: float | None) -> None:
    runs: list[Trajectory] = [morse_trajectory(n_frames)]
    plan = make_plan(runs, EvaluationSettings(horizon_fs=60.0, n_starts=32))
    assert plan.mark_fs == mark
    if mark is not None:
        assert 6 <= plan.settings.n_starts <= n_frames * 0.5 / mark


# --- the whole ----------------------------------------------------------------------------------------------


def small(data: Any, output: Path, **changes: Any) -> Config:
    return config_of(data, output, **{"curriculum": STAGES, **changes})


@pytest.fixture(scope="module")
def comparison(data: Any, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return run_comparison(small(data, tmp_path_factory.mktemp("c") / "out"), 2, FAST, Quiet())


@pytest.mark.slow
def test_every_arm_starts_alike_spends_alike_and_is_measured_alike(comparison: Comparison) -> None:
    assert [len(comparison.trained[arm]) for arm in comparison.arms] == [2, 2, 2, 2]
    for found in comparison.trained.values():
        for one in found:
            assert one.ended == "the budget is spent" and one.labelled_frames == 40
            assert one.evaluations == pytest.approx(120, abs=4 * 4 * 1.5)
    for seed in (0, 1):
        starts = {
            arm: setup.make_potential(arm_config(comparison.config, arm, seed), comparison.runs)
            for arm in comparison.arms
        }
        first = starts[DYNAMIC].energy_model.state_dict()
        for potential in starts.values():
            assert all(torch.equal(first[k], v) for k, v in potential.energy_model.state_dict().items())
    widths = comparison.measured.noise
    assert set(widths) == {0, 1} and all(0 < width < 0.1 for width in widths.values())
    assert comparison.where.startswith("the test runs")
    shapes = {one.errors["force"].shape for found in comparison.held_out.values() for one in found}
    assert len(shapes) == 1
    first_errors = [found[0].errors["force"][-1] for found in comparison.held_out.values()]
    assert not any(np.array_equal(first_errors[0], other) for other in first_errors[1:])


@pytest.mark.slow
def test_what_is_finished_is_not_repeated_and_what_was_killed_goes_on(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison called again measures and trains nothing; a lost training alone comes back the same."""
    lost = comparison.trained[NOISE][1].model
    before = weights(lost.parent)
    times = {one.model: one.model.stat().st_mtime_ns for f in comparison.trained.values() for one in f}
    for name in ("model.pt", "checkpoint.pt", "config.yaml", "held_out.npz"):
        (lost.parent / name).unlink()
    measured: list[str] = []
    from dyntrain.compare import held_out

    original = held_out.evaluate_model
    monkeypatch.setattr(
        held_out, "evaluate_model", lambda n, *a, **k: measured.append(n) or original(n, *a, **k)
    )
    again = run_comparison(comparison.config, 2, FAST, Quiet())
    assert measured == [f"{NOISE}, seed 1"]
    changed = [path for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert changed == [lost]
    assert all(torch.equal(before[key], value) for key, value in weights(lost.parent).items())
    assert again.tests == comparison.tests and again.verdict.headline == comparison.verdict.headline


@pytest.mark.slow
def test_another_budget_in_the_same_folder_is_refused(comparison: Comparison) -> None:
    other = comparison.config.model_copy(update={"max_time": "5s"})
    with pytest.raises(UserError, match="begun with max_time None, now '5s'"):
        run_comparison(other, 2, FAST, Quiet())


@pytest.mark.slow
def test_numbers_and_page_say_the_same(comparison: Comparison, tmp_path: Path) -> None:
    record = json.loads(json.dumps(to_dict(comparison), allow_nan=False))
    assert [arm["name"] for arm in record["arms"]] == comparison.arms
    seed = record["arms"][0]["seeds"][1]
    assert set(seed) >= {
        "seed", "model", "evaluations", "seconds", "labelled_frames", "deviation_eV_A", "time_to_failure"
    }  # fmt: skip
    assert set(seed["deviation_eV_A"]) == {"0", "10"}
    assert "noise_A" in record["arms"][2]["seeds"][0]
    write_compare_page(tmp_path / "c.html", comparison)
    page = page_of(tmp_path / "c.html")
    assert record["verdict"]["headline"] in page.text
    assert all(arm in page.text for arm in comparison.arms)
    assert len(page.figures) == 6 and not page.outside


@pytest.mark.slow
def test_the_command(comparison: Comparison, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """In a copy of the finished folder: nothing is left to train."""
    from dyntrain.cli import main

    output = tmp_path / "out"
    shutil.copytree(comparison.config.output, output)
    file = tmp_path / "train.yaml"
    values = comparison.config.model_copy(update={"output": str(output)}).model_dump(mode="json")
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    options = ["--seeds", "1", "--starts", "8", "--free-runs", "0"]
    monkeypatch.setattr(sys, "argv", ["dyntrain", "compare", str(file), *options])
    with pytest.raises(SystemExit) as stop:
        main()
    out = capsys.readouterr().out
    assert not stop.value.code, out
    assert "No clear winner here" in out and "One seed cannot tell" in out
    assert (output / "compare.html").exists() and (output / "compare.json").exists()
