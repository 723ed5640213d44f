"""Budgets: what training may cost, as a number of evaluations weighted by costs that are measured once."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

import torch

from dyntrain.config import BudgetConfig, Config, CostsConfig
from dyntrain.data.segments import collate, find_segments
from dyntrain.data.small_steps import by_small_steps
from dyntrain.data.trajectory import Trajectory
from dyntrain.loss import Loss, counts
from dyntrain.potential import Potential
from dyntrain.rollout import Backprop
from dyntrain.training.step import loss_and_gradient

_SHARE_OF_MAX_TIME = 0.85
"""The rest is room for checkpoints and for a computer that is slower later than while it was measured."""

_SHARE_OF_VALIDATION = 0.2
"""Largest share of ``max_time`` for validations: short trainings validate less often."""

_PROBE_LENGTH = 4
_N_PROBES = 5

_PROBE_S = 10.0
"""Wall time after which no further probe begins: a kill while measuring costs little."""


def evaluation_cost(budget: BudgetConfig | None, n_segments: int, length: int) -> float:
    """Cost of one optimiser step in training evaluations at S = 1; without a budget their number."""
    if budget is None:
        return float(n_segments * length)
    return n_segments * length * (budget.costs.one_step if length == 1 else budget.costs.rollout)


def measure_budget(
    config: Config,
    potential: Potential,
    loss: Loss,
    backprop: Backprop,
    training: Sequence[Trajectory],
    validation_evaluations: int,
    device: torch.device,
    n_processes: int = 1,
    spent_s: float = 0.0,
) -> BudgetConfig:
    """Time training evaluations at S = 1 and in a roll-out, side by side, and see what ``max_time`` buys.

    Args:
        validation_evaluations: evaluations without gradient that one validation takes.
        n_processes: that share each batch, all measuring at the same time.
        spent_s: of ``max_time``, before measuring.
    """
    if config.max_seconds is None:
        raise ValueError("a budget is measured only where max_time is given")
    longest = min(_PROBE_LENGTH, config.max_length)
    size = math.ceil(config.batch_size / n_processes)
    batches = {}
    for length in sorted({1, longest}):
        found = find_segments(training, length, "training", config.stride)
        alike = max(by_small_steps(found[:size], training), key=len)
        batches[length] = collate(alike, training).to(device)

    def seconds(length: int) -> float:
        """Wall time of one training evaluation of one structure, all processes at work."""
        batch = batches[length]
        begin = time.perf_counter()
        loss_and_gradient(potential, batch, loss, backprop, counts(batch.state))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - begin) / (length * batch.state.n_systems * n_processes)

    begin = time.perf_counter()
    rounds: list[dict[int, float]] = []
    for length in batches:
        seconds(length)  # warms up
    while not rounds or (len(rounds) < _N_PROBES and time.perf_counter() - begin < _PROBE_S):
        rounds.append({length: seconds(length) for length in batches})
    potential.zero_grad(set_to_none=True)
    one = statistics.median(times[1] for times in rounds)
    ratio = statistics.median(times[longest] / times[1] for times in rounds)
    # An evaluation without gradient costs about a third of one with.
    validation = validation_evaluations * one / 3.0
    asked = config.curriculum.epochs if config.curriculum.kind == "schedule" else 0
    room = _SHARE_OF_VALIDATION * config.max_seconds
    times = asked if asked * validation <= room else max(1, int(room / validation))
    spent_s += time.perf_counter() - begin
    left = _SHARE_OF_MAX_TIME * (config.max_seconds - spent_s) - times * validation
    evaluations = max(left, 0.1 * config.max_seconds) / one
    return BudgetConfig(
        evaluations=float(f"{evaluations:.4g}"),
        costs=CostsConfig(rollout=float(f"{ratio:.3g}")),
        validations=times if times < asked else None,
    )
