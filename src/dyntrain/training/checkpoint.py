"""Checkpoints: all that a killed run needs to go on to the same numbers, in one file of tensors and JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dyntrain.atomic import atomic_path
from dyntrain.curriculum import CurriculumState, Score
from dyntrain.errors import UserError

_VERSION = 1


@dataclass
class Progress:
    """How far a training has come; every number the loop carries from one step to the next.

    step, epoch: optimiser steps and validations done
    evaluations, validated_at: training evaluations spent (weighted by cost), now and at the last validation
    segment_length, lr: of the last step
    position, epoch_start: segments drawn at this S, now and when the epoch began
    epoch_sums: sums over the steps of the current epoch, for its row in the log
    validation_batch, validation_sums: how far a validation has come; None outside of one
    best: best score so far
    wall_s, cpu_s: time spent in all calls so far
    log_bytes, logged_step: length of log.csv and step of its last row
    """

    curriculum: CurriculumState
    step: int = 0
    epoch: int = 0
    evaluations: float = 0.0
    validated_at: float = 0.0
    segment_length: int = 0
    lr: float = 0.0
    position: int = 0
    epoch_start: int = 0
    epoch_sums: dict[str, float] = field(default_factory=dict)
    validation_batch: int | None = None
    validation_sums: dict[str, float] = field(default_factory=dict)
    best: Score | None = None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    log_bytes: int = 0
    logged_step: int = 0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Progress:
        values = json.loads(text)
        curriculum = values["curriculum"]
        for scored in (values, curriculum):
            if scored["best"] is not None:
                scored["best"] = tuple(scored["best"])
        return cls(**{**values, "curriculum": CurriculumState(**curriculum)})


def save_checkpoint(path: Path, progress: Progress, tensors: dict[str, Any]) -> None:
    """Write a checkpoint; it appears whole or not at all.

    Args:
        tensors: state dicts and strings beside it.
    """
    with atomic_path(path) as part:
        torch.save({"version": _VERSION, "progress": progress.to_json(), **tensors}, part)


def load_checkpoint(path: Path) -> tuple[Progress, dict[str, Any]]:
    """Read a checkpoint; runs no code from it.

    Raises:
        UserError: damaged, or from another version.
    """
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
        version, progress = record.pop("version"), record.pop("progress")
    except Exception as error:  # torch names no smaller class for all that a damaged file can raise
        raise UserError(
            f"the checkpoint {path} is damaged ({type(error).__name__}): remove it to start again"
        ) from error
    if version != _VERSION:
        raise UserError(
            f"the checkpoint {path} has version {version}, this dyntrain reads {_VERSION}: "
            "finish that run with the dyntrain it was begun with"
        )
    return Progress.from_json(progress), record
