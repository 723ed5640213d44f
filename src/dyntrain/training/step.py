"""One optimiser step's loss and gradient, alike for one process or many."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from dyntrain.data.segments import Batch
from dyntrain.integrators import VelocityVerlet
from dyntrain.loss import Loss
from dyntrain.neighbors import VerletNeighbors
from dyntrain.potential import Potential
from dyntrain.rollout import Backprop, BurstGuard, rollout

SKIN = 0.5
"""Å; of the neighbour list kept along a roll-out (atoms move about 0.01 Å a step)."""


class StepResult(NamedTuple):
    """Sums of one process: loss by term, segments that burst."""

    parts: dict[str, float]
    n_burst: int


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
    parts: dict[str, float] = {}
    n_left, pending = 0, None
    for frame in rollout(
        potential,
        batch.state,
        VelocityVerlet(batch.dt),
        length - 1,
        backprop=backprop,
        kicks=batch.kicks,
        neighbors=neighbors,
        guard=BurstGuard(),
    ):
        found = loss.at(frame, batch.targets, batch.state, totals, length)
        for name, value in found.items():
            parts[name] = parts.get(name, 0.0) + float(value.detach())
        step_loss = torch.stack(list(found.values())).sum()
        pending = step_loss if pending is None else pending + step_loss
        if backprop.block is not None and (frame.step + 1) % backprop.block == 0:
            pending.backward()
            pending = None
        n_left = frame.systems.numel() if frame.step == length - 1 else 0
    if pending is not None:
        pending.backward()
    return StepResult(parts, batch.state.n_systems - n_left)


def sum_gradients(fabric: Fabric, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each ``grad`` by its sum over all processes, in one flat exchange.

    A weight without gradient (an energy's bias under a loss of forces) counts as zero: every process
    must take part with the same numbers.
    """
    if fabric.world_size == 1:
        return
    parameters = list(parameters)
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1).double() for p in parameters]
    )
    flat = fabric.all_reduce(flat, reduce_op="sum")
    for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter).to(parameter.dtype)
