"""One AIMD run as a chain of short pieces, each made from the last alone, so that a stop loses one at most.

start → Langevin pieces (thermalisation, discarded) → recorded pieces. A piece begins with the state and the
random generator that the piece before has written, and with a fresh calculator (no wavefunction left over):
so an undisturbed run and a resumed one do the same arithmetic.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from dyntrain.atomic import atomic_path
from dyntrain.errors import UserError
from dyntrain.reference.calculators import new_calculator
from dyntrain.units import FS, KB


@dataclass(frozen=True)
class AimdSettings:
    """What decides the numbers of a run, together with its number; equal settings give equal numbers.

    system:           name or structure file (``systems.build_system``)
    method:           a tblite method, or an ASE calculator by name (``calculators.new_calculator``)
    ensemble:         of the recorded part: ``nve`` (velocity Verlet) or ``langevin``
    temperature_K:    of the start velocities and the Langevin thermostat
    dt_fs:            time step, fs
    n_steps:          recorded steps (``n_steps + 1`` frames)
    thermalise_steps: Langevin steps before the recording, discarded
    friction_per_fs:  of the Langevin thermostat, 1/fs
    accuracy:         tblite's SCF accuracy (tblite's own default, 1, is too loose to conserve the energy)
    checkpoint_every: steps a piece; a stop loses at most one piece's work
    """

    system: str
    method: str = "GFN2-xTB"
    ensemble: Literal["nve", "langevin"] = "nve"
    temperature_K: float = 500.0
    dt_fs: float = 0.5
    n_steps: int = 1000
    thermalise_steps: int = 500
    friction_per_fs: float = 0.02
    accuracy: float = 0.01
    checkpoint_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name, lowest in {"n_steps": 1, "thermalise_steps": 0, "checkpoint_every": 1, "seed": 0}.items():
            if getattr(self, name) < lowest:
                raise UserError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        for name in ("dt_fs", "accuracy"):
            if not 0 < getattr(self, name) < np.inf:
                raise UserError(f"{name} must be a positive number, got {getattr(self, name)}")
        for name in ("temperature_K", "friction_per_fs"):
            if not 0 <= getattr(self, name) < np.inf:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.ensemble not in ("nve", "langevin"):
            raise UserError(f"ensemble must be nve or langevin, got {self.ensemble!r}")

    @property
    def total_steps(self) -> int:
        """Steps of one run, thermalisation included."""
        return self.thermalise_steps + self.n_steps


# Positions, momenta, forces and energy of one time.
_Frame = tuple[np.ndarray, np.ndarray, np.ndarray, float]


@dataclass(frozen=True, eq=False)
class Piece:
    """Consecutive frames of a run, all of a frame at the same time, and the random generator after them.

    positions, momenta, forces: [n_frames, n_atoms, 3], Å, u·Å/ASE time, eV/Å;  energies: [n_frames], eV.
    A thermalisation piece holds its last frame only.
    """

    positions: np.ndarray
    momenta: np.ndarray
    forces: np.ndarray
    energies: np.ndarray
    random_state: dict[str, Any]

    def frames(self) -> Iterator[_Frame]:
        """The frames one by one: positions, momenta, forces, energy."""
        for positions, momenta, forces, energy in zip(
            self.positions, self.momenta, self.forces, self.energies, strict=True
        ):
            yield positions, momenta, forces, float(energy)

    def write(self, path: Path) -> None:
        """To a file that appears only when complete."""
        with atomic_path(path) as part, part.open("wb") as file:
            np.savez(
                file,
                positions=self.positions,
                momenta=self.momenta,
                forces=self.forces,
                energies=self.energies,
                random_state=np.array(json.dumps(self.random_state)),
            )

    @classmethod
    def read(cls, path: Path) -> Piece:
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return cls(random_state=json.loads(str(arrays.pop("random_state"))), **arrays)
        except (ValueError, TypeError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise UserError(f"the checkpoint {path} is damaged ({error}): delete it and run again") from error


@dataclass(frozen=True)
class Task:
    """What one piece does, and the steps it goes from and to (step 0 is the first recorded frame)."""

    kind: Literal["start", "thermalise", "record"]
    first: int
    last: int


def plan(settings: AimdSettings) -> list[Task]:
    """The pieces of a run, in order; they depend on the settings alone."""
    warm, steps, every = -settings.thermalise_steps, settings.n_steps, settings.checkpoint_every
    return [
        Task("start", warm, warm),
        *(Task("thermalise", first, min(first + every, 0)) for first in range(warm, 0, every)),
        *(Task("record", first, min(first + every, steps)) for first in range(0, steps, every)),
    ]


def piece_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npz"


def n_pieces_done(tasks: list[Task], folder: Path) -> int:
    """How many pieces of a run are on disk, counted up to the first that is missing."""
    missing = (number for number in range(len(tasks)) if not piece_path(folder, number).exists())
    return next(missing, len(tasks))


def make_pieces(settings: AimdSettings, atoms: Atoms, run: int, folder: Path) -> Iterator[tuple[Task, Piece]]:
    """Go on with a run after the pieces in its folder; yields each new one once it is on disk."""
    tasks = plan(settings)
    n_done = n_pieces_done(tasks, folder)
    piece = Piece.read(piece_path(folder, n_done - 1)) if n_done else None
    for number in range(n_done, len(tasks)):
        simulation = _Simulation(settings, atoms, run)
        piece = simulation.start() if piece is None else simulation.go_on(tasks[number], piece)
        piece.write(piece_path(folder, number))
        yield tasks[number], piece


class _Simulation:
    """The atoms, fresh calculator and random generator that make one piece."""

    def __init__(self, settings: AimdSettings, atoms: Atoms, run: int) -> None:
        self.settings, self.run = settings, run
        self.rng = np.random.default_rng([settings.seed, run])
        self.atoms = atoms.copy()
        self.atoms.calc = new_calculator(settings.method, settings.accuracy)

    def start(self) -> Piece:
        """The given structure with Maxwell–Boltzmann velocities."""
        spread = np.sqrt(self.atoms.get_masses() * KB * self.settings.temperature_K)
        self.atoms.set_momenta(self.rng.standard_normal((len(self.atoms), 3)) * spread[:, None])
        forces = self._checked(lambda: self.atoms.get_forces(md=True), -self.settings.thermalise_steps)
        return self._piece([self._frame(forces)])

    def go_on(self, task: Task, before: Piece) -> Piece:
        """The steps of a task, from the last frame of the piece before."""
        self.atoms.positions = before.positions[-1]
        self.atoms.set_momenta(before.momenta[-1])
        self.rng.bit_generator.state = before.random_state
        # The forces of that frame are taken over, not calculated anew: a fresh SCF would differ in the last
        # digits, and the recorded run would no longer be velocity Verlet to rounding.
        forces, energy = before.forces[-1], before.energies[-1]
        frames = []
        if task.kind == "record" and task.first == 0:
            remove_rigid_motion(self.atoms)
            frames.append((self.atoms.get_positions(), self.atoms.get_momenta(), forces, energy))
        dynamics = self._dynamics(task)
        for step in range(task.first + 1, task.last + 1):
            forces = self._checked(partial(dynamics.step, forces), step)
            frames.append(self._frame(forces))
        return self._piece(frames if task.kind == "record" else frames[-1:])

    def _dynamics(self, task: Task) -> VelocityVerlet | Langevin:
        dt = self.settings.dt_fs * FS
        if task.kind == "record" and self.settings.ensemble == "nve":
            return VelocityVerlet(self.atoms, dt)
        return Langevin(
            self.atoms,
            dt,
            temperature_K=self.settings.temperature_K,
            friction=self.settings.friction_per_fs / FS,
            fixcm=False,
            rng=self.rng,
        )

    def _checked(self, calculate: Callable[[], np.ndarray], step: int) -> np.ndarray:
        """The forces, or one sentence: which run and step, why, and what to do."""
        try:
            forces = calculate()
            if np.isfinite(forces).all():
                return forces
            raise ValueError("the forces are not finite numbers")
        except Exception as error:  # a calculator, like a reader, raises anything at all
            warm = self.settings.thermalise_steps
            where = f"step {step}" if step > 0 else f"thermalisation step {warm + step}"
            raise UserError(
                f"run {self.run} of {self.settings.system} stopped at {where}: {self.settings.method} failed "
                f"({type(error).__name__}: {error}). Try another seed, a smaller time step or a lower "
                "temperature; where it fails at once, the method does not suit the system"
            ) from error

    def _frame(self, forces: np.ndarray) -> _Frame:
        # Where a calculator tells it apart, the free energy is the one whose gradient the forces are.
        results = self.atoms.calc.results
        energy = results.get("free_energy", results["energy"])
        return self.atoms.get_positions(), self.atoms.get_momenta(), forces, float(energy)

    def _piece(self, frames: list[_Frame]) -> Piece:
        positions, momenta, forces, energies = (np.array(column) for column in zip(*frames, strict=True))
        return Piece(positions, momenta, forces, energies, dict(self.rng.bit_generator.state))


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


def temperature(atoms: Atoms, momenta: np.ndarray, *, rigid_motion: bool) -> float:
    """Kinetic temperature in K, over 3N degrees of freedom, less those that were taken away.

    Args:
        momenta: [n_atoms, 3], u·Å/ASE time.
        rigid_motion: whether the system still moves and turns as a whole.
    """
    n_atoms = len(atoms)
    removed = 3 if atoms.pbc.any() else 5 if n_atoms == 2 else 6
    freedom = 3 * n_atoms - (0 if rigid_motion else removed)
    kinetic = 0.5 * (momenta**2 / atoms.get_masses()[:, None]).sum()
    return float(2 * kinetic / (KB * freedom))
