"""Small trainings that take a second: Morse molecules on disk, a tiny network, and what a training left."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import ase.io
import torch
from torch import Tensor

from dyntrain.config import Config, parse_config
from dyntrain.models.files import read_record
from dyntrain.training import Silent, TrainingResult, train
from made_runs import as_atoms, morse_run

COMPOSITIONS = ((6, 1, 8, 1), (6, 1), (8, 1, 1))
"""Unequal on purpose: sizes and elements differ from run to run."""


def write_run(path: Path, **arguments: Any) -> str:
    """A Morse run as an ASE trajectory file."""
    ase.io.write(path, as_atoms(morse_run(**arguments)))
    return str(path)


def write_runs(folder: Path, n_frames: int = 30) -> dict[str, list[str]]:
    """Three training runs of unequal compositions and one for validation."""
    folder.mkdir(exist_ok=True)
    train_files = [
        write_run(folder / f"train_{seed}.traj", n_frames=n_frames, numbers=numbers, seed=seed)
        for seed, numbers in enumerate(COMPOSITIONS)
    ]
    validation = write_run(folder / "validation.traj", n_frames=n_frames, numbers=COMPOSITIONS[0], seed=9)
    return {"train": train_files, "validation": [validation]}


def small_config(data: Any, output: Path, **changes: Any) -> dict[str, Any]:
    """Values of a training of about 25 steps at S = 1 and 3 with three validations."""
    values: dict[str, Any] = {
        "data": data,
        "output": str(output),
        "device": "cpu",
        "model": {"cutoff": 4.0, "settings": {"width": 8, "n_channels": 4, "n_radial": 4}},
        "batch_size": 4,
        "curriculum": {
            "stages": [{"segment_length": 1, "share": 1}, {"segment_length": 3, "share": 1}],
            "epochs": 3,
        },
        "validation": {"n_starts": 6, "n_steps": 5, "batch_size": 2},
        "budget": {"evaluations": 120, "costs": {"rollout": 1.2}},
    }
    return {**values, **changes}


def run(data: Any, output: Path, observer: Any = None, **changes: Any) -> TrainingResult:
    """Train with ``small_config``."""
    return train(parse_config(small_config(data, output, **changes)), observer=observer)


def config_of(data: Any, output: Path, **changes: Any) -> Config:
    return parse_config(small_config(data, output, **changes))


def weights(output: Path | str) -> dict[str, Tensor]:
    """Tensors of the model that a training left."""
    return read_record(Path(output) / "model.pt")[1]


def log_rows(output: Path | str) -> list[dict[str, str]]:
    """Rows of log.csv as text, without the wall time."""
    with (Path(output) / "log.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "wall_s"} for row in csv.DictReader(file)]


def assert_same_training(one: Path | str, other: Path | str) -> None:
    """Model and log agree to the last digit."""
    first, second = weights(one), weights(other)
    assert set(first) == set(second)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert log_rows(one) == log_rows(other)
    epochs = [int(row["epoch"]) for row in log_rows(one)]
    assert epochs == list(range(1, len(epochs) + 1))


class Recorder(Silent):
    """An observer that remembers what it was told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.lengths: list[int] = []
        self.losses: list[float] = []
        self.shares: list[float | None] = []
        self.resumed: bool | None = None

    def started(self, split: Any, reports: Any, config: Any, resumed: bool) -> None:
        self.resumed = resumed

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stepped(self, plan: Any, loss: float, share: float | None, progress: Any) -> None:
        self.lengths.append(plan.segment_length)
        self.losses.append(loss)
        self.shares.append(share)

    def validated(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
