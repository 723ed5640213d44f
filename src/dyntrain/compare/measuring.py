"""What the arms need to be equal: a budget, what a roll-out costs in it, and how wide the noise is."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dyntrain.atomic import write_text
from dyntrain.compare.arms import DYNAMIC, STOP_GRADIENT, Measured, arm_config, arms_of
from dyntrain.config import BudgetConfig, Config
from dyntrain.data.segments import Batch, collate
from dyntrain.data.small_steps import by_small_steps
from dyntrain.data.splits import Split
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.neighbors import VerletNeighbors
from dyntrain.potential import Potential
from dyntrain.rollout import BurstGuard, StopGradient
from dyntrain.simulate import device_of
from dyntrain.training import setup
from dyntrain.training.budget import measure_budget
from dyntrain.training.step import SKIN
from dyntrain.unroll import unroll

_N_DRIFT_STARTS = 64


def measured_or_kept(config: Config, split: Split, file: Path) -> Measured:
    """The budget and the costs of all trainings: measured once, then read from ``file``.

    Raises:
        UserError: the file is damaged, or of a comparison with another ``max_time`` or ``budget``.
    """
    asked = _asked(config)
    if file.exists():
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            noise = {int(seed): float(value) for seed, value in kept["noise"].items()}
            measured = Measured(
                float(kept["evaluations"]), dict(kept["rollout_cost"]), noise, kept["validations"]
            )
            before = kept["asked"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file} is damaged: give another output to begin anew, or remove the folder"
            ) from error
        if before != asked:
            raise UserError(
                f"{file.parent} holds a comparison begun with {_differing(before, asked)}: give the same to "
                "go on, or another output to begin anew"
            )
        return measured
    budgets = {arm: _budget(config, split, arm) for arm in arms_of(config) if arm in (DYNAMIC, STOP_GRADIENT)}
    rollout_cost = {str(arm): budget.costs.rollout for arm, budget in budgets.items()}
    measured = Measured(budgets[DYNAMIC].evaluations, rollout_cost, {}, budgets[DYNAMIC].validations)
    keep(measured, config, file)
    return measured


def keep(measured: Measured, config: Config, file: Path) -> None:
    """Write down what was measured, and for which ``max_time`` and ``budget``."""
    write_text(file, json.dumps({"asked": _asked(config), **dataclasses.asdict(measured)}, indent=1) + "\n")


def _asked(config: Config) -> dict[str, object]:
    return {"max_time": config.max_time, "budget": config.budget and config.budget.model_dump()}


def _differing(before: dict[str, object], asked: dict[str, object]) -> str:
    key = next(key for key in asked if before.get(key) != asked[key])
    return f"{key} {before.get(key)!r}, now {asked[key]!r}"


def _budget(config: Config, split: Split, arm: str) -> BudgetConfig:
    """The budget of one arm by its own measurement; a budget that was given counts for the arm it is of."""
    if arm == DYNAMIC and config.budget is not None:
        return config.budget
    of_arm = arm_config(config, arm, config.seed)
    if of_arm.max_seconds is None:  # its evaluations are not used then, its cost is
        of_arm = of_arm.model_copy(update={"max_time": "1h"})
    held_out = setup.validation_segments(config, split.validation)
    device = device_for(config)
    return measure_budget(
        of_arm,
        setup.potential_to_train(of_arm, split.train, None).to(device),
        setup.make_loss(of_arm),
        setup.make_backprop(of_arm),
        split.train,
        len(held_out) * held_out.length,
        device,
    )


def device_for(config: Config) -> torch.device:
    """Where trainings of this configuration run, and their models are measured."""
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def rms_drift(potential: Potential, config: Config, runs: Sequence[Trajectory]) -> float:
    """How far a model has drifted at the middle of a training segment, root mean square of a coordinate, Å.

    METHOD, control 2: the width of the noise that shows one-step training the positions a roll-out visits.
    The model starts from training segments spread over the runs, their kicks applied.

    Raises:
        UserError: every one of its roll-outs bursts before.
    """
    middle = config.max_length // 2
    segments = setup.training_segments(config, runs, config.max_length).shortened(middle + 1)
    every = max(1, len(segments) // _N_DRIFT_STARTS)
    chosen = segments[::every][:_N_DRIFT_STARTS]
    squares = n = 0.0
    for group in by_small_steps(chosen, runs):
        away = _drifts(potential, collate(group, runs).to(device_of(potential)))
        squares += float((away**2).sum())
        n += away.numel()
    if not n:
        raise UserError(
            f"the one-step model bursts within {middle} steps from every training segment, so the noise of "
            "its control cannot be measured: give the trainings more time (max_time)"
        )
    return float(f"{math.sqrt(squares / n):.3g}")


@torch.no_grad()
def _drifts(potential: Potential, batch: Batch) -> Tensor:
    """Distance from the recording at the batch's last frame, [n_atoms, 3] Å, without what has burst."""
    last = batch.length - 1
    neighbors, guard = VerletNeighbors(potential.cutoff, SKIN), BurstGuard()
    for frame in unroll(potential, batch, backprop=StopGradient(), neighbors=neighbors, guard=guard):
        if frame.step == last:
            atoms = batch.state.atoms_of(frame.systems)
            return frame.state.positions - batch.targets.positions[last, atoms]
    return torch.empty(0, 3)
