"""The one roll-out loop: a potential moves the atoms; how gradients flow back is an argument."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dyntrain.integrators import Integrator, Kicks
from dyntrain.neighbors import Neighbors, VerletNeighbors
from dyntrain.potential import Potential, Prediction
from dyntrain.state import State
from dyntrain.threads import return_freed_memory

# --- how the gradient flows -------------------------------------------------------------------------


@dataclass(frozen=True)
class StopGradient:
    """No gradient from one step to the next: the whole state is detached after every frame.

    The published code's choice. Flat memory if each frame's loss is back-propagated as it comes.
    """

    block: ClassVar[int | None] = 1


@dataclass(frozen=True)
class Truncated:
    """Gradients flow through ``every`` frames, then the state is detached."""

    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"Truncated(every) needs every >= 1, got {self.every}")

    @property
    def block(self) -> int | None:
        return self.every


@dataclass(frozen=True)
class Full:
    """Gradients through the whole roll-out, all graphs kept: memory grows with the number of steps."""

    block: ClassVar[int | None] = None


@dataclass(frozen=True)
class Adjoint:
    """The gradient of ``Full`` in flat memory: only positions, velocities and forces are kept.

    Each step's force graph is made again in the backward pass and freed (the discrete adjoint of
    velocity Verlet; METHOD: idea 1). Costs one more evaluation without graph a step.
    """

    block: ClassVar[int | None] = None


Backprop = StopGradient | Truncated | Full | Adjoint
"""``block``: after that many frames the graph is cut, and their losses can be back-propagated at once
(None: only after the last)."""


# --- what comes out ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Frame:
    """One step of a roll-out.

    step:       0 for the start, …, n_steps
    state:      positions and velocities at this step
    prediction: energy and forces at these positions
    systems:    the original numbers of the systems that are in ``state``, [n_systems]; fewer than at the
                start once some have burst
    """

    step: int
    state: State
    prediction: Prediction
    systems: Tensor


@dataclass(frozen=True, eq=False)
class Resumed:
    """Where an earlier roll-out stands: its last frame, and the energies of its start, [n_systems] eV."""

    frame: Frame
    start_energy: Tensor


class Guard(Protocol):
    """Which systems of a step may stay, bool [n_systems]; the others have burst."""

    def moves_in_bounds(self, old: State, new: State) -> Tensor: ...

    def prediction_in_bounds(self, state: State, prediction: Prediction, start_energy: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class BurstGuard:
    """When a roll-out counts as burst: its numbers are beyond reason and must not reach a loss.

    max_step:   an atom moves further than this in one step, Å
    max_energy: the potential energy differs from the start's by more than this, eV per atom
    """

    max_step: float = 1.0
    max_energy: float = 10.0

    def _all_atoms(self, state: State, fine: Tensor) -> Tensor:
        broken = torch.bincount(state.system_idx, weights=(~fine).double(), minlength=state.n_systems)
        return broken == 0

    def moves_in_bounds(self, old: State, new: State) -> Tensor:
        """Systems whose atoms all went a sane way, bool [n_systems]."""
        way = (new.positions.detach() - old.positions.detach()).norm(dim=-1)
        return self._all_atoms(old, way <= self.max_step)  # NaN compares False

    def prediction_in_bounds(self, state: State, prediction: Prediction, start_energy: Tensor) -> Tensor:
        """Systems whose energy and forces are finite and within reason, bool [n_systems]."""
        change = (prediction.energy.detach() - start_energy).abs() / state.n_atoms_per_system()
        fine = change <= self.max_energy  # NaN compares False
        forces = prediction.forces.detach()
        if math.isfinite(float(forces.sum())):  # so each of them is
            return fine
        return fine & self._all_atoms(state, torch.isfinite(forces).all(-1))


# --- the loop ----------------------------------------------------------------------------------------


def rollout(
    potential: Potential,
    state: State,
    integrator: Integrator,
    n_steps: int,
    *,
    backprop: Backprop,
    kicks: Kicks | None = None,
    neighbors: Neighbors | None = None,
    guard: Guard | None = None,
    resumed: Resumed | None = None,
) -> Iterator[Frame]:
    """Let ``potential`` move the atoms and yield n_steps + 1 frames, the start included.

    Args:
        potential: energies and forces.
        state: the start.
        integrator: the step.
        n_steps: number of steps (segment length S = n_steps + 1 frames).
        backprop: how the gradient flows between steps; with ``StopGradient`` and ``Truncated`` call
            backward on the losses of a block before asking for the next frame.
        kicks: of the recorded run that the frames will be compared with, at least n_steps of them; None
            for free motion.
        neighbors: default ``VerletNeighbors(potential.cutoff)``, exact.
        guard: drops the systems that burst (later frames hold fewer; none left: the iteration ends);
            None lets everything through.
        resumed: go on after this frame of an earlier roll-out from the same start; it is not yielded again.

    Yields:
        Frame 0 … n_steps.
    """
    if kicks is not None and kicks.n_steps < n_steps:
        raise ValueError(f"a roll-out of {n_steps} steps needs as many kicks, got {kicks.n_steps}")
    neighbors = neighbors if neighbors is not None else VerletNeighbors(potential.cutoff)
    job = _Job(potential, integrator, n_steps, kicks, neighbors, guard)
    if isinstance(backprop, Adjoint) and torch.is_grad_enabled():
        if resumed is not None:
            raise ValueError("a roll-out with the adjoint's gradient cannot be resumed: start it anew")
        return _adjoint_frames(job, state)
    if resumed is not None:
        return _frames_after(job, state, resumed.frame, resumed.start_energy, backprop.block)
    return _frames(job, state, backprop.block)


@dataclass(frozen=True, eq=False)
class _Job:
    potential: Potential
    integrator: Integrator
    n_steps: int
    kicks: Kicks | None
    neighbors: Neighbors
    guard: Guard | None

    def predict(self, state: State) -> Prediction:
        return self.potential(state, self.neighbors(state))

    def drift(self, frame: Frame, start: State) -> State:
        moved = self.integrator.select(frame.systems).drift(
            frame.state, frame.prediction.forces, self._kick("positions", frame, start)
        )
        if self.kicks is None or self.kicks.cells is None:
            return moved
        return moved.replace(cell=self.kicks.cells[frame.step][frame.systems])

    def finish(self, frame: Frame, moved: State, forces: Tensor, start: State) -> State:
        return self.integrator.select(frame.systems).finish(
            moved, frame.prediction.forces, forces, self._kick("velocities", frame, start)
        )

    def _kick(self, which: str, frame: Frame, start: State) -> Tensor | None:
        if self.kicks is None:
            return None
        kick = getattr(self.kicks, which)[frame.step]
        return kick if frame.systems.numel() == start.n_systems else kick[start.atoms_of(frame.systems)]


def _selected(frame: Frame, keep: Tensor) -> Frame:
    """The frame with only the systems at positions ``keep`` (int64) of it."""
    atoms = frame.state.atoms_of(keep)
    prediction = Prediction(frame.prediction.energy[keep], frame.prediction.forces[atoms])
    return Frame(frame.step, frame.state.select(keep), prediction, frame.systems[keep])


def _detached(frame: Frame) -> Frame:
    prediction = Prediction(frame.prediction.energy.detach(), frame.prediction.forces.detach())
    return Frame(frame.step, frame.state.detach(), prediction, frame.systems)


@lru_cache(maxsize=16)
def _numbers(n: int, device: torch.device) -> Tensor:
    """0 … n − 1: of all systems."""
    return torch.arange(n, device=device)


def _frames(job: _Job, start: State, block: int | None) -> Iterator[Frame]:
    guard = job.guard
    state, systems = start, _numbers(start.n_systems, start.device)
    prediction = job.predict(state)
    start_energy = prediction.energy.detach()
    if guard is not None:
        fine = guard.prediction_in_bounds(state, prediction, start_energy)
        if not bool(fine.all()):
            systems = fine.nonzero().squeeze(1)
            if systems.numel() == 0:
                return
            state = state.select(systems)
            prediction = job.predict(state)
    frame = Frame(0, state, prediction, systems)
    yield frame
    yield from _frames_after(job, start, frame, start_energy, block)


def _frames_after(
    job: _Job, start: State, frame: Frame, start_energy: Tensor, block: int | None
) -> Iterator[Frame]:
    for step in range(frame.step, job.n_steps):
        if block is not None and (step + 1) % block == 0:
            frame = _detached(frame)
        following = _next_frame(job, frame, start, start_energy)
        if following is None:
            return
        frame = following
        yield frame


def _next_frame(job: _Job, frame: Frame, start: State, start_energy: Tensor) -> Frame | None:
    """The next frame of the systems that survive the step; None when none does.

    A burst system is taken out *before* the frame that counts is computed: multiplied by zero, its NaN
    would still reach the weights.
    """
    guard = job.guard
    while True:
        moved = job.drift(frame, start)
        if guard is not None:
            fine = guard.moves_in_bounds(frame.state, moved)
            if not bool(fine.all()):
                if not bool(fine.any()):
                    return None
                frame = _selected(frame, fine.nonzero().squeeze(1))
                continue
        prediction = job.predict(moved)
        if guard is not None:
            fine = guard.prediction_in_bounds(moved, prediction, start_energy[frame.systems])
            if not bool(fine.all()):
                if not bool(fine.any()):
                    return None
                frame = _selected(frame, fine.nonzero().squeeze(1))
                continue
        state = job.finish(frame, moved, prediction.forces, start)
        return Frame(frame.step + 1, state, prediction, frame.systems)


# --- the discrete adjoint ------------------------------------------------------------------------------


def _adjoint_frames(job: _Job, start: State) -> Iterator[Frame]:
    parameters = [p for p in job.potential.parameters() if p.requires_grad]
    shells: list[Frame] = []
    flat = _AdjointRollout.apply(job, start, shells, start.positions, start.velocities, *parameters)
    for number, shell in enumerate(shells):
        positions, velocities, forces, energy = flat[4 * number : 4 * number + 4]
        state = shell.state.replace(positions=positions, velocities=velocities)
        yield Frame(shell.step, state, Prediction(energy, forces), shell.systems)


_FRAMES_BETWEEN_RETURNS = 16
"""Of memory: what is handed back comes again as new pages, which costs 1 to 4 % of a long roll-out's time."""


class _AdjointRollout(torch.autograd.Function):
    """All frames in one autograd node: forward without graphs, backward one step's graph at a time."""

    @staticmethod
    def forward(
        ctx: Any, job: _Job, start: State, shells: list[Frame], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        start = start.detach()
        frames = list(_frames(job, start, None))
        ctx.job, ctx.start, ctx.frames = job, start, frames
        # Saved so that autograd refuses a backward pass after the parameters were changed in place.
        ctx.save_for_backward(*tensors[2:])
        shells.extend(frames)
        flat: list[Tensor] = []
        for frame in frames:
            flat += [
                # Outputs must be new tensors: frame 0's are the caller's own.
                frame.state.positions.view_as(frame.state.positions),
                frame.state.velocities.view_as(frame.state.velocities),
                frame.prediction.forces.view_as(frame.prediction.forces),
                frame.prediction.energy.view_as(frame.prediction.energy),
            ]
        return tuple(flat)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        job, start, frames, parameters = ctx.job, ctx.start, ctx.frames, ctx.saved_tensors
        sums: list[Tensor | None] = [None] * len(parameters)

        def accumulate(gradients: tuple[Tensor | None, ...]) -> None:
            for index, gradient in enumerate(gradients):
                if gradient is not None:
                    total = sums[index]
                    sums[index] = gradient if total is None else total + gradient

        if not frames:
            return (None,) * (5 + len(parameters))
        to_positions, to_velocities, to_forces, to_energy = cotangents[-4:]
        for number in range(len(frames) - 1, 0, -1):
            before, after = frames[number - 1], frames[number]
            if number > _FRAMES_BETWEEN_RETURNS and (len(frames) - number) % _FRAMES_BETWEEN_RETURNS == 1:
                return_freed_memory()
            with torch.enable_grad():
                positions = before.state.positions.detach().requires_grad_()
                velocities = before.state.velocities.detach().requires_grad_()
                forces = before.prediction.forces.detach().requires_grad_()
                frame = Frame(
                    before.step,
                    before.state.replace(positions=positions, velocities=velocities),
                    Prediction(before.prediction.energy, forces),
                    before.systems,
                )
                if after.systems.numel() != before.systems.numel():
                    frame = _selected(frame, torch.searchsorted(before.systems, after.systems))
                moved = job.drift(frame, start)
                prediction = job.predict(moved)
                state = job.finish(frame, moved, prediction.forces, start)
                gradients = torch.autograd.grad(
                    (moved.positions, state.velocities, prediction.forces, prediction.energy),
                    (positions, velocities, forces, *parameters),
                    (to_positions, to_velocities, to_forces, to_energy),
                    allow_unused=True,
                )
            accumulate(gradients[3:])
            del moved, prediction, state  # this step's graph goes before the next is made
            at = 4 * (number - 1)
            to_positions = cotangents[at] + gradients[0]
            to_velocities = cotangents[at + 1] + gradients[1]
            to_forces = cotangents[at + 2] + gradients[2]
            to_energy = cotangents[at + 3]
        with torch.enable_grad():
            first = frames[0]
            positions = first.state.positions.detach().requires_grad_()
            prediction = job.predict(first.state.replace(positions=positions))
            gradients = torch.autograd.grad(
                (prediction.forces, prediction.energy),
                (positions, *parameters),
                (to_forces, to_energy),
                allow_unused=True,
            )
        accumulate(gradients[1:])
        to_positions = to_positions + gradients[0]
        if first.systems.numel() != start.n_systems:
            atoms = start.atoms_of(first.systems)
            to_positions = torch.zeros_like(start.positions).index_add(0, atoms, to_positions)
            to_velocities = torch.zeros_like(start.velocities).index_add(0, atoms, to_velocities)
        return (None, None, None, to_positions, to_velocities, *sums)
