"""Velocity Verlet, the one integrator of deterministic motion, and the kicks recorded with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dyntrain.state import State


@dataclass(frozen=True, eq=False)
class Kicks:
    """What a recorded run did beside velocity Verlet: thermostat, constraints, odd conventions.

    Adding them to each unrolled step makes the true potential follow the recording to rounding,
    whatever its ensemble (METHOD: idea 2).

    positions:  δr(k) = r(k+1) − [r(k) + v(k) dt + ½ F(k)/m dt²],            [n_steps, n_atoms, 3] Å
    velocities: δv(k) = v(k+1) − [v(k) + ½ (F(k)+F(k+1))/m dt],              [n_steps, n_atoms, 3] Å/ASE time
    cells:      the recorded cell after each step, which roll-outs follow,   [n_steps, n_systems, 3, 3] Å;
                None where the cells do not change
    """

    positions: Tensor
    velocities: Tensor
    cells: Tensor | None = None

    @property
    def n_steps(self) -> int:
        return int(self.positions.shape[0])

    def to(self, device: torch.device | str) -> Kicks:
        cells = None if self.cells is None else self.cells.to(device)
        return Kicks(self.positions.to(device), self.velocities.to(device), cells)


def _drifted(r: Tensor, v: Tensor, force: Tensor, mass: Tensor, dt: Tensor) -> Tensor:
    return r + v * dt + 0.5 * force / mass * dt**2


def _finished(v: Tensor, force_old: Tensor, force_new: Tensor, mass: Tensor, dt: Tensor) -> Tensor:
    return v + 0.5 * (force_old + force_new) / mass * dt


class Step(Protocol):
    """One step of the systems it was selected for: ``drift``, then new forces, then ``finish``."""

    def drift(self, state: State, forces: Tensor, kick: Tensor | None = None) -> State: ...

    def finish(
        self, state: State, forces_old: Tensor, forces_new: Tensor, kick: Tensor | None = None
    ) -> State: ...


class Integrator(Protocol):
    """What a roll-out moves by: velocity Verlet, alone or between the half steps of a thermostat.

    Of one step ``drift`` may be called again with fewer systems (some have burst); ``finish`` ends it.
    """

    def select(self, systems: Tensor) -> Step: ...


class VelocityVerlet:
    """Velocity Verlet (Swope et al., J. Chem. Phys. 76, 637 (1982)).

        r(k+1) = r(k) + v(k) dt + ½ F(k)/m dt²            ``drift``
        F(k+1) = potential(r(k+1))                        (the caller's)
        v(k+1) = v(k) + ½ (F(k) + F(k+1))/m dt            ``finish``

        equation  variable          unit
        r         state.positions   Å
        v         state.velocities  Å / ASE time
        F         forces            eV/Å
        m         state.inertia()   u (infinite: fixed)
        dt        dt                ASE time

    Args:
        dt: time step, a number or one a system [n_systems], in ASE time (``dt_fs * units.FS``).
    """

    def __init__(self, dt: float | Tensor) -> None:
        self.dt = torch.as_tensor(dt, dtype=torch.float64)
        if not all(dt > 0 for dt in self.dt.flatten().tolist()):
            raise ValueError(f"the time step must be positive, got {self.dt.tolist()}")

    def select(self, systems: Tensor) -> VelocityVerlet:
        """The integrator of some systems of the batch only."""
        return self if self.dt.ndim == 0 else VelocityVerlet(self.dt[systems.to(self.dt.device)])

    def _dt_per_atom(self, state: State) -> Tensor:
        dt = self.dt.to(state.device)
        return dt if dt.ndim == 0 else dt[state.system_idx, None]

    def drift(self, state: State, forces: Tensor, kick: Tensor | None = None) -> State:
        """Positions one step on; velocities still those of the old step."""
        positions = _drifted(
            state.positions, state.velocities, forces, state.inertia()[:, None], self._dt_per_atom(state)
        )
        return state.replace(positions=positions if kick is None else positions + kick)

    def finish(
        self, state: State, forces_old: Tensor, forces_new: Tensor, kick: Tensor | None = None
    ) -> State:
        """Velocities one step on, once the forces at the new positions are known."""
        velocities = _finished(
            state.velocities, forces_old, forces_new, state.inertia()[:, None], self._dt_per_atom(state)
        )
        return state.replace(velocities=velocities if kick is None else velocities + kick)

    def record_kicks(self, positions: Tensor, velocities: Tensor, forces: Tensor, state: State) -> Kicks:
        """The kicks of a recorded run (METHOD: idea 2).

        Args:
            positions: of the recording, [n_frames, n_atoms, 3].
            velocities: likewise.
            forces: likewise.
            state: gives masses, cell and numbering (its positions and velocities are not used).

        Returns:
            Kicks of ``n_frames − 1`` steps; adding them in ``drift`` and ``finish`` reproduces the run.
        """
        dt, masses = self._dt_per_atom(state), state.inertia()[:, None]
        return Kicks(
            positions[1:] - _drifted(positions[:-1], velocities[:-1], forces[:-1], masses, dt),
            velocities[1:] - _finished(velocities[:-1], forces[:-1], forces[1:], masses, dt),
        )
