"""The run: batched molecular dynamics without gradient on the one roll-out loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dyntrain.integrators import VelocityVerlet
from dyntrain.neighbors import Neighbors, VerletNeighbors
from dyntrain.potential import Potential
from dyntrain.rollout import BurstGuard, Frame, Full, Resumed, rollout
from dyntrain.simulate.bursts import Burst, WatchedGuard
from dyntrain.state import State
from dyntrain.thermostats import Thermostat, Thermostatted


def device_of(potential: Potential) -> torch.device:
    """Where a potential's tensors are (the CPU for one without any)."""
    return next((t.device for t in (*potential.parameters(), *potential.buffers())), torch.device("cpu"))


@dataclass(frozen=True, eq=False)
class RunState:
    """All that a run needs to go on to the same numbers.

    frame:        the last one; its systems are those that have not burst
    start_energy: potential energy of each system of the start, [n_systems] eV
    variables:    of the thermostat, [n_systems, n_variables]; None without one
    bursts:       the systems lost so far
    """

    frame: Frame
    start_energy: Tensor
    variables: Tensor | None
    bursts: tuple[Burst, ...]


class Simulation:
    """Free motion of a batch of systems; iterating runs it.

    Attributes:
        n_steps_done: the last step that was sound.
    """

    def __init__(
        self,
        potential: Potential,
        state: State,
        verlet: VelocityVerlet,
        n_steps: int,
        every: int,
        guard: BurstGuard,
        neighbors: Neighbors,
        thermostat: Thermostat | None,
        resumed: RunState | None,
    ) -> None:
        self.n_steps_done = 0
        self._potential, self._start, self._verlet = potential, state, verlet
        self._n_steps, self._every, self._neighbors = n_steps, every, neighbors
        self._guard_limits, self._thermostat, self._resumed = guard, thermostat, resumed
        self._prepare()

    def _prepare(self) -> None:
        device = self._start.device
        self._guard = WatchedGuard(self._guard_limits, self._start.n_systems)
        self._start_energy = torch.zeros(0)
        self._bath: Thermostatted | None = None
        resumed = self._resumed
        if resumed is not None:
            self._guard.resume(resumed.frame, list(resumed.bursts))
            self._start_energy, self.n_steps_done = resumed.start_energy, resumed.frame.step
        if self._thermostat is not None:
            variables = None if resumed is None else resumed.variables
            self._bath = Thermostatted(
                self._verlet, self._thermostat, step=self.n_steps_done, variables=variables, device=device
            )

    @property
    def bursts(self) -> list[Burst]:
        """The systems lost so far, each with step, atom and reason; complete once the iteration ends."""
        return self._guard.bursts

    @torch.no_grad()
    def __iter__(self) -> Iterator[Frame]:
        self.n_steps_done = 0
        self._prepare()
        resumed = self._resumed
        frames = rollout(
            self._potential,
            self._start,
            self._verlet if self._bath is None else self._bath,
            self._n_steps,
            backprop=Full(),  # without gradient: leaves the frames as they are
            neighbors=self._neighbors,
            guard=self._guard,
            resumed=None if resumed is None else Resumed(resumed.frame, resumed.start_energy),
        )
        for frame in frames:
            if self._guard.frame is None:
                self._start_energy = torch.full(
                    (self._start.n_systems,), torch.nan, dtype=torch.float64, device=self._start.device
                ).index_copy(0, frame.systems, frame.prediction.energy)
            self._guard.frame, self.n_steps_done = frame, frame.step
            if self._is_due(frame.step):
                yield frame
        last = self._guard.frame
        if last is not None and last.step < self._n_steps and not self._is_due(last.step):
            yield last

    def _is_due(self, step: int) -> bool:
        return step % self._every == 0 or step == self._n_steps

    def conserved_energy(self) -> Tensor:
        """Of the frame last computed: potential + kinetic + the thermostat's energy, [n_systems] eV.

        Constant but for the finite time step, with every thermostat.
        """
        frame = self._sound_frame()
        energy = frame.prediction.energy + frame.state.kinetic_energy()
        return energy if self._bath is None else energy + self._bath.energy(frame.systems)

    def state(self) -> RunState:
        """What is needed to go on after the frame last computed (``simulate(…, resumed=…)``)."""
        variables = None if self._bath is None else self._bath.variables
        return RunState(self._sound_frame(), self._start_energy, variables, tuple(self.bursts))

    def _sound_frame(self) -> Frame:
        if self._guard.frame is None:
            raise ValueError("the simulation has no frame yet: iterate it first")
        return self._guard.frame


def simulate(
    potential: Potential,
    state: State,
    dt: float | Tensor,
    n_steps: int,
    *,
    every: int = 1,
    thermostat: Thermostat | None = None,
    guard: BurstGuard | None = None,
    neighbors: Neighbors | None = None,
    resumed: RunState | None = None,
) -> Simulation:
    """Free-running molecular dynamics of a batch, without gradient and without kicks.

    Args:
        potential: energies and forces.
        state: the start, any number of systems.
        dt: time step in ASE time (``dt_fs * units.FS``), one number or one a system.
        n_steps: number of steps.
        every: frames 0, every, 2·every, … and the last one are yielded; if all systems burst, the last
            sound one.
        thermostat: None for NVE.
        guard: when a system counts as burst and leaves the run; default ``BurstGuard()``.
        neighbors: default ``VerletNeighbors(potential.cutoff)``, exact.
        resumed: go on after this point of an earlier run with the same arguments, to the same numbers.

    Returns:
        A ``Simulation``: iterate it for the frames, then look at its ``bursts``.
    """
    if n_steps < 0 or every < 1:
        raise ValueError(f"need n_steps >= 0 and every >= 1, got {n_steps} and {every}")
    return Simulation(
        potential,
        state.detach(),
        VelocityVerlet(dt),
        n_steps,
        every,
        guard if guard is not None else BurstGuard(),
        neighbors if neighbors is not None else VerletNeighbors(potential.cutoff),
        thermostat,
        resumed,
    )
