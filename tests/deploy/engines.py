"""What the tests of all engines share: argon in a periodic, skewed cell, moved by ASE as the oracle."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.md.verlet import VelocityVerlet

from dyntrain.calculator import Calculator
from dyntrain.models.analytic import LennardJones
from dyntrain.potential import Conservative
from dyntrain.units import FS

ARGON = Conservative(LennardJones(epsilon=0.0104, sigma=3.4, cutoff=6.0))
DT_FS = 2.0


def argon() -> Atoms:
    """27 atoms near a boundary that they cross; the cell's vectors lie as LAMMPS and OpenMM want them."""
    atoms = bulk("Ar", a=5.3).repeat(3)
    atoms.set_cell(atoms.cell.standard_form()[0], scale_atoms=True)
    random = np.random.default_rng(0)
    atoms.positions += random.normal(loc=0.02, scale=0.05, size=(27, 3))
    velocities = random.normal(scale=0.02, size=(27, 3))
    atoms.set_velocities(velocities - velocities.mean(0))
    return atoms


def run_ase(n_steps: int, at_rest: bool = False) -> list[Atoms]:
    """Frames 0 … n_steps of NVE, with energy, forces and stress in ``info``."""
    atoms = argon()
    if at_rest:
        atoms.set_velocities(np.zeros((27, 3)))
    atoms.calc = Calculator(ARGON)
    motion = VelocityVerlet(atoms, DT_FS * FS)
    frames = []
    for _ in range(n_steps + 1):
        atoms.get_forces()
        frame = atoms.copy()
        frame.info["energy"], frame.info["forces"] = atoms.get_potential_energy(), atoms.get_forces()
        frame.info["stress"] = atoms.get_stress()
        frames.append(frame)
        motion.run(1)
    return frames


def apart(positions: np.ndarray, other: np.ndarray, cell: np.ndarray) -> float:
    """Largest distance between two sets of positions, whichever image they are of, Å."""
    fractional = (positions - other) @ np.linalg.inv(cell)
    return float(np.linalg.norm((fractional - np.round(fractional)) @ cell, axis=1).max())
