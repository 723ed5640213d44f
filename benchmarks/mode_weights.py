"""A lever that needs code of its own: a loss of forces by normal mode, slow modes weighing more. Ethanol.

    python benchmarks/mode_weights.py --output modes --seeds 0 1 2

Errors of the forces in slow modes move the atoms far, those in fast ones only to and fro. Modes are those of
the recorded forces (eigenvectors of ⟨F̃F̃ᵀ⟩, F̃ = F/√m turned into the molecule's frame; eigenvalues ω²k_BT),
and the loss is Σ_m ω_m^(−p) |e_m·δF̃| in place of Σ |δF|. Trained and measured as the arms of levers.py, from
the same start. Not kept in dyntrain: docs/research.md says what came of it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from levers import ARMS, CONTROL, Levers, Sizes
from levers_table import tables
from torch import Tensor

from dyntrain.atomic import write_text
from dyntrain.data.readers import read_trajectories
from dyntrain.data.segments import Targets
from dyntrain.data.trajectory import Trajectory
from dyntrain.loss import Loss
from dyntrain.rollout import Frame
from dyntrain.state import State
from dyntrain.threads import limit_threads
from dyntrain.training import setup

POWERS = {"by mode, all alike": 0.0, "by mode, 1/ω": 1.0, "by mode, 1/ω²": 2.0}
_RIGID = 6
"""Motions of the whole molecule, whose ω is none: they weigh as the slowest mode does."""


def turns(positions: Tensor, reference: Tensor, masses: Tensor) -> Tensor:
    """Rotations R [n, 3, 3], R r ≈ reference, for structures r [n, n_atoms, 3] of one molecule (Kabsch)."""
    weights = masses[:, None] / masses.sum()
    arms = positions - (weights * positions).sum(1, keepdim=True)
    fixed = reference - (weights * reference).sum(0)
    u, _, vt = torch.linalg.svd(torch.einsum("nai,aj->nij", weights * arms, fixed))
    v, ut = vt.transpose(1, 2), u.transpose(1, 2)
    signs = torch.ones(len(positions), 3, dtype=positions.dtype)
    signs[:, 2] = torch.linalg.det(v @ ut)
    return v @ (signs[:, :, None] * ut)


class ByMode(Loss):
    """Force loss of one molecule's normal modes, weighted by ω^(−power)."""

    def __init__(self, runs: list[Trajectory], power: float) -> None:
        super().__init__([])
        self.masses = torch.from_numpy(runs[0].masses)
        self.reference = torch.from_numpy(runs[0].positions[0])
        positions = torch.from_numpy(np.concatenate([run.positions for run in runs]))
        forces = torch.from_numpy(np.concatenate([run.forces for run in runs]))
        rows = self._in_frame(positions, forces)
        squares, self.modes = torch.linalg.eigh(rows.T @ rows / len(rows))
        weights = squares.clamp(min=float(squares[_RIGID])) ** (-power / 2)
        # Forces as large as the recorded ones weigh as much as they do in the ordinary loss.
        self.weights = weights * (rows @ self.modes * weights).abs().mean() ** -1 * forces.abs().mean()

    def _in_frame(self, positions: Tensor, forces: Tensor) -> Tensor:
        turned = torch.einsum("nij,naj->nai", turns(positions, self.reference, self.masses), forces)
        return (turned / self.masses.sqrt()[:, None]).flatten(1)

    def active_terms(self, segment_length: int) -> list[Any]:
        return []

    def at(
        self,
        frame: Frame,
        targets: Targets,
        start: State,
        totals: Tensor,
        segment_length: int,
        dt: Tensor | None = None,
    ) -> dict[str, Tensor]:
        atoms = start.atoms_of(frame.systems)
        delta = (frame.prediction.forces - targets.forces[frame.step][atoms]).double()
        shape = (-1, len(self.masses), 3)
        positions = targets.positions[frame.step][atoms]
        rows = self._in_frame(positions.reshape(shape), delta.reshape(shape))
        return {"forces": (rows @ self.modes * self.weights).abs().mean(1).sum() / totals[-1]}


def result(levers: Levers, arm: str) -> dict[str, Any]:
    """The figures of an arm by this loss, else as one-step training."""

    def loss(_: Any) -> Loss:
        return ByMode(read_trajectories(levers.files["train"]), POWERS[arm])

    with mock.patch.object(setup, "make_loss", loss), mock.patch.dict(ARMS, {arm: {}}):
        return levers.result(arm)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("modes"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--evaluations", type=float, nargs=2, default=(200_000, 16_000))
    asked = parser.parse_args()
    limit_threads(9)
    sizes = Sizes(start_evaluations=asked.evaluations[0], evaluations=asked.evaluations[1])
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for seed in asked.seeds:
        levers = Levers(asked.output, seed, sizes, None)
        for arm in (None, CONTROL):
            results.setdefault(arm or "start", {})[str(seed)] = levers.result(arm)
        for arm in POWERS:
            results.setdefault(arm, {})[str(seed)] = result(levers, arm)
        write_text(asked.output / "results.json", json.dumps(results) + "\n")
    print(tables(results, CONTROL))


if __name__ == "__main__":
    main()
