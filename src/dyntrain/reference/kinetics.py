"""Motion of a system as a whole: its degrees of freedom, and taking it away."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from dyntrain.units import KB


def n_freedom(atoms: Atoms, *, rigid_motion: bool) -> int:
    """Degrees of freedom: 3N, less those of the system as a whole where that neither moves nor turns."""
    n_atoms = len(atoms)
    removed = 3 if atoms.pbc.any() else 5 if n_atoms == 2 else 6
    return 3 * n_atoms - (0 if rigid_motion else removed)


def temperature(atoms: Atoms, momenta: np.ndarray, *, rigid_motion: bool) -> float:
    """Kinetic temperature in K, over the degrees of freedom that are left.

    Args:
        momenta: [n_atoms, 3], u·Å/ASE time.
        rigid_motion: whether the system still moves and turns as a whole.
    """
    twice_kinetic = (momenta**2 / atoms.get_masses()[:, None]).sum()
    return float(twice_kinetic / (KB * n_freedom(atoms, rigid_motion=rigid_motion)))


def remove_rigid_motion(atoms: Atoms) -> None:
    """Take away the centre-of-mass velocity and, where nothing is periodic, the angular momentum.

    The rest is not rescaled: the internal motion keeps the temperature it has.
    """
    masses, velocities = atoms.get_masses(), atoms.get_velocities()
    velocities -= masses @ velocities / masses.sum()
    if not atoms.pbc.any():
        arms = atoms.positions - atoms.get_center_of_mass()
        angular_momentum = np.cross(arms, masses[:, None] * velocities).sum(0)
        inertia = (masses * (arms**2).sum(1)).sum() * np.eye(3) - (masses[:, None] * arms).T @ arms
        # The pseudo-inverse leaves out the axis of a linear molecule, about which nothing turns.
        angular_velocity = np.linalg.pinv(inertia, rcond=1e-8, hermitian=True) @ angular_momentum
        velocities -= np.cross(angular_velocity, arms)
    atoms.set_velocities(velocities)
