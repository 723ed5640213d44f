"""What the examples share: their arguments, and ASE's own run to compare with."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet

from dyntrain import Calculator
from dyntrain.units import FS


def read_arguments(description: str | None) -> tuple[argparse.Namespace, Atoms]:
    """The command line, and its start with velocities (drawn at 300 K where it has none)."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("start", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--dt", type=float, default=0.5, help="fs")
    arguments = parser.parse_args()
    atoms = ase.io.read(arguments.start)
    if not atoms.get_velocities().any():
        MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
        Stationary(atoms)
    return arguments, atoms


def deviation(arguments: argparse.Namespace, atoms: Atoms, frames: Iterable[np.ndarray]) -> float:
    """Largest distance (Å) of an atom from where ASE has it, over frames of positions [n_atoms, 3]."""
    atoms = atoms.copy()
    atoms.calc = Calculator(arguments.model)
    motion = VelocityVerlet(atoms, arguments.dt * FS)
    largest = 0.0
    for step, positions in enumerate(frames):
        if step:
            motion.run(1)
        apart = positions - atoms.positions
        if atoms.pbc.all():  # whichever image an engine writes
            fractional = apart @ np.linalg.inv(atoms.cell.array)
            apart = (fractional - np.round(fractional)) @ atoms.cell.array
        largest = max(largest, float(np.linalg.norm(apart, axis=1).max()))
    return largest
