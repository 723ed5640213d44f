"""Validation: roll-outs from held-out starts beside the recorded run, its kicks applied."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from lightning_fabric import Fabric

from dyntrain.curriculum import Score
from dyntrain.data.segments import Batch, Segments, collate
from dyntrain.data.small_steps import by_small_steps
from dyntrain.data.trajectory import Trajectory
from dyntrain.loss import Loss, counts
from dyntrain.neighbors import VerletNeighbors
from dyntrain.potential import Potential
from dyntrain.rollout import BurstGuard, StopGradient
from dyntrain.training.processes import sum_over
from dyntrain.training.step import SKIN
from dyntrain.unroll import unroll

_SUMS = (
    "loss",
    "weight",
    "force_first",
    "components_first",
    "size_first",
    "force",
    "components",
    "energy",
    "frames",
    "burst",
    "stress",
    "stress_components",
)

USELESS = (
    "At the last validation the model's forces were no better than none at all: it has learnt nothing, or a "
    "learning rate too high has spoilt it. model.pt is the best of all validations; look at log.csv, and try "
    "a lower `curriculum.lr` or a longer training in another output."
)

_LARGEST_BATCH = {"cpu": 20_000, "cuda": 1_000_000}
"""Atoms × frames unrolled together: a kill in a validation costs a batch, which this keeps to seconds."""


class Validation:
    """A fixed set of held-out starts, evaluated batch by batch so that a killed one can be resumed.

    Args:
        segments: the starts and how far they run.
        batch_size: starts unrolled together, fewer where the structures are large.
    """

    def __init__(
        self, segments: Segments, runs: Sequence[Trajectory], loss: Loss, batch_size: int, fabric: Fabric
    ) -> None:
        self.segments, self.runs, self.loss, self.fabric = segments, runs, loss, fabric
        n_atoms = max(run.n_atoms for run in runs)
        fitting = _LARGEST_BATCH[fabric.device.type] // (n_atoms * segments.length)
        size = max(1, min(batch_size, fitting))
        groups = by_small_steps(segments, runs)
        self.batches = [group[k : k + size] for group in groups for k in range(0, len(group), size)]
        starts = [counts(runs[segment.run].state(segment.start)) for segment in segments]
        self.totals = torch.stack(starts).sum(0).to(fabric.device)

    @property
    def n_evaluations(self) -> int:
        """Evaluations of one structure that a whole validation takes."""
        return len(self.segments) * self.segments.length

    def round(
        self, potential: Potential, n_done: int, sums: dict[str, float]
    ) -> tuple[int, dict[str, float]]:
        """The next batches, one a process: how many are done then, and their sums added to ``sums``."""
        local = dict.fromkeys(_SUMS, 0.0)
        if n_done + self.fabric.global_rank < len(self.batches):
            segments = self.batches[n_done + self.fabric.global_rank]
            local = self._batch_sums(potential, collate(segments, self.runs).to(self.fabric.device))
        numbers = torch.tensor([local[key] for key in _SUMS], dtype=torch.float64)
        found = sum_over(self.fabric, numbers).tolist()
        n_done = min(n_done + self.fabric.world_size, len(self.batches))
        return n_done, {key: sums.get(key, 0.0) + value for key, value in zip(_SUMS, found, strict=True)}

    @torch.no_grad()
    def _batch_sums(self, potential: Potential, batch: Batch) -> dict[str, float]:
        sums = dict.fromkeys(_SUMS, 0.0)
        neighbors = VerletNeighbors(potential.cutoff, SKIN)
        frames = unroll(potential, batch, backprop=StopGradient(), neighbors=neighbors, guard=BurstGuard())
        n_left = 0
        for frame in frames:
            whole = frame.systems.numel() == batch.state.n_systems
            atoms = slice(None) if whole else batch.state.atoms_of(frame.systems)
            parts = self.loss.at(frame, batch.targets, batch.state, self.totals, batch.length, batch.dt)
            error = (frame.prediction.forces - batch.targets.forces[frame.step][atoms]).abs()
            if batch.targets.unlabelled is not None:
                error = error[~batch.targets.unlabelled[atoms]]
            energy = frame.prediction.energy - batch.targets.energies[frame.step][frame.systems]
            sums["loss"] += float(sum(parts.values()))
            sums["force"] += float(error.sum())
            sums["components"] += error.numel()
            if frame.step == 0:
                sums["force_first"] += float(error.sum())
                sums["components_first"] += error.numel()
                asked = batch.targets.forces[0].abs()
                if batch.targets.unlabelled is not None:
                    asked = asked[~batch.targets.unlabelled]
                sums["size_first"] += float(asked.sum())
                if self.loss.stress_term() is not None and batch.targets.stress is not None:
                    stress = potential.stress(frame.state, neighbors(frame.state))
                    miss = (stress - batch.targets.stress[0][frame.systems]).abs()
                    sums["stress"] += float(miss.sum())
                    sums["stress_components"] += miss.numel()
            sums["energy"] += float((energy.abs() / frame.state.n_atoms_per_system()).sum())
            sums["frames"] += energy.numel()
            sums["weight"] += energy.numel() * self.loss.step_weights.at(frame.step, batch.length)
            n_left = frame.systems.numel() if frame.step == batch.length - 1 else 0
        sums["burst"] = batch.state.n_systems - n_left
        return sums

    def score(self, sums: dict[str, float]) -> Score:
        """Frames that were never reached, then the mean loss of those that were, weighted as in training.

        Not the number of roll-outs that burst: of two potentials that lose them all, the one that loses them
        later is the better one, though its loss is larger.
        """
        mean_loss = sums["loss"] * len(self.segments) / sums["weight"] if sums["weight"] else math.inf
        return self.n_evaluations - int(sums["frames"]), mean_loss


def is_useless(sums: dict[str, float]) -> bool:
    """Whether forces of zero would be as good at the starts: the network has died, or learnt nothing."""
    return sums["force_first"] >= 0.99 * sums["size_first"] > 0


def validation_row(sums: dict[str, float], score: Score) -> dict[str, float | None]:
    """The validation's columns of log.csv; None where every roll-out burst at once."""

    def mean(total: str, number: str) -> float | None:
        return sums[total] / sums[number] if sums[number] else None

    return {
        "validation_loss": score[1] if math.isfinite(score[1]) else None,
        "validation_force_mae_first": mean("force_first", "components_first"),
        "validation_force_mae": mean("force", "components"),
        "validation_energy_mae": mean("energy", "frames"),
        "validation_stress_mae": mean("stress", "stress_components"),
        "burst_validation": int(sums["burst"]),
    }
