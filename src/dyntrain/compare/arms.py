"""The arms of the comparison: trainings that differ in nothing but what is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dyntrain.config import (
    PRESETS,
    BudgetConfig,
    Config,
    CostsConfig,
    PlateauConfig,
    ScheduleConfig,
    parse_config,
)
from dyntrain.data.trajectory import IntArray, Trajectory
from dyntrain.errors import UserError
from dyntrain.training import setup

DYNAMIC, ONE_STEP, NOISE, STOP_GRADIENT = "dynamic", "one-step", "one-step + noise", "stop-gradient"

WHAT_IT_IS = {
    DYNAMIC: "dynamic training as configured; where no stages are given, those of preset dynamic",
    ONE_STEP: "ordinary training on all labelled frames of the same segments",
    NOISE: "the same, positions off by Gaussian noise as wide as the one-step model's drift at the middle of "
    "a segment, labels unchanged",
    STOP_GRADIENT: "dynamic training without a gradient from step to step, as in the published code",
}


@dataclass(frozen=True)
class Measured:
    """What is measured once and then kept, so that a resumed comparison does the same.

    evaluations:  budget of every training
    rollout_cost: of one evaluation in a roll-out, by arm (those with S > 1)
    noise:        seed → standard deviation of each coordinate, Å
    validations:  of every training, where the schedule's would take too much of the time
    """

    evaluations: float
    rollout_cost: dict[str, float]
    noise: dict[int, float]
    validations: int | None = None


def dynamic_config(config: Config) -> Config:
    """The configuration with the stages of ``preset: dynamic`` where it leaves them to the default.

    Raises:
        UserError: what cannot be compared: no segment beyond S = 1, no budget, or an end that is not the
            budget's.
    """
    if "stages" not in config.curriculum.model_fields_set and isinstance(config.curriculum, ScheduleConfig):
        values = config.model_dump(mode="json")
        values["curriculum"] |= PRESETS["dynamic"]["curriculum"]
        config = parse_config(values)
    if config.max_length == 1:
        raise UserError(
            "curriculum: it never goes beyond segments of 1 frame, which is one-step training; give stages "
            "(or max_length) with longer ones to compare dynamic training with it, or leave stages out"
        )
    if config.max_epochs is not None:
        raise UserError(
            "max_epochs would end the trainings at unequal costs: leave it out and give max_time (of each "
            "training) or budget"
        )
    if config.budget is None and config.max_seconds is None:
        raise UserError("give max_time (90s, 5m, 2h), the time of each training, or budget: all get the same")
    return config


def arms_of(config: Config) -> list[str]:
    """The arms to train, in this order; stop-gradient only where the configuration is another one."""
    arms = [DYNAMIC, ONE_STEP, NOISE]
    return arms if setup.make_backprop(config).block == 1 else [*arms, STOP_GRADIENT]


def folder_of(config: Config, arm: str, seed: int) -> Path:
    """The training folder of one arm and seed, inside ``config.output``."""
    name = arm.replace(" + ", "_").replace("-", "_")
    return Path(config.output) / f"{name}_seed{seed}"


def arm_config(config: Config, arm: str, seed: int, measured: Measured | None = None) -> Config:
    """The configuration of one training; without ``measured`` one that only tells what is trained on."""
    values = config.model_dump(mode="json")
    values |= {"seed": seed, "output": str(folder_of(config, arm, seed))}
    if arm in (ONE_STEP, NOISE):
        values |= _one_step(config)
    if arm == STOP_GRADIENT:
        # Positions of a roll-out without gradient between steps teach nothing, and are refused as a term.
        values |= {"backprop": "stop_gradient", "loss": {**values["loss"], "positions": None}}
    if measured is not None:
        costs = CostsConfig(rollout=measured.rollout_cost.get(arm, 1.0))
        budget = BudgetConfig(evaluations=measured.evaluations, costs=costs, validations=measured.validations)
        # The budget alone ends a training: ended by the clock the arms would not be equal.
        values |= {"max_time": None, "budget": budget.model_dump()}
        if arm == NOISE:
            values["noise"] = measured.noise[seed]
    return parse_config(values, f"{arm}, seed {seed}")


def _one_step(config: Config) -> dict[str, Any]:
    """What makes a one-step training of a dynamic one: S = 1 throughout, on every frame that one labels."""
    curriculum = config.curriculum.model_dump(mode="json")
    if isinstance(config.curriculum, PlateauConfig):
        curriculum["max_length"] = 1
        shortest = 1
    else:
        curriculum["stages"] = [{"segment_length": 1, "share": 1.0}]
        shortest = min(stage.segment_length for stage in config.curriculum.stages)
    # Points hold frames beyond their first; without points a frame counts if some segment can hold it.
    whole = config.max_length if config.training_points is not None else shortest
    return {"curriculum": curriculum, "point_length": config.point_length or (whole if whole > 1 else None)}


def labelled_frames(config: Config, runs: Sequence[Trajectory]) -> IntArray:
    """Every frame whose labels a training with this configuration uses, each once: (run, frame) [n, 2]."""
    curriculum = config.curriculum
    if isinstance(curriculum, PlateauConfig):
        lengths = set(range(1, curriculum.max_length + 1))
    else:
        lengths = {stage.segment_length for stage in curriculum.stages}
    found = [setup.training_segments(config, runs, length).within(1) for length in lengths]
    return np.unique(np.concatenate([np.stack([f.runs, f.starts], axis=1) for f in found]), axis=0)
