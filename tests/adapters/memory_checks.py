"""Memory of a roll-out through a network and its gradient: flat in the segment length with Adjoint."""

from __future__ import annotations

import torch

from dyntrain.integrators import VelocityVerlet
from dyntrain.models.family import FamilyModel
from dyntrain.potential import Conservative
from dyntrain.rollout import Adjoint, Backprop, Full, rollout
from dyntrain.state import State
from dyntrain.units import FS
from test_rollout_memory import LiveBytes


def peak_bytes(model: FamilyModel, start: State, backprop: Backprop, segment_length: int) -> int:
    """Of a roll-out of S frames, a loss of the forces in each, and the gradient."""
    with LiveBytes() as live:
        frames = rollout(
            Conservative(model), start, VelocityVerlet(0.2 * FS), segment_length - 1, backprop=backprop
        )
        total = torch.stack([frame.prediction.forces.pow(2).sum() for frame in frames]).sum()
        total.backward()
    model.zero_grad(set_to_none=True)
    return live.peak


def assert_flat_memory(model: FamilyModel, start: State) -> None:
    """From 4 to 16 frames Adjoint needs only the frames themselves more, Full the graph of each."""
    frame_bytes = 2 * 8 * (3 * 3 * start.n_atoms + 1)
    # The first calls compile what the package scripts.
    for _ in range(2):
        peak_bytes(model, start, Full(), 2)
    short, long = (peak_bytes(model, start, Adjoint(), s) - s * frame_bytes for s in (4, 16))
    assert long <= 1.05 * short, f"{short} bytes for 4 frames, {long} for 16"
    assert peak_bytes(model, start, Full(), 16) > 2.5 * long
