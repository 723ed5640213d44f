"""Nosé–Hoover chain: velocity Verlet between two half steps of a deterministic thermostat with a memory."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.md.verlet import VelocityVerlet

from dyntrain.reference.kinetics import n_freedom
from dyntrain.units import KB

# Three sub-steps that add up to one, of fourth order: H. Yoshida, Phys. Lett. A 150, 262 (1990).
_WEIGHT = 1 / (2 - 2 ** (1 / 3))
_SUB_STEPS = (_WEIGHT, 1 - 2 * _WEIGHT, _WEIGHT)

CHAIN_LENGTH = 3


class NoseHooverChain:
    """NVT of atoms that, as a whole, neither move nor (unless periodic) turn.

    G. J. Martyna, M. L. Klein, M. Tuckerman, J. Chem. Phys. 97, 2635 (1992); integrated as in G. J. Martyna
    et al., Mol. Phys. 87, 1117 (1996), with Q_1 = n_f k T τ², Q_k = k T τ²:

        dp/dt = F − η̇_1 p;   Q_1 dη̇_1/dt = Σ p²/m − n_f k T − Q_1 η̇_1 η̇_2;
        Q_k dη̇_k/dt = Q_{k−1} η̇²_{k−1} − k T − Q_k η̇_k η̇_{k+1}

    Args:
        dt, time_constant: ASE time; the latter is τ.
        thermostat: [2, CHAIN_LENGTH], η and η̇ (1/ASE time), advanced in place; with positions and momenta the
            whole state. Zeros to begin with.
    """

    def __init__(
        self, atoms: Atoms, dt: float, temperature_K: float, time_constant: float, thermostat: np.ndarray
    ) -> None:
        self.atoms, self.thermostat = atoms, thermostat
        self._dt, self._kT = dt, KB * temperature_K
        self._masses = np.full(CHAIN_LENGTH, self._kT * time_constant**2)
        self._n_freedom = n_freedom(atoms, rigid_motion=False)
        self._masses[0] *= self._n_freedom
        self._verlet = VelocityVerlet(atoms, dt)

    def step(self, forces: np.ndarray) -> np.ndarray:
        """One step from given forces; returns the new ones, eV/Å."""
        self._thermostat_half_step()
        forces = self._verlet.step(forces)
        self._thermostat_half_step()
        return forces

    def conserved_energy(self, potential_energy: float) -> float:
        """Energy of atoms and thermostat, eV: constant but for the error of the time step."""
        eta, velocity = self.thermostat
        work = self._kT * (self._n_freedom * eta[0] + eta[1:].sum())
        kinetic = self.atoms.get_kinetic_energy() + 0.5 * float(self._masses @ velocity**2)
        return float(potential_energy + kinetic + work)

    def _thermostat_half_step(self) -> None:
        momenta = self.atoms.get_momenta()
        twice_kinetic = float((momenta**2 / self.atoms.get_masses()[:, None]).sum())
        scale = 1.0
        for weight in _SUB_STEPS:
            step = weight * self._dt / 2
            for link in reversed(range(CHAIN_LENGTH)):
                self._push(link, step / 2, twice_kinetic * scale**2)
            eta, velocity = self.thermostat
            eta += step * velocity
            scale *= np.exp(-step * velocity[0])
            for link in range(CHAIN_LENGTH):
                self._push(link, step / 2, twice_kinetic * scale**2)
        self.atoms.set_momenta(momenta * scale)

    def _push(self, link: int, step: float, twice_kinetic: float) -> None:
        """Accelerate one link of the chain, half of its friction by the next link before and half after."""
        velocity = self.thermostat[1]
        if link == 0:
            force = twice_kinetic - self._n_freedom * self._kT
        else:
            force = self._masses[link - 1] * velocity[link - 1] ** 2 - self._kT
        friction = np.exp(-step / 2 * velocity[link + 1]) if link + 1 < CHAIN_LENGTH else 1.0
        velocity[link] = (velocity[link] * friction + step * force / self._masses[link]) * friction
