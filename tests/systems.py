"""Small systems that several tests let move."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from dyntrain.state import State

ARGON_SPACING = 3.8
"""Å, near the minimum of the Lennard-Jones potential of argon."""


def argon_cluster(n_atoms: int, seed: int = 0, speed: float = 0.02, jiggle: float = 0.1) -> State:
    """Argon atoms on a jiggled cubic grid; speed 0.02 Å/ASE time per component is about 190 K."""
    random = np.random.default_rng(seed)
    side = int(np.ceil(n_atoms ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)[:n_atoms]
    return State.from_arrays(
        ARGON_SPACING * grid + random.normal(scale=jiggle, size=(n_atoms, 3)),
        np.full(n_atoms, 18),
        np.full(n_atoms, 39.95),
        velocities=random.normal(scale=speed, size=(n_atoms, 3)),
    )


def argon_crystal(repeat: int = 2, seed: int = 0, speed: float = 0.01) -> State:
    """Periodic solid argon in its primitive (skewed) cell, jiggled."""
    random = np.random.default_rng(seed)
    atoms: Atoms = bulk("Ar", a=5.3).repeat(repeat)
    atoms.positions += random.normal(scale=0.05, size=(len(atoms), 3))
    atoms.set_velocities(random.normal(scale=speed, size=(len(atoms), 3)))
    return State.from_ase(atoms)


def hydrogen(distance: float = 0.9) -> State:
    """A stretched H2 at rest, in no special direction."""
    axis = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3.0
    return State.from_arrays(
        torch.stack([-0.5 * distance * axis, 0.5 * distance * axis]), [1, 1], [1.008, 1.008]
    )
