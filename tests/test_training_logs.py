"""Logs: log.csv row by row, TensorBoard's scalars once, and extra loggers that are not installed."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from dyntrain.errors import UserError
from dyntrain.training.logs import COLUMNS, CsvLog, MlflowLog, TensorBoardLog, WandbLog, read_log
from training_runs import log_rows, run, write_runs


def row(epoch: int, **values: Any) -> dict[str, Any]:
    return {"epoch": epoch, "step": 10 * epoch, "lr": 0.1 / 3, **values}


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "log.csv")
    log.begin(0)
    log.append(row(1, train_loss=None))
    log.append(row(2, train_loss=1e-30))
    rows = read_log(log.path)
    assert tuple(rows[0]) == COLUMNS
    assert [r["lr"] for r in rows] == [0.1 / 3, 0.1 / 3]
    assert [r["train_loss"] for r in rows] == [None, 1e-30]


def test_the_log_is_taken_back_to_the_checkpoint(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "log.csv")
    log.begin(0)
    kept = log.append(row(1))
    log.append(row(2))
    log.begin(kept)
    assert log.append(row(2)) == log.path.stat().st_size
    assert [r["epoch"] for r in read_log(log.path)] == [1, 2]
    log.begin(0)
    assert read_log(log.path) == []


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_has_each_row_once_after_a_resume(tmp_path: Path) -> None:
    """The second row was logged, but its checkpoint was not written: it comes again."""
    first = TensorBoardLog(tmp_path, 0)
    first.log(row(1))
    first.log(row(2))
    first.close()
    second = TensorBoardLog(tmp_path, 10)
    second.log(row(2))
    second.log(row(3, train_loss=0.5))
    second.close()
    found = events(tmp_path)
    assert found["epoch"] == [(10, 1.0), (20, 2.0), (30, 3.0)]
    assert found["train_loss"] == [(30, 0.5)]


def test_tensorboard_shows_what_the_log_says(tmp_path: Path) -> None:
    data = write_runs(tmp_path / "runs")
    run(data, tmp_path / "a")
    rows = log_rows(tmp_path / "a")
    found = events(tmp_path / "a" / "tensorboard")
    assert [step for step, _ in found["validation_loss"]] == [int(r["step"]) for r in rows]
    values = [float(r["validation_loss"]) for r in rows]
    assert [value for _, value in found["validation_loss"]] == pytest.approx(values, rel=1e-6)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    data = write_runs(tmp_path / "runs")
    with pytest.raises(UserError, match=f"logger {name} needs the package {name}: pip install {name}"):
        run(data, tmp_path / "a", logger={"name": name})


def test_a_logger_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("api_key not configured\n(no-tty)")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    data = write_runs(tmp_path / "runs")
    with pytest.raises(UserError, match=r"logger wandb does not start: api_key not configured \(no-tty\)"):
        run(data, tmp_path / "a", logger={"name": "wandb"})


def test_wandb_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package: what it is asked for, and what it is given."""
    asked: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, float]]] = []

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            logged.append((step, values))

        def finish(self) -> None:
            logged.append((-1, {}))

    def init(**arguments: Any) -> Run:
        asked.append(arguments)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for _ in range(2):
        log = WandbLog(tmp_path, "mine", {"seed": 1})
        log.log(row(1, train_loss=None))
        log.close()
    assert asked[0] == asked[1]
    assert asked[0] == {
        "project": "mine",
        "id": (tmp_path / "wandb_id").read_text(),
        "resume": "allow",
        "dir": str(tmp_path),
        "config": {"seed": 1},
    }
    assert logged == [(10, {"epoch": 1.0, "lr": 0.1 / 3}), (-1, {})] * 2


def test_mlflow_is_not_given_a_row_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package, which keeps every value it is given."""
    kept: list[tuple[int, dict[str, float]]] = []
    started: list[str | None] = []

    class Client:
        def get_metric_history(self, run_id: str, key: str) -> list[Any]:
            return [types.SimpleNamespace(step=step) for step, values in kept if key in values]

    def start_run(run_id: str | None) -> Any:
        started.append(run_id)
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="run7"))

    fake = types.SimpleNamespace(
        set_experiment=lambda name: None,
        start_run=start_run,
        MlflowClient=Client,
        log_metrics=lambda values, step: kept.append((step, values)),
        end_run=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    for epochs in ((1, 2), (2, 3)):
        log = MlflowLog(tmp_path, "mine")
        for epoch in epochs:
            log.log(row(epoch))
        log.close()
    assert started == [None, "run7"]
    assert [step for step, _ in kept] == [10, 20, 30]
