"""Script for two processes under torchrun: their summed gradient beside that of the joined batch, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from dyntrain.config import parse_config
from dyntrain.data.segments import Segment, collate
from dyntrain.loss import Loss, StepWeights, Term, counts, no_counts
from dyntrain.models.egnn import EGNN
from dyntrain.models.files import set_precision
from dyntrain.neighbors import NeighborList
from dyntrain.potential import Conservative
from dyntrain.rollout import Adjoint, Backprop, Full, StopGradient
from dyntrain.state import State
from dyntrain.training.processes import end_processes, start_processes, sum_over
from dyntrain.training.step import StepResult, loss_and_gradient, sum_gradients, sum_results
from made_runs import morse_trajectory


class NoOxygen(EGNN):
    """Breaks on every system that holds oxygen."""

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        broken = torch.bincount(state.system_idx[state.atomic_numbers == 8], minlength=state.n_systems) > 0
        energy = super().forward(state, neighbors)
        return energy * torch.where(broken, torch.nan, 1.0)


BY_ELEMENT = [Term("forces", per_element=True), Term("energy", only_single_frames=True)]
ALL = [Term("forces"), Term("energy"), Term("velocities", kind="l2")]

# Runs of the batch's segments (0: CHOH, 1: CH, 2: OHH; the first process takes the even ones), segment
# length, backprop, terms, network.
CASES: dict[str, tuple[list[int], int, Backprop, list[Term], type[EGNN]]] = {
    "equal": ([0, 0, 0, 0], 3, Full(), ALL, EGNN),
    "unequal compositions": ([0, 1, 0, 2], 3, Full(), BY_ELEMENT, EGNN),
    "odd batch": ([0, 1, 2], 2, StopGradient(), ALL, EGNN),
    "one segment for two processes": ([1], 3, Adjoint(), ALL, EGNN),
    "single frames": ([0, 1, 2, 1], 1, Full(), BY_ELEMENT, EGNN),
    "a burst on each": ([0, 2, 1, 1], 3, Full(), ALL, NoOxygen),
    "one process has only bursts": ([1, 0, 1, 2], 3, Full(), ALL, NoOxygen),
    "all burst": ([0, 2, 0], 3, Full(), ALL, NoOxygen),
}


def gradients(
    fabric: Fabric | None, case: tuple[list[int], int, Backprop, list[Term], type[EGNN]]
) -> tuple[StepResult, list[Tensor | None]]:
    """Of the joined batch here (no fabric), or summed over the processes' parts of it."""
    runs = [morse_trajectory(20, numbers=n, seed=s) for s, n in enumerate([(6, 1, 8, 1), (6, 1), (8, 1, 1)])]
    order, length, backprop, terms, kind = case
    torch.manual_seed(0)
    model = kind([1, 6, 8], cutoff=4.0, width=8, n_channels=4, n_radial=4)
    set_precision(model, "float64")
    potential, loss = Conservative(model), Loss(terms, StepWeights(5.0, 1.0))
    segments = [Segment(run, 2 + number, length) for number, run in enumerate(order)]
    mine = segments if fabric is None else segments[fabric.global_rank :: fabric.world_size]
    batch = collate(mine, runs) if mine else None
    totals = no_counts() if batch is None else counts(batch.state)
    if fabric is not None:
        totals = sum_over(fabric, totals)
    result = StepResult({}, 0, 0)
    if batch is not None:
        result = loss_and_gradient(potential, batch, loss, backprop, totals)
    parameters = list(potential.parameters())
    if fabric is not None:
        sum_gradients(fabric, parameters)
        result = sum_results(fabric, result, [t.quantity for t in loss.active_terms(length)])
    return result, [p.grad for p in parameters]


def compared(fabric: Fabric, name: str) -> dict[str, Any]:
    joined, expected = gradients(None, CASES[name])
    summed, found = gradients(fabric, CASES[name])
    pairs = [(f, e) for f, e in zip(found, expected, strict=True) if f is not None and e is not None]
    differences = [float((f - e).abs().max() / e.abs().max().clamp(min=1e-30)) for f, e in pairs]
    return {
        "difference": max(differences, default=0.0),
        "n_with_gradient": len(pairs),
        "same_weights_without_gradient": [f is None for f in found] == [e is None for e in expected],
        "numbers": [*summed.parts.values(), summed.n_burst, summed.n_frames],
        "numbers_joined": [
            *(joined.parts.get(n, 0.0) for n in summed.parts),
            joined.n_burst,
            joined.n_frames,
        ],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    fabric = start_processes(parse_config({"data": ["none"], "device": "cpu"}), 1, 1)
    found = {name: compared(fabric, name) for name in CASES}
    if fabric.global_rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")
    end_processes(fabric)
