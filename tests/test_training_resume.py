"""Killed at any moment and called again, a training ends with the same numbers as one left alone."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from deaths import exit_code, start_training
from dyntrain.config import parse_config, read_config
from dyntrain.data.readers import read_trajectories
from dyntrain.data.store import write_store
from dyntrain.errors import UserError
from dyntrain.training import loop, train
from dyntrain.training.checkpoint import load_checkpoint
from training_runs import Recorder, assert_same_training, log_rows, run, small_config, weights, write_runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def undisturbed(data: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was left alone: 20 steps and 3 validations of 3 batches."""
    output = tmp_path_factory.mktemp("undisturbed")
    result = run(data, output)
    assert result.finished == "the budget is spent" and result.progress.step == 20
    return output


def tensorboard_rows(output: Path, tag: str = "validation_loss") -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def assert_nothing_left_over(output: Path) -> None:
    assert {p.name for p in output.iterdir()} == {
        ".lock",
        "checkpoint.pt",
        "config.yaml",
        "log.csv",
        "model.pt",
        "tensorboard",
    }


MOMENTS = [
    ("before an optimiser step", 1),
    ("after an optimiser step", 1),
    ("after an optimiser step", 10),  # the last of an epoch
    ("before an optimiser step", 16),  # the first at S = 3
    ("in a validation", 2),
    ("in a validation", 9),  # the last batch of all
    ("after a validation", 1),
    ("after a validation", 3),
    ("while a file is half written", 1),
    ("while a file is half written", 7),
    ("before a file is renamed", 1),  # the resolved configuration
    ("before a file is renamed", 2),
    ("after a file is renamed", 1),
    ("after a file is renamed", 14),
    ("while a row is half written", 1),
    ("while a row is half written", 2),
    ("after a row is written", 1),
    ("after a row is written", 3),
    ("after TensorBoard has the row", 2),
]


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "number"), MOMENTS, ids=[f"{m} {n}" for m, n in MOMENTS])
def test_killed_at_a_chosen_moment(
    moment: str, number: int, data: dict[str, list[str]], undisturbed: Path, tmp_path: Path
) -> None:
    """With a checkpoint after each step and validation batch."""
    values = small_config(data, tmp_path)
    assert exit_code(start_training(values, moment, number)) == -signal.SIGKILL
    assert exit_code(start_training(values)) == 0
    assert_same_training(tmp_path, undisturbed)
    assert tensorboard_rows(tmp_path) == tensorboard_rows(undisturbed)
    assert_nothing_left_over(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_again_and_again_at_random_moments(
    seed: int, data: dict[str, list[str]], undisturbed: Path, tmp_path: Path
) -> None:
    """With checkpoints at random intervals, so that steps are done again."""
    chance = random.Random(seed)
    values = small_config(data, tmp_path)
    kills = 0
    for attempt in range(10):
        process = start_training(values, every_s=chance.choice([0.0, 0.05, 0.2]))
        # The first kills come soon, before the fastest machine is done; the later ones get ever further.
        process.join(chance.uniform(0.0, 0.1 * (attempt + 1)))
        process.kill()
        if exit_code(process) == 0:
            break
        kills += 1
    assert exit_code(start_training(values)) == 0
    assert kills >= 1
    assert_same_training(tmp_path, undisturbed)
    assert tensorboard_rows(tmp_path) == tensorboard_rows(undisturbed)


def test_other_options_resume_as_well(data: dict[str, list[str]], tmp_path: Path) -> None:
    """Plateau curriculum, adjoint, no average, float64; cut into pieces by max_time."""
    changes: dict[str, Any] = {
        "curriculum": {"max_length": 3, "patience": 1, "lr": 1e-4, "floor": 5e-5, "factor": 0.6},
        "training_points": 8,
        "max_epochs": 4,
        "backprop": "adjoint",
        "precision": "float64",
        "ema": 0.0,
        "budget": None,
    }
    assert run(data, tmp_path / "whole", **changes).finished == "max_epochs (4) reached"
    calls = 0
    while run(data, tmp_path / "pieces", max_time="0.001s", **changes).finished is None:
        calls += 1
        assert (tmp_path / "pieces" / "model.pt").exists()
    assert calls >= 3
    assert_same_training(tmp_path / "whole", tmp_path / "pieces")


def test_max_time_stops_and_the_same_call_goes_on(
    data: dict[str, list[str]], undisturbed: Path, tmp_path: Path
) -> None:
    progress = []
    for _ in range(100):  # a call makes at least one step, or one part of a validation
        result = run(data, tmp_path, max_time="0.001s")
        done = result.progress
        progress.append((done.step, done.epoch, done.validation_batch or 0))
        assert result.model.exists()
        if result.finished is not None:
            break
    assert len(progress) > 2 and progress == sorted(set(progress))
    assert_same_training(tmp_path, undisturbed)


class StopAt(Recorder):
    """Sends this process a signal after some step, or in the first validation."""

    def __init__(self, number: int, *, step: int | None) -> None:
        super().__init__()
        self.number, self.step = number, step

    def stepped(self, plan: Any, loss: float, share: float | None, progress: Any) -> None:
        super().stepped(plan, loss, share, progress)
        if len(self.losses) == self.step:
            os.kill(os.getpid(), self.number)

    def validating(self, share: float) -> None:
        if self.step is None and not self.rows and share < 0.5:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("step", [7, None], ids=["in a step", "in a validation"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint(
    step: int | None, number: int, data: dict[str, list[str]], undisturbed: Path, tmp_path: Path
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        run(data, tmp_path, observer=StopAt(number, step=step))
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) == before
    progress, _ = load_checkpoint(tmp_path / "checkpoint.pt")
    assert progress.step == (step or 10)
    assert progress.validation_batch == (None if step else 1)
    observer = Recorder()
    run(data, tmp_path, observer=observer)
    assert observer.resumed and len(observer.losses) == 20 - progress.step
    assert_same_training(tmp_path, undisturbed)


def test_a_finished_run_repeated_does_nothing(data: dict[str, list[str]], undisturbed: Path) -> None:
    def times() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in undisturbed.rglob("*") if p.is_file()}

    before, observer = times(), Recorder()
    time.sleep(0.01)
    result = run(data, undisturbed, observer=observer)
    assert (result.finished, result.model) == ("the budget is spent", undisturbed / "model.pt")
    assert observer.resumed and not observer.losses and not observer.rows
    assert times() == before


def test_a_lost_model_is_written_again(data: dict[str, list[str]], tmp_path: Path) -> None:
    run(data, tmp_path)
    before = weights(tmp_path)
    (tmp_path / "model.pt").unlink()
    run(data, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(tmp_path).items())


def test_the_written_configuration_repeats_the_run(
    data: dict[str, list[str]], undisturbed: Path, tmp_path: Path
) -> None:
    config = read_config(undisturbed / "config.yaml")
    train(config.model_copy(update={"output": str(tmp_path)}))
    assert_same_training(tmp_path, undisturbed)


def test_the_learning_rate_left_to_the_network_is_written(
    data: dict[str, list[str]], undisturbed: Path, tmp_path: Path
) -> None:
    """Higher for a new egnn than for one that is trained on, lower for the paper's, unless it is given."""
    paper = {"name": "paper_egnn", "settings": {"width": 8, "n_frequencies": 8}}
    run(data, tmp_path / "new", max_epochs=1)
    run(data, tmp_path / "on", max_epochs=1, start_from=str(undisturbed / "model.pt"), model={})
    run(data, tmp_path / "paper", max_epochs=1, model=paper)
    run(data, tmp_path / "paper on", max_epochs=1, start_from=str(tmp_path / "paper" / "model.pt"), model={})
    names = ("new", "on", "paper", "paper on")
    rates = [read_config(tmp_path / name / "config.yaml").curriculum.lr for name in names]
    assert rates == [1e-2, 3e-3, 1e-3, 1e-3]
    assert read_config(undisturbed / "config.yaml").curriculum.lr == rates[0]


def test_a_measured_budget_is_kept(data: dict[str, list[str]], tmp_path: Path) -> None:
    """By a resume, and by a run from the configuration that was written."""
    first, second = tmp_path / "first", tmp_path / "second"
    while run(data, first, budget=None, max_time="1s").finished is None:
        pass
    config = read_config(first / "config.yaml")
    assert config.budget is not None
    train(config.model_copy(update={"output": str(second), "max_time": None}))
    assert_same_training(first, second)
    assert read_config(second / "config.yaml").budget == config.budget


def test_more_epochs_go_on(data: dict[str, list[str]], tmp_path: Path) -> None:
    assert run(data, tmp_path / "a", max_epochs=1).finished == "max_epochs (1) reached"
    assert run(data, tmp_path / "a", max_epochs=2).finished == "max_epochs (2) reached"
    run(data, tmp_path / "b", max_epochs=2)
    assert_same_training(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": 1}, r"begun with other settings \(`seed` was 0, now 1\)"),
        ({"ema": 0.5}, r"begun with other settings \(`ema` was 0\.99, now 0\.5\)"),
        (
            {"validation": {"n_starts": 2, "n_steps": 5, "batch_size": 2}},
            r"other settings \(`validation\.n_starts` was 6, now 2\)",
        ),
        (
            {"curriculum": {"stages": [{"segment_length": 2, "share": 1}], "epochs": 3}},
            r"\(`curriculum\.stages` was \[\{'segment_length': 1, 'share': 1\.0\}, .*\], "
            r"now \[\{'segment_length': 2, 'share': 1\.0\}\]\)",
        ),
        (
            {"model": {"cutoff": 4.5, "settings": {"width": 8, "n_channels": 4}}},
            r"\(`model\.cutoff` was 4\.0, now 4\.5; `model\.settings\.n_radial` was 4, now not there\)",
        ),
        (
            {"seed": 1, "batch_size": 2, "noise": 0.1, "stride": 2, "ema": 0.5},
            r"\(`seed` was 0, now 1; `batch_size` was 4, now 2; `noise` was 0\.0, now 0\.1; and 2 more\)",
        ),
        (
            {"budget": {"evaluations": 7, "costs": {"rollout": 1.2}}},
            r"other settings \(`budget\.evaluations` was 120\.0, now 7\.0\)",
        ),
    ],
)
def test_other_settings_in_the_same_output_are_refused(
    changes: dict[str, Any], sentence: str, data: dict[str, list[str]], undisturbed: Path
) -> None:
    before = log_rows(undisturbed)
    with pytest.raises(UserError, match=sentence) as error:
        run(data, undisturbed, **changes)
    assert "another output" in str(error.value) and "\n" not in str(error.value)
    assert log_rows(undisturbed) == before


def test_other_data_in_the_same_output_are_refused(
    data: dict[str, list[str]], undisturbed: Path, tmp_path: Path
) -> None:
    fewer = {**data, "train": data["train"][:2]}
    with pytest.raises(UserError, match=r"begun with other data than is read now \(`data`, `dt`\)"):
        run(fewer, undisturbed)
    others = write_runs(tmp_path / "others", n_frames=29)
    with pytest.raises(UserError, match="begun with other data"):
        run(others, undisturbed)


def test_the_same_data_elsewhere_go_on(data: dict[str, list[str]], undisturbed: Path, tmp_path: Path) -> None:
    assert run(write_runs(tmp_path / "moved"), undisturbed).finished == "the budget is spent"


def test_damaged_files_are_told(data: dict[str, list[str]], tmp_path: Path) -> None:
    run(data, tmp_path, max_epochs=1)
    checkpoint, log = tmp_path / "checkpoint.pt", tmp_path / "log.csv"
    whole, rows = checkpoint.read_bytes(), log.read_bytes()
    record = torch.load(checkpoint, weights_only=True)
    again = {"max_epochs": 2}
    for content, sentence in ((whole[:1000], "is damaged"), (b"", "is damaged")):
        checkpoint.write_bytes(content)
        with pytest.raises(UserError, match=rf"checkpoint\.pt {sentence} \(.*\): remove it to start again"):
            run(data, tmp_path, **again)
    torch.save({**record, "version": 99}, checkpoint)
    with pytest.raises(UserError, match="has version 99, this dyntrain reads 1"):
        run(data, tmp_path, **again)
    checkpoint.write_bytes(whole)
    log.write_bytes(rows[:-20])
    with pytest.raises(UserError, match="but the checkpoint beside it knows of"):
        run(data, tmp_path, **again)
    log.unlink()
    with pytest.raises(UserError, match=r"log\.csv has 0 bytes but"):
        run(data, tmp_path, **again)
    log.write_bytes(rows)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"holds a checkpoint but no config\.yaml"):
        run(data, tmp_path, **again)


def test_one_training_at_a_time_in_a_folder(data: dict[str, list[str]], tmp_path: Path) -> None:
    class Second(Recorder):
        message = ""

        def stepped(self, *_: Any) -> None:
            with pytest.raises(UserError) as error:
                run(data, tmp_path)
            Second.message = str(error.value)

    run(data, tmp_path, observer=Second(), max_epochs=1)
    assert "another training is running in" in Second.message
    run(data, tmp_path, max_epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_same_number_of_threads_gives_the_same_digits(n_threads: int, tmp_path: Path) -> None:
    """On a batch large enough to be divided among the threads."""
    slab = [str(Path(__file__).parent / "data" / "h2pd6gra_80.traj")]
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        for name in ("one", "other"):
            run(
                slab,
                tmp_path / name,
                model={},
                batch_size=2,
                curriculum={"stages": [{"segment_length": 2, "share": 1}], "epochs": 1},
                budget={"evaluations": 12, "costs": {"rollout": 1}},
                validation={"n_starts": 1, "n_steps": 2},
            )
    finally:
        torch.set_num_threads(before)
    assert_same_training(tmp_path / "one", tmp_path / "other")


def test_the_checkpoint_interval_is_kept(
    data: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint comes before the work that might end beyond the interval."""
    saves = []
    monkeypatch.setattr(loop.RunFolder, "save", lambda self, progress, tensors: saves.append(progress.step))
    run(data, tmp_path / "rare", max_epochs=1)
    rare = len(saves)
    saves.clear()
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    run(data, tmp_path / "often", max_epochs=1)
    # At the beginning, after the validation, at the end; or after each of 10 steps and 3 batches as well.
    assert rare == 3
    assert len(saves) == 3 + 10 + 3
    assert parse_config(small_config(data, tmp_path)).batch_size == 4


def test_files_that_are_not_the_trainings_are_left_alone(data: dict[str, list[str]], tmp_path: Path) -> None:
    own = tmp_path / "config.yaml"
    own.write_text("# my notes\ndata: [a.traj]\n")
    with pytest.raises(
        UserError, match=r"config\.yaml was not written by a training, which would replace it"
    ):
        run(data, tmp_path)
    assert own.read_text() == "# my notes\ndata: [a.traj]\n"
    own.unlink()
    run(data, tmp_path / "first")
    model = tmp_path / "first" / "model.pt"
    before, other = model.read_bytes(), tmp_path / "first" / ".big.download.part1"
    other.touch()
    (tmp_path / "first" / "checkpoint.pt").unlink()
    (tmp_path / "first" / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"start_from: .* is where this training writes its own model"):
        run(data, tmp_path / "first", start_from=str(model))
    assert model.read_bytes() == before and other.exists()


def test_a_copy_of_a_store_goes_on(data: dict[str, list[str]], tmp_path: Path) -> None:
    store = tmp_path / "runs.h5"
    write_store(read_trajectories([Path(file) for file in data["train"]]), store)
    stored = {**data, "train": [str(store)]}
    assert run(stored, tmp_path / "out").finished == "the budget is spent"
    store.rename(tmp_path / "original.h5")
    store.write_bytes((tmp_path / "original.h5").read_bytes())
    assert run(stored, tmp_path / "out").finished == "the budget is spent"
    runs = read_trajectories([tmp_path / "original.h5"])
    write_store([one.replace(forces=1.001 * one.forces) for one in runs], store)
    with pytest.raises(UserError, match="begun with other data"):
        run(stored, tmp_path / "out")
