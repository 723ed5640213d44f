"""Thermostats: batched half steps of heat exchange before and after each step of the one Verlet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dyntrain.integrators import Step, VelocityVerlet
from dyntrain.state import State
from dyntrain.units import KB


class Thermostat(ABC):
    """Half a step of heat exchange for some systems of a batch; it holds no changing numbers itself.

    What changes are its variables, float64 [n_systems, n_variables]. Its random numbers depend on the seed
    of the system and the number of the half step only: a system does the same in any batch, and a run that
    goes on needs no state of a generator.

    Attributes:
        temperature: [n_systems] K.
    """

    temperature: Tensor

    @abstractmethod
    def start(self) -> Tensor:
        """The variables at the start of a run, [n_systems, n_variables]."""

    @abstractmethod
    def half_step(
        self, state: State, variables: Tensor, systems: Tensor, number: int, duration: Tensor
    ) -> tuple[State, Tensor]:
        """New velocities and variables.

        Args:
            state, variables: of the systems numbered ``systems`` [m] (ascending) of the start.
            number: of this half step in the run: 2·step before the Verlet step, 2·step + 1 after it.
            duration: of this half step, [m] ASE time.
        """

    @abstractmethod
    def energy(self, variables: Tensor, systems: Tensor) -> Tensor:
        """[m] eV; potential + kinetic energy + this is conserved, but for the errors of the finite step."""


def _generator(seed: int, number: int) -> np.random.Generator:
    """Random numbers of one half step of one system: a counter-based stream, the same whenever asked for."""
    return np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, 0, number, 0]))


def _per_system(values: Tensor | float, n_systems: int, what: str) -> Tensor:
    tensor = torch.as_tensor(values, dtype=torch.float64).expand(n_systems).clone()
    if not bool((tensor > 0).all()):
        raise ValueError(f"a thermostat needs a positive {what}, got {tensor.tolist()}")
    return tensor


class Langevin(Thermostat):
    """Langevin dynamics in the OBABO splitting, each Cartesian component of each movable atom by itself.

        v ← c v + sqrt((1 − c²) k_B T/m) ξ,    c = exp(−h/τ),  h half a step, ξ ~ N(0, 1)

    Bussi and Parrinello, Phys. Rev. E 75, 056707 (2007), whose effective energy is the conserved one:
    variable 0 is the kinetic energy taken out of the system so far. The centre of mass is thermostatted
    like all else, so all 3 N components of the movable atoms count as degrees of freedom.

    Args:
        temperature: K, a number or [n_systems].
        time_constant: τ = 1/friction, ASE time.
        seeds: one a system.
    """

    def __init__(self, temperature: Tensor | float, time_constant: float, seeds: list[int]) -> None:
        self.temperature = _per_system(temperature, len(seeds), "temperature")
        self.time_constant = float(_per_system(time_constant, 1, "time constant"))
        self.seeds = seeds

    def start(self) -> Tensor:
        return torch.zeros(len(self.seeds), 1, dtype=torch.float64)

    def half_step(
        self, state: State, variables: Tensor, systems: Tensor, number: int, duration: Tensor
    ) -> tuple[State, Tensor]:
        counts = state.n_atoms_per_system().tolist()
        draws = [
            _generator(self.seeds[system], number).standard_normal((count, 3))
            for system, count in zip(systems.tolist(), counts, strict=True)
        ]
        noise = torch.from_numpy(np.concatenate(draws)).to(state.device)
        kept = torch.exp(-duration / self.time_constant)[state.system_idx, None]
        thermal = KB * self.temperature.to(state.device)[systems][state.system_idx] / state.inertia()
        velocities = kept * state.velocities + torch.sqrt((1.0 - kept**2) * thermal[:, None]) * noise
        moved = state.replace(velocities=velocities)
        return moved, variables + (state.kinetic_energy() - moved.kinetic_energy())[:, None]

    def energy(self, variables: Tensor, systems: Tensor) -> Tensor:
        return variables[:, 0]


class CSVR(Thermostat):
    """Canonical sampling by velocity rescaling: all velocities of a system times one number a half step.

    The exact solution of Bussi, Donadio and Parrinello, J. Chem. Phys. 126, 014101 (2007), eqs. A7 and A8,
    for the kinetic energy over half a step; the sum of n_free − 1 squared normal numbers is drawn as one
    gamma-distributed number. Rescaling keeps a momentum (and an angular momentum) of zero at zero.

    Args:
        temperature: K, a number or [n_systems].
        time_constant: τ, relaxation time of the kinetic energy, ASE time.
        seeds: one a system.
        degrees_of_freedom: n_free of each system, [n_systems].
    """

    def __init__(
        self, temperature: Tensor | float, time_constant: float, seeds: list[int], degrees_of_freedom: Tensor
    ) -> None:
        self.temperature = _per_system(temperature, len(seeds), "temperature")
        self.time_constant = float(_per_system(time_constant, 1, "time constant"))
        self.seeds = seeds
        self.degrees_of_freedom = _per_system(degrees_of_freedom, len(seeds), "number of degrees of freedom")

    def start(self) -> Tensor:
        return torch.zeros(len(self.seeds), 1, dtype=torch.float64)

    def half_step(
        self, state: State, variables: Tensor, systems: Tensor, number: int, duration: Tensor
    ) -> tuple[State, Tensor]:
        device = state.device
        kinetic = state.kinetic_energy()
        if not bool((kinetic > 0).all()):
            raise ValueError(
                "velocity rescaling needs velocities: a system is at rest, so nothing can be rescaled"
            )
        first, others = self._draw(systems, number)
        first, others = first.to(device), others.to(device)
        kept = torch.exp(-duration / self.time_constant)
        ratio = (1.0 - kept) * 0.5 * KB * self.temperature.to(device)[systems] / kinetic
        squared = kept + ratio * (first**2 + others) + 2.0 * first * torch.sqrt(kept * ratio)
        scale = torch.sqrt(squared) * torch.where(first + torch.sqrt(kept / ratio) < 0, -1.0, 1.0)
        moved = state.replace(velocities=state.velocities * scale[state.system_idx, None])
        return moved, variables + (kinetic - moved.kinetic_energy())[:, None]

    def _draw(self, systems: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """One normal number, and the sum of n_free − 1 squared ones, of each system."""
        draws = []
        for system in systems.tolist():
            random = _generator(self.seeds[system], number)
            shape = 0.5 * (float(self.degrees_of_freedom[system]) - 1.0)
            draws.append((random.standard_normal(), 2.0 * random.standard_gamma(shape)))
        columns = torch.tensor(draws, dtype=torch.float64)
        return columns[:, 0], columns[:, 1]

    def energy(self, variables: Tensor, systems: Tensor) -> Tensor:
        return variables[:, 0]


CHAIN_LENGTH = 3
_SUZUKI_YOSHIDA = (
    1.0 / (2.0 - 2.0 ** (1 / 3)),
    1.0 - 2.0 / (2.0 - 2.0 ** (1 / 3)),
    1.0 / (2.0 - 2.0 ** (1 / 3)),
)
"""Weights of the three parts of a half step that make it of fourth order."""


class NoseHooverChain(Thermostat):
    """Nosé–Hoover chain of three thermostats on all velocities of a system; deterministic.

    Martyna, Tuckerman, Tobias and Klein, Mol. Phys. 87, 1117 (1996), with the Suzuki–Yoshida factorisation
    in three parts. Masses Q_1 = n_free k_B T τ², Q_k = k_B T τ². Conserved beside the system's energy:

        Σ_k ½ Q_k v_k² + n_free k_B T ξ_1 + k_B T Σ_{k>1} ξ_k

    Variables: ξ_1 … ξ_3 (no unit), v_1 … v_3 (1/ASE time). A momentum of zero stays zero.

    Args:
        temperature: K, a number or [n_systems].
        time_constant: τ, ASE time; the kinetic energy swings with a period of about 2π τ/√2.
        degrees_of_freedom: n_free of each system, [n_systems].
    """

    def __init__(self, temperature: Tensor | float, time_constant: float, degrees_of_freedom: Tensor) -> None:
        n_systems = degrees_of_freedom.shape[0]
        self.temperature = _per_system(temperature, n_systems, "temperature")
        self.degrees_of_freedom = _per_system(degrees_of_freedom, n_systems, "number of degrees of freedom")
        weights = torch.ones(n_systems, CHAIN_LENGTH, dtype=torch.float64)
        weights[:, 0] = self.degrees_of_freedom
        self._targets = weights * KB * self.temperature[:, None]
        self._masses = self._targets * float(_per_system(time_constant, 1, "time constant")) ** 2

    def start(self) -> Tensor:
        return torch.zeros(self.temperature.shape[0], 2 * CHAIN_LENGTH, dtype=torch.float64)

    def half_step(
        self, state: State, variables: Tensor, systems: Tensor, number: int, duration: Tensor
    ) -> tuple[State, Tensor]:
        targets = self._targets.to(state.device)[systems]
        masses = self._masses.to(state.device)[systems]
        xi, v = (list(part.unbind(1)) for part in variables.split(CHAIN_LENGTH, dim=1))
        double_kinetic = 2.0 * state.kinetic_energy()
        scale = torch.ones_like(double_kinetic)
        last = CHAIN_LENGTH - 1

        def pull(k: int) -> Tensor:
            driving = double_kinetic if k == 0 else masses[:, k - 1] * v[k - 1] ** 2
            return (driving - targets[:, k]) / masses[:, k]

        def push(order: Iterable[int], h: Tensor) -> None:
            for k in order:
                drag = torch.exp(-0.25 * h * v[k + 1]) if k < last else 1.0
                v[k] = (v[k] * drag + 0.5 * h * pull(k)) * drag

        for weight in _SUZUKI_YOSHIDA:
            h = weight * duration
            push(range(last, -1, -1), h)
            slowed = torch.exp(-h * v[0])
            scale, double_kinetic = scale * slowed, double_kinetic * slowed**2
            xi = [x + h * speed for x, speed in zip(xi, v, strict=True)]
            push(range(last + 1), h)
        moved = state.replace(velocities=state.velocities * scale[state.system_idx, None])
        return moved, torch.stack([*xi, *v], dim=1)

    def energy(self, variables: Tensor, systems: Tensor) -> Tensor:
        targets = self._targets.to(variables.device)[systems]
        masses = self._masses.to(variables.device)[systems]
        xi, v = variables.split(CHAIN_LENGTH, dim=1)
        return (0.5 * masses * v**2 + targets * xi).sum(1)


class Thermostatted:
    """Velocity Verlet between two half steps of a thermostat: an ``Integrator`` for one roll-out.

    Attributes:
        step: steps finished.
        variables: the thermostat's after that step, [n_systems at the start, n_variables].
    """

    def __init__(
        self,
        verlet: VelocityVerlet,
        thermostat: Thermostat,
        *,
        step: int = 0,
        variables: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.verlet, self.thermostat, self.step = verlet, thermostat, step
        self.variables = (thermostat.start() if variables is None else variables).to(device)
        self._halfway = self.variables  # after the first half of the step in hand
        self._half = (0.5 * verlet.dt).to(device).expand(self.variables.shape[0])

    def select(self, systems: Tensor) -> Step:
        """The step of some systems of the start."""
        return _ThermostattedStep(self, systems)

    def before(self, state: State, systems: Tensor) -> State:
        """The first half of a step; may be taken again, with fewer systems."""
        moved, variables = self.thermostat.half_step(
            state, self.variables[systems], systems, 2 * self.step, self._half[systems]
        )
        self._halfway = self.variables.index_copy(0, systems, variables)
        return moved

    def after(self, state: State, systems: Tensor) -> State:
        """The second half, which ends the step."""
        moved, variables = self.thermostat.half_step(
            state, self._halfway[systems], systems, 2 * self.step + 1, self._half[systems]
        )
        self.variables = self._halfway.index_copy(0, systems, variables)
        self.step += 1
        return moved

    def energy(self, systems: Tensor) -> Tensor:
        """What the thermostat adds to the conserved energy of some systems, [m] eV."""
        return self.thermostat.energy(self.variables[systems], systems)


@dataclass(frozen=True)
class _ThermostattedStep:
    integrator: Thermostatted
    systems: Tensor

    def drift(self, state: State, forces: Tensor, kick: Tensor | None = None) -> State:
        verlet = self.integrator.verlet.select(self.systems)
        return verlet.drift(self.integrator.before(state, self.systems), forces, kick)

    def finish(
        self, state: State, forces_old: Tensor, forces_new: Tensor, kick: Tensor | None = None
    ) -> State:
        verlet = self.integrator.verlet.select(self.systems)
        return self.integrator.after(verlet.finish(state, forces_old, forces_new, kick), self.systems)
