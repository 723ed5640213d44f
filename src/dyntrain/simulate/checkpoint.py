"""Checkpoints of molecular dynamics: all that a killed run needs to go on to the same numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dyntrain.atomic import atomic_path
from dyntrain.errors import UserError
from dyntrain.potential import Prediction
from dyntrain.rollout import Frame
from dyntrain.simulate.bursts import Burst
from dyntrain.simulate.partial import Mark
from dyntrain.simulate.run import RunState
from dyntrain.state import State

_VERSION = 1


def checkpoint_path(output: Path) -> Path:
    """Where the checkpoint of a run with this output lies."""
    return output.with_name(output.name + ".checkpoint")


def fingerprint(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def save_checkpoint(path: Path, settings: dict[str, Any], run: RunState, marks: Sequence[Mark]) -> None:
    """Write a checkpoint; it appears whole or not at all.

    Args:
        settings: plain values by the name of their option, which a later call must give alike.
        marks: where the trajectory files stand.
    """
    frame = run.frame
    record = {
        "version": _VERSION,
        "settings": json.dumps(settings),
        "bursts": json.dumps([dataclasses.asdict(burst) for burst in run.bursts]),
        "marks": json.dumps(marks),
        "step": frame.step,
        "systems": frame.systems,
        "positions": frame.state.positions,
        "velocities": frame.state.velocities,
        "energy": frame.prediction.energy,
        "forces": frame.prediction.forces,
        "start_energy": run.start_energy,
        "variables": run.variables,
    }
    with atomic_path(path) as part:
        torch.save(record, part)


def load_checkpoint(path: Path, settings: dict[str, Any], start: State) -> tuple[RunState, list[Mark]]:
    """Where a run stood; runs no code from the file.

    Args:
        start: the batch that the run began with.

    Raises:
        UserError: damaged, from another version, or of a run with other settings.
    """
    try:
        record = torch.load(path, map_location=start.device, weights_only=True)
        version, then = record["version"], json.loads(record["settings"])
    except Exception as error:  # torch names no smaller class for all that a damaged file can raise
        raise UserError(
            f"the checkpoint {path} is damaged ({type(error).__name__}): begin anew with --restart"
        ) from error
    if version != _VERSION:
        raise UserError(
            f"the checkpoint {path} has version {version}, this dyntrain reads {_VERSION}: "
            "finish that run with the dyntrain it was begun with, or begin anew with --restart"
        )
    for name in settings:
        if settings[name] != then.get(name):
            raise UserError(
                f"{path} is of a run with another {name} ({then.get(name)}, now {settings[name]}): give the "
                "same to go on, another --output, or --restart to begin anew"
            )
    systems = record["systems"]
    moving = start.select(systems).replace(positions=record["positions"], velocities=record["velocities"])
    frame = Frame(record["step"], moving, Prediction(record["energy"], record["forces"]), systems)
    bursts = tuple(Burst(**burst) for burst in json.loads(record["bursts"]))
    marks = [Mark(*mark) for mark in json.loads(record["marks"])]
    return RunState(frame, record["start_energy"], record["variables"], bursts), marks
