"""Validation: roll-outs from held-out starts beside the recorded run, its kicks applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor

from dyntrain.curriculum import Score
from dyntrain.data.segments import Batch, Segments, collate
from dyntrain.data.trajectory import Trajectory
from dyntrain.integrators import VelocityVerlet
from dyntrain.loss import Loss, counts
from dyntrain.neighbors import VerletNeighbors
from dyntrain.potential import Potential
from dyntrain.rollout import BurstGuard, StopGradient, rollout
from dyntrain.training.step import SKIN

_SUMS = ("loss", "force_first", "components_first", "force", "components", "energy", "energies", "burst")


class Validation:
    """A fixed set of held-out starts, evaluated batch by batch so that a long one can be resumed.

    Args:
        segments: the starts and how far they run.
        batch_size: starts unrolled together.
    """

    def __init__(
        self, segments: Segments, runs: Sequence[Trajectory], loss: Loss, batch_size: int, fabric: Fabric
    ) -> None:
        self.segments, self.runs, self.loss, self.fabric = segments, runs, loss, fabric
        self.batches = [segments[k : k + batch_size] for k in range(0, len(segments), batch_size)]
        self.totals = torch.stack(
            [counts(runs[segment.run].state(segment.start)) for segment in segments]
        ).sum(0)

    @property
    def n_evaluations(self) -> int:
        """Evaluations of one structure that a whole validation takes."""
        return len(self.segments) * self.segments.length

    def run(
        self,
        potential: Potential,
        first_batch: int,
        sums: dict[str, float],
        after_batch: Callable[[int, dict[str, float]], None],
    ) -> dict[str, float]:
        """Sums over all batches from ``first_batch`` on, added to ``sums``.

        Each process takes every n-th batch; ``after_batch`` hears of every round of them.
        """
        world, rank = self.fabric.world_size, self.fabric.global_rank
        for number in range(first_batch, len(self.batches), world):
            local = dict.fromkeys(_SUMS, 0.0)
            if number + rank < len(self.batches):
                batch = collate(self.batches[number + rank], self.runs).to(self.fabric.device)
                local = self._batch_sums(potential, batch)
            found = torch.tensor([local[key] for key in _SUMS], dtype=torch.float64)
            if world > 1:
                found = self.fabric.all_reduce(found, reduce_op="sum")
            sums = {key: sums.get(key, 0.0) + float(value) for key, value in zip(_SUMS, found, strict=True)}
            after_batch(number + world, sums)
        return sums

    @torch.no_grad()
    def _batch_sums(self, potential: Potential, batch: Batch) -> dict[str, float]:
        sums = dict.fromkeys(_SUMS, 0.0)
        totals: Tensor = self.totals.to(self.fabric.device)
        frames = rollout(
            potential,
            batch.state,
            VelocityVerlet(batch.dt),
            batch.length - 1,
            backprop=StopGradient(),
            kicks=batch.kicks,
            neighbors=VerletNeighbors(potential.cutoff, SKIN),
            guard=BurstGuard(),
        )
        n_left = 0
        for frame in frames:
            whole = frame.systems.numel() == batch.state.n_systems
            atoms = slice(None) if whole else batch.state.atoms_of(frame.systems)
            parts = self.loss.at(frame, batch.targets, batch.state, totals, batch.length)
            error = (frame.prediction.forces - batch.targets.forces[frame.step][atoms]).abs()
            energy = frame.prediction.energy - batch.targets.energies[frame.step][frame.systems]
            sums["loss"] += float(sum(parts.values()))
            sums["force"] += float(error.sum())
            sums["components"] += error.numel()
            if frame.step == 0:
                sums["force_first"] += float(error.sum())
                sums["components_first"] += error.numel()
            sums["energy"] += float((energy.abs() / frame.state.n_atoms_per_system()).sum())
            sums["energies"] += energy.numel()
            n_left = frame.systems.numel() if frame.step == batch.length - 1 else 0
        sums["burst"] = batch.state.n_systems - n_left
        return sums

    def score(self, sums: dict[str, float]) -> Score:
        """Fewer bursts are better; then the mean loss of a step, weighted like the training's."""
        weights = self.loss.step_weights
        length = self.segments.length
        total = sum(weights.at(step, length) for step in range(length))
        return int(sums["burst"]), sums["loss"] / total


def validation_row(sums: dict[str, float], score: Score) -> dict[str, float | None]:
    """The validation's columns of log.csv; None where every roll-out burst at once."""

    def mean(total: str, number: str) -> float | None:
        return sums[total] / sums[number] if sums[number] else None

    return {
        "validation_loss": score[1],
        "validation_force_mae_first": mean("force_first", "components_first"),
        "validation_force_mae": mean("force", "components"),
        "validation_energy_mae": mean("energy", "energies"),
        "burst_validation": score[0],
    }
