"""Unroll: a roll-out beside the recorded run of a batch, by its kicks or in small steps with its friction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dyntrain.data.segments import Batch
from dyntrain.integrators import VelocityVerlet
from dyntrain.neighbors import Neighbors
from dyntrain.potential import Potential, Prediction
from dyntrain.rollout import Adjoint, Backprop, Frame, Full, Guard, Resumed, StopGradient, rollout
from dyntrain.state import State


def unroll(
    potential: Potential, batch: Batch, *, backprop: Backprop, neighbors: Neighbors, guard: Guard | None
) -> Iterator[Frame]:
    """Let ``potential`` move the atoms along the batch's windows; frame k stands beside their frame k.

    Where the frames lie close enough for velocity Verlet, one step leads from each to the next, and the run's
    kicks make the true potential follow it to rounding. Else ``batch.small_steps`` steps do, damped by the
    friction that the run's energies tell of (``Trajectory.friction``); `backprop` then counts frames, and
    gradients flow through the small steps between them, except with ``StopGradient``.

    Args:
        backprop, neighbors, guard: as of ``rollout``.
    """
    if batch.friction is not None:
        return _in_small_steps(potential, batch, batch.friction, backprop, neighbors, guard)
    return rollout(
        potential,
        batch.state,
        VelocityVerlet(batch.dt),
        batch.length - 1,
        backprop=backprop,
        kicks=batch.kicks,
        neighbors=neighbors,
        guard=guard,
    )


@dataclass(frozen=True, eq=False)
class _Damped:
    """Velocity Verlet between two halves of the friction: v ← v exp(−½ ξ dt) before and after each step.

    friction: ξ of each system, [n_systems] 1/ASE time.
    """

    verlet: VelocityVerlet
    friction: Tensor

    def select(self, systems: Tensor) -> _Damped:
        return _Damped(self.verlet.select(systems), self.friction[systems])

    def drift(self, state: State, forces: Tensor, kick: Tensor | None = None) -> State:
        return self.verlet.drift(self._damped(state), forces, kick)

    def finish(
        self, state: State, forces_old: Tensor, forces_new: Tensor, kick: Tensor | None = None
    ) -> State:
        return self._damped(self.verlet.finish(state, forces_old, forces_new, kick))

    def _damped(self, state: State) -> State:
        factor = torch.exp(-0.5 * self.friction * self.verlet.dt.to(state.device))
        return state.replace(velocities=state.velocities * factor[state.system_idx, None])


def _in_small_steps(
    potential: Potential,
    batch: Batch,
    friction: Tensor,
    backprop: Backprop,
    neighbors: Neighbors,
    guard: Guard | None,
) -> Iterator[Frame]:
    inside = backprop if isinstance(backprop, StopGradient | Adjoint) else Full()
    verlet = VelocityVerlet(batch.dt / batch.small_steps)
    first = rollout(potential, batch.state, verlet, 0, backprop=Full(), neighbors=neighbors, guard=guard)
    frame = next(first, None)
    start_energy = None if frame is None else frame.prediction.energy.detach()
    while frame is not None:
        yield frame
        step = frame.step + 1
        if step == batch.length or start_energy is None:
            return
        if backprop.block is not None and step % backprop.block == 0:
            frame = _detached(frame)
        alone = torch.arange(frame.systems.numel(), device=frame.systems.device)
        here = Resumed(Frame(0, frame.state, frame.prediction, alone), start_energy)
        frames = rollout(
            potential,
            frame.state,
            _Damped(verlet.select(frame.systems), friction[frame.step][frame.systems]),
            batch.small_steps,
            backprop=inside,
            neighbors=neighbors,
            guard=guard,
            resumed=None if isinstance(inside, Adjoint) else here,
        )
        *_, last = (None, *frames)
        if last is None or last.step < batch.small_steps:
            return
        start_energy = start_energy[last.systems]
        frame = Frame(step, last.state, last.prediction, frame.systems[last.systems])


def _detached(frame: Frame) -> Frame:
    prediction = Prediction(frame.prediction.energy.detach(), frame.prediction.forces.detach())
    return Frame(frame.step, frame.state.detach(), prediction, frame.systems)
