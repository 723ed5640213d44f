"""One optimiser step's loss and gradient, alike for one process or many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from dyntrain.data.segments import Batch
from dyntrain.loss import Loss
from dyntrain.neighbors import VerletNeighbors
from dyntrain.potential import Potential
from dyntrain.rollout import Backprop, BurstGuard
from dyntrain.training.processes import sum_over
from dyntrain.unroll import unroll

SKIN = 0.5
"""Å; of the neighbour list kept along a roll-out (atoms move about 0.01 Å a step)."""


class StepResult(NamedTuple):
    """parts: loss by term; n_burst: segments that burst; n_frames: frames of segments that had a loss."""

    parts: dict[str, float]
    n_burst: int
    n_frames: int


def loss_and_gradient(
    potential: Potential, batch: Batch, loss: Loss, backprop: Backprop, totals: Tensor
) -> StepResult:
    """Unroll the batch along its runs (kicks applied) and add d loss / d weight to the weights' ``grad``.

    Args:
        totals: ``loss.counts`` summed over all processes; the gradients of all processes then add up to
            that of the joined batch.
    """
    length = batch.length
    neighbors = VerletNeighbors(potential.cutoff, SKIN if length > 1 else 0.0)
    stress_term = loss.stress_term(length)
    frames = unroll(potential, batch, backprop=backprop, neighbors=neighbors, guard=BurstGuard())
    sums: dict[str, Tensor] = {}
    pending: Tensor | None = None
    n_left = n_frames = 0
    for frame in frames:
        parts = loss.at(frame, batch.targets, batch.state, totals, length, batch.dt)
        if stress_term is not None:
            stress = potential.stress(frame.state, neighbors(frame.state))
            parts["stress"] = loss.at_stress(stress_term, stress, frame, batch.targets, totals)
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value.detach()
        here = reduce(add, parts.values())
        pending = here if pending is None else pending + here
        if backprop.block is not None and (frame.step + 1) % backprop.block == 0:
            pending.backward()
            pending = None
        n_left = frame.systems.numel() if frame.step == length - 1 else 0
        n_frames += frame.systems.numel()
    if pending is not None:
        pending.backward()
    return StepResult(
        {name: float(value) for name, value in sums.items()}, batch.state.n_systems - n_left, n_frames
    )


def joined(results: Sequence[StepResult]) -> StepResult:
    """The result of a batch that was unrolled in parts."""
    parts: dict[str, float] = {}
    for result in results:
        for name, value in result.parts.items():
            parts[name] = parts.get(name, 0.0) + value
    return StepResult(parts, sum(r.n_burst for r in results), sum(r.n_frames for r in results))


def sum_results(fabric: Fabric, result: StepResult, names: Iterable[str]) -> StepResult:
    """The sums over all processes; ``names``: terms of the loss, alike on all of them."""
    names = list(names)
    numbers = [result.parts.get(name, 0.0) for name in names] + [result.n_burst, result.n_frames]
    *parts, n_burst, n_frames = sum_over(fabric, torch.tensor(numbers, dtype=torch.float64)).tolist()
    return StepResult(dict(zip(names, parts, strict=True)), int(n_burst), int(n_frames))


def sum_gradients(fabric: Fabric, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each ``grad`` by its sum over all processes, in one flat exchange.

    A weight without gradient on any process (an energy's bias under a loss of forces) stays without: zeros
    would let Adam move it on by its momentum, which one process does not.
    """
    if fabric.world_size == 1:
        return
    parameters = list(parameters)
    has_gradient = torch.tensor(
        [p.grad is not None for p in parameters], dtype=torch.float64, device=fabric.device
    )
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = sum_over(fabric, torch.cat([has_gradient, *(g.reshape(-1).double() for g in gradients)]))
    n_with, *pieces = flat.split([len(parameters), *(p.numel() for p in parameters)])
    for parameter, n, piece in zip(parameters, n_with.tolist(), pieces, strict=True):
        parameter.grad = piece.view_as(parameter).to(parameter.dtype) if n else None
