"""Runs made on the spot: exact velocity Verlet on Morse bonds, also under ASE's thermostats."""

from __future__ import annotations

import functools
import itertools
from typing import Any, ClassVar

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator

from dyntrain.data.raw import RawRun
from dyntrain.data.trajectory import Trajectory
from dyntrain.units import FS

MASSES = {1: 1.008, 6: 12.011, 8: 15.999}


def morse(positions: np.ndarray) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces (eV/Å) of atoms that all bind each other (1 eV, 1.3 Å)."""
    depth, stiffness, length = 1.0, 1.5, 1.3
    first, second = np.triu_indices(len(positions), k=1)
    vectors = positions[second] - positions[first]
    distances = np.linalg.norm(vectors, axis=1)
    decay = np.exp(-stiffness * (distances - length))
    slope = 2 * depth * stiffness * decay * (1 - decay)
    forces = np.zeros_like(positions)
    pull = (slope / distances)[:, None] * vectors
    np.add.at(forces, first, pull)
    np.add.at(forces, second, -pull)
    return float((depth * (decay**2 - 2 * decay)).sum()), forces


def morse_run(
    n_frames: int = 60,
    numbers: tuple[int, ...] = (6, 1, 8, 1),
    dt_fs: float = 0.5,
    seed: int = 0,
    **changes: Any,
) -> RawRun:
    """A gas-phase NVE run in a periodic box, as exact as velocity Verlet is; other fields by name."""
    random = np.random.default_rng(seed)
    corners = np.array(list(itertools.product((0.0, 1.2), repeat=3)))[: len(numbers)]
    r = 5.0 + corners + random.normal(scale=0.05, size=(len(numbers), 3))
    masses = np.array([MASSES[z] for z in numbers])
    v = random.normal(size=r.shape) * np.sqrt(0.03 / masses)[:, None]
    dt = dt_fs * FS
    energy, force = morse(r)
    frames = []
    for _ in range(n_frames):
        frames.append((r, v, force, energy))
        r = r + v * dt + 0.5 * force / masses[:, None] * dt**2
        energy, new = morse(r)
        v = v + 0.5 * (force + new) / masses[:, None] * dt
        force = new
    positions, velocities, forces, energies = (np.array(x) for x in zip(*frames, strict=True))
    fields = {
        "file": f"made_{seed}",
        "reader": "made",
        "positions": positions,
        "velocities": velocities,
        "forces": forces,
        "energies": energies,
        "cell": 20.0 * np.eye(3),
        "pbc": np.array([True, True, True]),
        "atomic_numbers": np.array(numbers),
        "masses": masses,
        "dt_fs": dt_fs,
    }
    return RawRun(**{**fields, **changes})


def morse_trajectory(n_frames: int = 60, **arguments: Any) -> Trajectory:
    """The same as a Trajectory, taken as it is."""
    run = morse_run(n_frames, **arguments)
    assert run.velocities is not None and run.dt_fs is not None
    return Trajectory(
        run.positions,
        run.velocities,
        run.forces,
        run.energies,
        run.cell,
        run.pbc,
        run.atomic_numbers,
        run.masses,
        dt=run.dt_fs * FS,
        file=run.file,
    )


def morse_stress(run: RawRun) -> np.ndarray:
    """The stress of the potential, −Σ r F / V, [n_frames, 6] eV/Å³."""
    virial = np.einsum("kia,kib->kab", run.positions - run.positions.mean(axis=1, keepdims=True), run.forces)
    tensor = -virial / np.linalg.det(run.cell)
    return np.asarray(tensor[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]])


def as_atoms(run: RawRun, *, momenta: bool = True, time_stamps: bool = True) -> list[Atoms]:
    """The frames as ASE writes them to files."""
    frames = []
    for k in range(len(run.positions)):
        cell = run.cell if run.cell.ndim == 2 else run.cell[k]
        atoms = Atoms(run.atomic_numbers, run.positions[k], cell=cell, pbc=run.pbc, masses=run.masses)
        if momenta and run.velocities is not None:
            atoms.set_velocities(run.velocities[k])
        if time_stamps and run.dt_fs is not None:
            atoms.info["time_fs"] = k * run.dt_fs
        stress = {} if run.stress is None else {"stress": run.stress[k]}
        atoms.calc = SinglePointCalculator(atoms, energy=run.energies[k], forces=run.forces[k], **stress)
        frames.append(atoms)
    return frames


def chosen(run: RawRun, frames: Any, **changes: Any) -> RawRun:
    """Some frames of a run only."""
    fields = dict(vars(run))
    for name in ("positions", "velocities", "forces", "energies"):
        fields[name] = fields[name][frames]
    return RawRun(**{**fields, **changes})


class MorseCalculator(Calculator):
    """The same potential for ASE."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        energy, forces = morse(self.atoms.positions)
        self.results = {"energy": energy, "forces": forces}


@functools.cache
def ase_run(
    thermostat: str, n_frames: int = 400, dt_fs: float = 0.5, friction_per_fs: float = 0.02
) -> RawRun:
    """Eight atoms with Morse bonds at about 800 K under one of ASE's integrators."""
    from ase.md.andersen import Andersen
    from ase.md.bussi import Bussi
    from ase.md.langevin import Langevin
    from ase.md.nose_hoover_chain import NoseHooverChainNVT
    from ase.md.nvtberendsen import NVTBerendsen
    from ase.md.verlet import VelocityVerlet

    start = morse_run(2, numbers=(6, 1, 8, 1, 6, 8, 1, 6), seed=5)
    atoms = Atoms(start.atomic_numbers, start.positions[0], masses=start.masses)
    assert start.velocities is not None
    atoms.set_velocities(2 * start.velocities[0])
    atoms.calc = MorseCalculator()
    bath, dt, warm = np.random.RandomState(1), dt_fs * units.fs, {"temperature_K": 800}
    dynamics = {
        "nve": lambda: VelocityVerlet(atoms, dt),
        "langevin": lambda: Langevin(
            atoms, dt, friction=friction_per_fs / units.fs, rng=bath, fixcm=False, **warm
        ),
        "berendsen": lambda: NVTBerendsen(atoms, dt, taut=50 * units.fs, **warm),
        "csvr": lambda: Bussi(atoms, dt, taut=50 * units.fs, rng=bath, **warm),
        "nose-hoover": lambda: NoseHooverChainNVT(atoms, dt, tdamp=20 * units.fs, **warm),
        "andersen": lambda: Andersen(atoms, dt, andersen_prob=0.05, rng=bath, **warm),
    }[thermostat]()
    dynamics.run(100)
    return recorded(atoms, dynamics, n_frames, dt_fs, file=thermostat)


def recorded(atoms: Atoms, dynamics: Any, n_frames: int, dt_fs: float, *, file: str = "made") -> RawRun:
    """Frames of one of ASE's integrators from here on, with raw forces."""
    frames = []
    for _ in range(n_frames):
        forces = atoms.get_forces(apply_constraint=False)
        energy, cell = atoms.get_potential_energy(), atoms.cell.array.copy()
        frames.append((atoms.get_positions(), atoms.get_velocities(), forces, energy, cell))
        dynamics.run(1)
    positions, velocities, forces, energies, cells = (np.array(x) for x in zip(*frames, strict=True))
    return RawRun(
        file=file,
        reader="made",
        positions=positions,
        velocities=velocities,
        forces=forces,
        energies=energies,
        cell=cells if np.ptp(cells, axis=0).any() else cells[0],
        pbc=np.array(atoms.pbc),
        atomic_numbers=atoms.numbers,
        masses=atoms.get_masses(),
        dt_fs=dt_fs,
    )


def constrained_run(constraint: Any, n_frames: int = 200, dt_fs: float = 0.5) -> RawRun:
    """The eight atoms of `ase_run` in NVE under one of ASE's constraints."""
    from ase.md.verlet import VelocityVerlet

    start = morse_run(2, numbers=(6, 1, 8, 1, 6, 8, 1, 6), seed=5)
    atoms = Atoms(start.atomic_numbers, start.positions[0], masses=start.masses)
    assert start.velocities is not None
    atoms.set_constraint(constraint)
    atoms.set_velocities(start.velocities[0])
    atoms.calc = MorseCalculator()
    dynamics = VelocityVerlet(atoms, dt_fs * units.fs)
    dynamics.run(1)
    return recorded(atoms, dynamics, n_frames, dt_fs)
