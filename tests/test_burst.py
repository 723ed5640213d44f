"""A system that bursts leaves the roll-out: its numbers reach no later frame and no gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dyntrain.integrators import Kicks, VelocityVerlet
from dyntrain.models.analytic import LennardJones
from dyntrain.potential import Conservative
from dyntrain.rollout import Adjoint, Backprop, BurstGuard, Frame, Full, StopGradient, Truncated, rollout
from dyntrain.state import State, concatenate
from dyntrain.units import FS
from systems import argon_cluster

DT = 10.0 * FS
N_STEPS = 7
every_backprop = pytest.mark.parametrize(
    "backprop", [StopGradient(), Truncated(3), Full(), Adjoint()], ids=repr
)


def argon_pair(distance: float, speed: float = 0.0) -> State:
    """Two argon atoms that fly at each other."""
    half = torch.tensor([0.0, 0.0, distance / 2], dtype=torch.float64)
    flight = torch.tensor([0.0, 0.0, -speed], dtype=torch.float64)
    return State.from_arrays(
        torch.stack([half, -half]), [18, 18], [39.95, 39.95], velocities=torch.stack([flight, -flight])
    )


def no_kicks(state: State) -> Kicks:
    return Kicks(*torch.zeros(2, N_STEPS, state.n_atoms, 3, dtype=torch.float64))


def kicked_once(value: float) -> Kicks:
    kicks = no_kicks(argon_pair(4.0))
    kicks.positions[2, 1, 0] = value
    return kicks


# What bursts, its kicks, and how many frames it is part of.
BURSTS = {
    # 4.88, 3.9, 2.92, 1.94 Å: there 14 eV an atom.
    "energy": (argon_pair(4.88, 0.49 / DT), no_kicks(argon_pair(4.88)), 3),
    "too far in a step": (argon_pair(4.0), kicked_once(1.5), 3),
    "not a number": (argon_pair(4.0), kicked_once(np.nan), 3),
    "infinite": (argon_pair(4.0), kicked_once(np.inf), 3),
    "at once: forces not a number": (argon_pair(0.0), no_kicks(argon_pair(0.0)), 0),
}
every_burst = pytest.mark.parametrize("burst", BURSTS.values(), ids=BURSTS.keys())


def frame_loss(frame: Frame) -> Tensor:
    """A sum over systems of something of everything."""
    state, prediction = frame.state, frame.prediction
    per_atom = 1e2 * prediction.forces.pow(2) + 1e-2 * state.positions.pow(2) + state.velocities.pow(2)
    return per_atom.sum() + prediction.energy.pow(2).sum()


def gradients_of(
    backprop: Backprop, start: State, kicks: Kicks, n_steps: int = N_STEPS, max_step: float = 1.0
) -> tuple[list[Frame], list[Tensor]]:
    """Frames, and the gradients with respect to parameters, start positions and start velocities."""
    potential = Conservative(LennardJones())
    start = start.replace(
        positions=start.positions.clone().requires_grad_(),
        velocities=start.velocities.clone().requires_grad_(),
    )
    frames = []
    pending = start.positions.new_zeros(())
    for frame in rollout(
        potential,
        start,
        VelocityVerlet(DT),
        n_steps,
        backprop=backprop,
        kicks=kicks,
        guard=BurstGuard(max_step=max_step),
    ):
        frames.append(frame)
        pending = pending + frame_loss(frame)
        if backprop.block is not None and (frame.step + 1) % backprop.block == 0:
            pending.backward()
            pending = start.positions.new_zeros(())
    if pending.requires_grad:
        pending.backward()
    tensors = [*potential.parameters(), start.positions, start.velocities]
    return frames, [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]


def joined(kicks: list[Kicks]) -> Kicks:
    return Kicks(torch.cat([k.positions for k in kicks], 1), torch.cat([k.velocities for k in kicks], 1))


@every_burst
@every_backprop
def test_the_others_go_on_as_if_it_had_never_been_there(
    backprop: Backprop, burst: tuple[State, Kicks, int]
) -> None:
    bursting, its_kicks, n_frames = burst
    fine = [argon_cluster(5), argon_cluster(3, seed=1)]
    kicks = joined([no_kicks(fine[0]), its_kicks, no_kicks(fine[1])])
    frames, gradients = gradients_of(backprop, concatenate([fine[0], bursting, fine[1]]), kicks)

    assert [frame.step for frame in frames] == list(range(N_STEPS + 1))
    systems = [frame.systems.tolist() for frame in frames]
    assert systems == [[0, 1, 2]] * n_frames + [[0, 2]] * (N_STEPS + 1 - n_frames)
    for frame in frames:
        state, prediction = frame.state, frame.prediction
        for tensor in (state.positions, state.velocities, prediction.forces, prediction.energy):
            assert bool(torch.isfinite(tensor).all())

    rest = concatenate(fine)
    rest_frames, expected = gradients_of(backprop, rest, no_kicks(rest))
    for frame, without in zip(frames, rest_frames, strict=True):
        kept = frame.state.select([0, frame.systems.numel() - 1])
        torch.testing.assert_close(kept.positions, without.state.positions, rtol=0, atol=1e-13)
    of_burst = [torch.zeros_like(gradient) for gradient in expected[:2]] + [torch.zeros(2, 3).double()] * 2
    if n_frames:
        # Its part of the loss while it was still whole.
        _, of_burst = gradients_of(backprop, bursting, its_kicks, n_steps=n_frames - 1)
    for k in (0, 1):
        torch.testing.assert_close(gradients[k], expected[k] + of_burst[k], rtol=1e-12, atol=0)
    for k in (2, 3):
        in_order = torch.cat([expected[k][:5], of_burst[k], expected[k][5:]])
        torch.testing.assert_close(gradients[k], in_order, rtol=1e-12, atol=1e-14)


@every_burst
@every_backprop
def test_when_all_have_burst_the_roll_out_ends(backprop: Backprop, burst: tuple[State, Kicks, int]) -> None:
    bursting, its_kicks, n_frames = burst
    twice = concatenate([bursting, bursting])
    frames, gradients = gradients_of(backprop, twice, joined([its_kicks, its_kicks]))
    assert [frame.systems.tolist() for frame in frames] == [[0, 1]] * n_frames
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


@every_backprop
def test_they_may_leave_one_after_the_other(backprop: Backprop) -> None:
    late = Kicks(*(k.roll(2, 0) for k in (kicked_once(1.5).positions, kicked_once(1.5).velocities)))
    parts = [argon_pair(4.0), argon_cluster(3), argon_pair(3.8), argon_pair(4.88, 0.49 / DT)]
    kicks = joined([late, no_kicks(parts[1]), kicked_once(np.nan), no_kicks(parts[3])])
    frames, gradients = gradients_of(backprop, concatenate(parts), kicks)
    assert [frame.systems.tolist() for frame in frames] == [[0, 1, 2, 3]] * 3 + [[0, 1]] * 2 + [[1]] * 3
    assert [frame.state.n_atoms for frame in frames] == [9] * 3 + [5] * 2 + [3] * 3
    alone = [
        gradients_of(backprop, part, part_kicks, n_steps=n_frames - 1)[1]
        for part, part_kicks, n_frames in (
            (parts[0], late, 5),
            (parts[1], no_kicks(parts[1]), N_STEPS + 1),
            (parts[2], kicked_once(np.nan), 3),
            (parts[3], no_kicks(parts[3]), 3),
        )
    ]
    for k in (0, 1):
        expected = torch.stack([part[k] for part in alone]).sum(0)
        torch.testing.assert_close(gradients[k], expected, rtol=1e-12, atol=0)
    for k in (2, 3):
        expected = torch.cat([part[k] for part in alone])
        torch.testing.assert_close(gradients[k], expected, rtol=1e-12, atol=1e-14)


def test_the_step_is_measured_in_space_not_along_an_axis() -> None:
    kicks = no_kicks(argon_pair(4.0))
    kicks.positions[2, 1] = 0.6  # 1.04 Å in all
    for max_step, n_frames in ((1.0, 3), (1.1, N_STEPS + 1)):
        frames, _ = gradients_of(Full(), argon_pair(4.0), kicks, max_step=max_step)
        assert len(frames) == n_frames


def test_without_a_guard_everything_passes() -> None:
    bursting, kicks, _ = BURSTS["not a number"]
    frames = rollout(
        Conservative(LennardJones()), bursting, VelocityVerlet(DT), 2, backprop=Full(), kicks=kicks
    )
    assert len(list(frames)) == 3
