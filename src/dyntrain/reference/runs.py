"""One AIMD run as a chain of short pieces, each made from the last alone, so that a stop loses one at most.

start → Langevin pieces (thermalisation, discarded) → arrival of a molecule, if the system has one → recorded
pieces. A piece begins with the state, thermostat and random generator that the piece before has written, and
with a fresh calculator in an empty folder (no wavefunction left over): so an undisturbed run and a resumed
one do the same arithmetic.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from dyntrain.atomic import atomic_path
from dyntrain.errors import UserError
from dyntrain.reference.calculators import running_calculator
from dyntrain.reference.kinetics import remove_rigid_motion
from dyntrain.reference.nose_hoover import CHAIN_LENGTH, NoseHooverChain
from dyntrain.reference.settings import AimdSettings
from dyntrain.reference.systems import arrival
from dyntrain.units import FS, KB

_CALCULATION = "calculation-"

# Positions, momenta, forces and energy of one time.
_Frame = tuple[np.ndarray, np.ndarray, np.ndarray, float]


@dataclass(frozen=True, eq=False)
class Piece:
    """Consecutive frames of a run, all of a frame at the same time, and what else the next piece needs.

    positions, momenta, forces: [n_frames, n_atoms, 3], Å, u·Å/ASE time, eV/Å;  energies: [n_frames], eV;
    thermostat: state of the Nosé–Hoover chain after the last frame;  random_state: of the generator, too.
    A thermalisation piece holds its last frame only.
    """

    positions: np.ndarray
    momenta: np.ndarray
    forces: np.ndarray
    energies: np.ndarray
    thermostat: np.ndarray
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
                thermostat=self.thermostat,
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

    kind: Literal["start", "thermalise", "arrive", "record"]
    first: int
    last: int


def plan(settings: AimdSettings) -> list[Task]:
    """The pieces of a run, in order; they depend on the settings alone."""
    warm, steps, every = -settings.thermalise_steps, settings.n_steps, settings.checkpoint_every
    return [
        Task("start", warm, warm),
        *(Task("thermalise", first, min(first + every, 0)) for first in range(warm, 0, every)),
        *([Task("arrive", 0, 0)] if arrival(settings.system) else []),
        *(Task("record", first, min(first + every, steps)) for first in range(0, steps, every)),
    ]


def atoms_during(task: Task, settings: AimdSettings, atoms: Atoms) -> Atoms:
    """The atoms there are during a task: those of the system and, once it has come, the molecule."""
    guest = arrival(settings.system)
    return atoms + Atoms(guest.molecule) if guest and task.kind in ("arrive", "record") else atoms.copy()


def piece_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npz"


def n_pieces_done(tasks: list[Task], folder: Path) -> int:
    """How many pieces of a run are on disk, counted up to the first that is missing."""
    missing = (number for number in range(len(tasks)) if not piece_path(folder, number).exists())
    return next(missing, len(tasks))


def make_pieces(settings: AimdSettings, atoms: Atoms, run: int, folder: Path) -> Iterator[tuple[Task, Piece]]:
    """Go on with a run after the pieces in its folder; yields each new one once it is on disk."""
    tasks, folder = plan(settings), folder.resolve()
    for left_over in folder.glob(f"{_CALCULATION}*"):
        shutil.rmtree(left_over)
    n_done = n_pieces_done(tasks, folder)
    piece = Piece.read(piece_path(folder, n_done - 1)) if n_done else None
    for number in range(n_done, len(tasks)):
        with (
            _empty_folder(folder),
            running_calculator(settings.method, settings.calculator_options) as calculator,
        ):
            simulation = _Simulation(settings, atoms, run, tasks[number], calculator)
            piece = simulation.start() if piece is None else simulation.go_on(piece)
        piece.write(piece_path(folder, number))
        yield tasks[number], piece


@contextlib.contextmanager
def _empty_folder(parent: Path) -> Iterator[None]:
    """Work in a new folder, which stays only where the calculation fails, for the log in it.

    Calculators write files where they stand, and read the wavefunctions that they find there.
    """
    folder = tempfile.mkdtemp(prefix=_CALCULATION, dir=parent)
    with contextlib.chdir(folder):
        yield
    shutil.rmtree(folder)


class _Simulation:
    """The atoms, fresh calculator, thermostat and random generator that make one piece."""

    def __init__(
        self, settings: AimdSettings, atoms: Atoms, run: int, task: Task, calculator: Calculator
    ) -> None:
        self.settings, self.run, self.task = settings, run, task
        self.rng = np.random.default_rng([settings.seed, run])
        self.thermostat = np.zeros((2, CHAIN_LENGTH))
        self.atoms = atoms_during(task, settings, atoms)
        self.atoms.calc = calculator

    def start(self) -> Piece:
        """The given structure with Maxwell–Boltzmann velocities."""
        spread = np.sqrt(self.atoms.get_masses() * KB * self.settings.temperature_K)
        self.atoms.set_momenta(self.rng.standard_normal((len(self.atoms), 3)) * spread[:, None])
        return self._piece([self._frame(self._forces())])

    def go_on(self, before: Piece) -> Piece:
        """What the task does, from the last frame of the piece before."""
        self.rng.bit_generator.state = before.random_state
        if self.task.kind == "arrive":
            return self._arrive(before)
        self.atoms.positions = before.positions[-1]
        self.atoms.set_momenta(before.momenta[-1])
        self.thermostat = before.thermostat.copy()
        # The forces of that frame are taken over, not calculated anew: a fresh SCF would differ in the last
        # digits, and the recorded run would no longer be velocity Verlet to rounding.
        forces, energy = before.forces[-1], before.energies[-1]
        frames = []
        if self.task.kind == "record" and self.task.first == 0:
            if arrival(self.settings.system) is None:
                remove_rigid_motion(self.atoms)
            frames.append((self.atoms.get_positions(), self.atoms.get_momenta(), forces, energy))
        dynamics = self._dynamics()
        for step in range(self.task.first + 1, self.task.last + 1):
            forces = self._checked(partial(dynamics.step, forces), step)
            frames.append(self._frame(forces))
        return self._piece(frames if self.task.kind == "record" else frames[-1:])

    def _arrive(self, before: Piece) -> Piece:
        """The thermalised atoms, at rest as a whole, and the molecule on its way to them."""
        guest = arrival(self.settings.system)
        assert guest is not None
        host = self.atoms[: before.positions.shape[1]]
        host.positions = before.positions[-1]
        host.set_momenta(before.momenta[-1])
        remove_rigid_motion(host)
        both = host + guest.draw(host, self.rng)
        self.atoms.positions = both.positions
        self.atoms.set_momenta(both.get_momenta())
        return self._piece([self._frame(self._forces())])

    def _dynamics(self) -> VelocityVerlet | Langevin | NoseHooverChain:
        settings, dt = self.settings, self.settings.dt_fs * FS
        if self.task.kind == "record" and settings.ensemble == "nve":
            return VelocityVerlet(self.atoms, dt)
        time_constant = settings.thermostat_fs * FS
        if self.task.kind == "record" and settings.ensemble == "nose-hoover":
            return NoseHooverChain(self.atoms, dt, settings.temperature_K, time_constant, self.thermostat)
        return Langevin(
            self.atoms,
            dt,
            temperature_K=settings.temperature_K,
            friction=1 / time_constant,
            fixcm=False,
            rng=self.rng,
        )

    def _forces(self) -> np.ndarray:
        return self._checked(lambda: self.atoms.get_forces(md=True), self.task.first)

    def _checked(self, calculate: Callable[[], np.ndarray], step: int) -> np.ndarray:
        """The forces, or one sentence: which run and step, why, and what to do."""
        try:
            forces = calculate()
            if np.isfinite(forces).all():
                return forces
            raise ValueError("the forces are not finite numbers")
        except UserError:
            raise
        except Exception as error:  # a calculator, like a reader, raises anything at all
            warm = self.settings.thermalise_steps
            where = f"step {step}" if self.task.kind == "record" else f"thermalisation step {warm + step}"
            files = f"; its files are in {Path.cwd()}" if any(Path.cwd().iterdir()) else ""
            raise UserError(
                f"run {self.run} of {self.settings.system} stopped at {where}: {self.settings.method} failed "
                f"({type(error).__name__}: {error}{files}). Try another seed, a smaller time step or a lower "
                "temperature; where it fails at once, the method does not suit the system"
            ) from error

    def _frame(self, forces: np.ndarray) -> _Frame:
        # Where a calculator tells it apart, the free energy is the one whose gradient the forces are.
        results = self.atoms.calc.results
        energy = results.get("free_energy", results["energy"])
        return self.atoms.get_positions(), self.atoms.get_momenta(), forces, float(energy)

    def _piece(self, frames: list[_Frame]) -> Piece:
        positions, momenta, forces, energies = (np.array(column) for column in zip(*frames, strict=True))
        random_state = dict(self.rng.bit_generator.state)
        return Piece(positions, momenta, forces, energies, self.thermostat, random_state)
