"""What the tests of the AIMD generator share: reading its files, comparing them, their kicks."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms

from dyntrain.integrators import Kicks, VelocityVerlet
from dyntrain.reference import AimdSettings
from dyntrain.state import State
from dyntrain.units import FS

# ASE's toy potential needs no tblite: for what does not depend on the electronic structure.
TOY = AimdSettings("H2", method="emt", n_steps=30, thermalise_steps=10, checkpoint_every=8)


def arrays(path: Path) -> dict[str, np.ndarray]:
    """All that is recorded in a file, by name, with frames first."""
    frames = ase.io.read(path, ":")
    assert isinstance(frames, list)
    return {
        "positions": np.array([atoms.positions for atoms in frames]),
        "momenta": np.array([atoms.get_momenta() for atoms in frames]),
        "forces": np.array([atoms.get_forces() for atoms in frames]),
        "energies": np.array([atoms.get_potential_energy() for atoms in frames]),
        "times": np.array([atoms.info["time_fs"] for atoms in frames]),
    }


def equal(first: Path, second: Path) -> bool:
    one, two = arrays(first), arrays(second)
    return all(np.array_equal(one[name], two[name]) for name in one)


def kicks_of(path: Path, dt_fs: float) -> Kicks:
    frames = ase.io.read(path, ":")
    recorded = [
        torch.tensor(np.array([get(atoms) for atoms in frames]))
        for get in (Atoms.get_positions, Atoms.get_velocities, Atoms.get_forces)
    ]
    return VelocityVerlet(dt_fs * FS).record_kicks(*recorded, State.from_ase(frames[0]))
