"""Budgets: what training may cost, as a number of evaluations weighted by costs that are measured once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from dyntrain.config import BudgetConfig, Config
from dyntrain.data.segments import collate, find_segments
from dyntrain.data.trajectory import Trajectory
from dyntrain.loss import Loss, counts
from dyntrain.potential import Potential
from dyntrain.rollout import Backprop
from dyntrain.training.step import loss_and_gradient

_SHARE_OF_MAX_TIME = 0.85
"""The rest is room for checkpoints and for a computer that is slower later than while it was measured."""

_PROBE_LENGTH = 4


def evaluation_cost(costs: dict[str, float], n_segments: int, length: int) -> float:
    """Cost of one optimiser step in training evaluations at S = 1."""
    return n_segments * length * (costs["one_step"] if length == 1 else costs["rollout"])


def measure_budget(
    config: Config,
    potential: Potential,
    loss: Loss,
    backprop: Backprop,
    training: Sequence[Trajectory],
    validation_evaluations: int,
    device: torch.device,
) -> BudgetConfig:
    """Time training evaluations at S = 1 and in a roll-out, side by side, and see what ``max_time`` buys.

    Args:
        validation_evaluations: evaluations without gradient that all validations will take.
    """
    longest = min(_PROBE_LENGTH, config.max_length)
    lengths = [1] if longest == 1 else [1, longest]
    probes = {s: find_segments(training, s, "training") for s in lengths}
    batches = {
        s: collate(list(found.take(range(min(config.batch_size, len(found))))), training).to(device)
        for s, found in probes.items()
    }
    seconds: dict[int, list[float]] = {s: [] for s in lengths}
    potential.zero_grad(set_to_none=True)
    for attempt in range(6):
        for s, batch in batches.items():
            begin = time.perf_counter()
            loss_and_gradient(potential, batch, loss, backprop, counts(batch.state))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if attempt > 0:  # the first one warms up
                seconds[s].append((time.perf_counter() - begin) / (s * batch.state.n_systems))
    potential.zero_grad(set_to_none=True)
    one = statistics.median(seconds[1])
    ratio = 1.0
    if longest > 1:
        ratio = statistics.median(b / a for a, b in zip(seconds[1], seconds[longest], strict=True))
    max_seconds = config.max_seconds
    if max_seconds is None:
        raise ValueError("a budget is measured only where max_time is given")
    # An evaluation without gradient costs about a third of one with.
    left = _SHARE_OF_MAX_TIME * max_seconds - validation_evaluations * one / 3.0
    evaluations = max(left, 0.1 * max_seconds) / one
    return BudgetConfig(
        evaluations=float(f"{evaluations:.4g}"), costs={"one_step": 1.0, "rollout": float(f"{ratio:.3g}")}
    )
