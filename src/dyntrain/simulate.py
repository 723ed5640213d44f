"""Batched molecular dynamics without gradient on the one roll-out loop, and the files it is written to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_masses, chemical_symbols, covalent_radii
from ase.io.extxyz import write_xyz
from ase.io.trajectory import Trajectory as AseTrajectory
from torch import Tensor

from dyntrain.errors import UserError
from dyntrain.integrators import VelocityVerlet
from dyntrain.neighbors import Neighbors, VerletNeighbors, neighbor_list, pair_vectors
from dyntrain.potential import Potential
from dyntrain.rollout import BurstGuard, Frame, Full, rollout
from dyntrain.state import State
from dyntrain.units import FS, KB


def device_of(potential: Potential) -> torch.device:
    """Where a potential's tensors are (the CPU for one without any)."""
    return next((t.device for t in (*potential.parameters(), *potential.buffers())), torch.device("cpu"))


# --- the run ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Burst:
    """A system that left the run, because its next step was beyond reason.

    system: its number in the start
    step:   its last sound step; −1: already the start was not sound
    atom:   the atom that broke it, numbered within the system; None where the energy did
    reason: one sentence
    """

    system: int
    step: int
    atom: int | None
    reason: str


class Simulation:
    """Free motion (NVE) of a batch of systems; iterating runs it.

    Attributes:
        bursts: the systems lost so far, each with step, atom and reason; complete once the iteration ends.
        n_steps_done: the last step that was sound.
    """

    def __init__(
        self,
        potential: Potential,
        state: State,
        integrator: VelocityVerlet,
        n_steps: int,
        every: int,
        guard: BurstGuard,
        neighbors: Neighbors,
    ) -> None:
        self.bursts: list[Burst] = []
        self.n_steps_done = 0
        self._potential, self._start, self._integrator = potential, state, integrator
        self._n_steps, self._every, self._guard, self._neighbors = n_steps, every, guard, neighbors
        self._start_energy = torch.zeros(0)

    @torch.no_grad()
    def __iter__(self) -> Iterator[Frame]:
        self.bursts, self.n_steps_done = [], 0
        frames = rollout(
            self._potential,
            self._start,
            self._integrator,
            self._n_steps,
            backprop=Full(),  # without gradient: leaves the frames as they are
            neighbors=self._neighbors,
            guard=self._guard,
        )
        last: Frame | None = None
        for frame in frames:
            self._note_lost(last, frame.systems.tolist())
            if last is None:
                self._start_energy = torch.full(
                    (self._start.n_systems,), torch.nan, dtype=torch.float64, device=self._start.device
                ).index_copy(0, frame.systems, frame.prediction.energy)
            last, self.n_steps_done = frame, frame.step
            if self._is_due(frame.step):
                yield frame
        if last is None or last.step < self._n_steps:
            self._note_lost(last, [])
            if last is not None and not self._is_due(last.step):
                yield last

    def _is_due(self, step: int) -> bool:
        return step % self._every == 0 or step == self._n_steps

    def _note_lost(self, last: Frame | None, alive: list[int]) -> None:
        before = range(self._start.n_systems) if last is None else last.systems.tolist()
        for system in sorted(set(before) - set(alive)):
            self.bursts.append(self._explained(last, system))

    def _explained(self, last: Frame | None, system: int) -> Burst:
        """Takes the step of one system again, to say which atom broke it and how."""
        if last is None:
            return self._broken_forces(self._start.select([system]), system, -1)
        place = last.systems.tolist().index(system)
        old = last.state.select([place])
        forces = last.prediction.forces[last.state.atoms_of(torch.tensor([place], device=old.device))]
        moved = self._integrator.select(torch.tensor([system])).drift(old, forces)
        way = (moved.positions - old.positions).abs().amax(-1)
        if not bool((way <= self._guard.max_step).all()):
            atom = int(way.argmax())  # argmax takes NaN for the largest
            return Burst(
                system,
                last.step,
                atom,
                f"{_name(old, atom)} would move {float(way[atom]):.3g} Å in one step, more than "
                f"{self._guard.max_step:g} Å (force on it {float(forces[atom].norm()):.3g} eV/Å)",
            )
        return self._broken_forces(moved, system, last.step)

    def _broken_forces(self, state: State, system: int, step: int) -> Burst:
        energy, forces = self._potential(state, neighbor_list(state, self._potential.cutoff))
        broken = (~torch.isfinite(forces).all(-1)).nonzero()
        if broken.numel():
            atom = int(broken[0])
            return Burst(system, step, atom, f"the force on {_name(state, atom)} is not finite")
        if not bool(torch.isfinite(energy).all()):
            return Burst(system, step, None, "the energy is not finite")
        change = float(energy[0] - self._start_energy[system]) / state.n_atoms
        return Burst(
            system,
            step,
            None,
            f"the potential energy would differ from the start's by {change:.3g} eV per atom, more than "
            f"{self._guard.max_energy:g}",
        )


def _name(state: State, atom: int) -> str:
    return f"atom {atom} ({chemical_symbols[int(state.atomic_numbers[atom])]})"


def simulate(
    potential: Potential,
    state: State,
    dt: float | Tensor,
    n_steps: int,
    *,
    every: int = 1,
    guard: BurstGuard | None = None,
    neighbors: Neighbors | None = None,
) -> Simulation:
    """Free-running NVE molecular dynamics of a batch, without gradient and without kicks.

    Args:
        potential: energies and forces.
        state: the start, any number of systems.
        dt: time step in ASE time (``dt_fs * units.FS``), one number or one a system.
        n_steps: number of steps.
        every: frames 0, every, 2·every, … and the last one are yielded; if all systems burst, the last
            sound one.
        guard: when a system counts as burst and leaves the run; default ``BurstGuard()``.
        neighbors: default ``VerletNeighbors(potential.cutoff)``, exact.

    Returns:
        A ``Simulation``: iterate it for the frames, then look at its ``bursts``.
    """
    if n_steps < 0 or every < 1:
        raise ValueError(f"need n_steps >= 0 and every >= 1, got {n_steps} and {every}")
    return Simulation(
        potential,
        state.detach(),
        VelocityVerlet(dt),
        n_steps,
        every,
        guard if guard is not None else BurstGuard(),
        neighbors if neighbors is not None else VerletNeighbors(potential.cutoff),
    )


# --- temperature ------------------------------------------------------------------------------------------


def internal_temperature(state: State) -> float:
    """Temperature (K) of what one system does beside moving and turning as a whole.

    2 E_kin / (n k_B) of the motion without its rigid part, n = 3N − 6 (5 for linear molecules, 3N − 3 for
    periodic systems, which cannot turn); for a single atom the plain kinetic temperature.
    """
    internal, n_free = _without_rigid_motion(state, state.velocities)
    if not n_free:
        return float(state.temperature()[0])
    return float(2.0 * state.replace(velocities=internal).kinetic_energy()[0] / (n_free * KB))


def draw_velocities(state: State, temperature: float, seed: int) -> State:
    """One system with Maxwell–Boltzmann velocities, at rest as a whole, its ``internal_temperature`` exact.

    Args:
        temperature: K; 0 gives rest.
    """
    random = torch.from_numpy(np.random.default_rng(seed).standard_normal((state.n_atoms, 3)))
    drawn = random.to(state.device) * torch.sqrt(KB * temperature / state.masses)[:, None]
    internal, n_free = _without_rigid_motion(state, drawn)
    if not n_free:  # a single atom: all it can do is move
        return state.replace(velocities=drawn)
    moving = state.replace(velocities=internal)
    found = internal_temperature(moving)
    return moving.replace(velocities=internal * (temperature / found) ** 0.5) if found else moving


def _without_rigid_motion(state: State, velocities: Tensor) -> tuple[Tensor, int]:
    """Velocities less translation (and rotation, unless periodic), and the degrees of freedom left."""
    roots = torch.sqrt(state.masses)
    centre = (state.masses[:, None] * state.positions).sum(0) / state.masses.sum()
    axes = torch.eye(3, dtype=torch.float64, device=state.device)
    modes = [axis.expand_as(state.positions) for axis in axes]
    if not bool(state.pbc.any()):
        arms = state.positions - centre
        modes += [torch.linalg.cross(axis.expand_as(arms), arms) for axis in axes]
    weighted = torch.stack([(roots[:, None] * mode).flatten() for mode in modes], dim=1)
    basis, sizes, _ = torch.linalg.svd(weighted, full_matrices=False)
    basis = basis[:, sizes > 1e-6 * sizes[0]]
    motion = (roots[:, None] * velocities).flatten()
    internal = (motion - basis @ (basis.T @ motion)).reshape(-1, 3) / roots[:, None]
    return internal, max(0, 3 * state.n_atoms - basis.shape[1])


# --- is this a start? ---------------------------------------------------------------------------------

# Real bonds are longer than 0.9 of the sum of covalent radii (H2: 1.19); hot ones dip to about 0.7.
CLOSEST_SANE = 0.6
"""A pair closer than this times the sum of its covalent radii is refused as a start."""

HOTTEST_SANE = 20_000.0
"""Kinetic temperature (K) above which the velocities of a start are refused: wrong units."""


@dataclass(frozen=True)
class Start:
    """What was found in a start: internal temperature in K; closest pair in Å (None: none within 3 Å)."""

    temperature: float
    closest_distance: float | None
    closest_pair: str


def check_start(state: State, name: str) -> Start:
    """Look at a start before blaming the model for it.

    Args:
        state: one system.
        name: where it comes from, for the message.

    Raises:
        UserError: positions or velocities that are not finite, atoms on top of each other, or velocities
            that can only be in other units.
    """
    for quantity in ("positions", "velocities"):
        broken = (~torch.isfinite(getattr(state, quantity)).all(-1)).nonzero()
        if broken.numel():
            raise UserError(
                f"{name}: the {quantity} of {_name(state, int(broken[0]))} are not finite numbers: repair "
                "the file"
            )
    pairs = neighbor_list(state, 3.0)
    distances = pair_vectors(state, pairs).norm(dim=-1)
    radii = torch.as_tensor(covalent_radii)[state.atomic_numbers.cpu()].to(state.device)
    touching = distances < CLOSEST_SANE * (radii[pairs.i] + radii[pairs.j])
    closest, pair = None, ""
    if pairs.n_pairs:
        at = int(torch.where(touching, distances - 3.0, distances).argmin())
        closest = float(distances[at])
        pair = f"{_name(state, int(pairs.i[at]))} and {_name(state, int(pairs.j[at]))}"
        if bool(touching[at]):
            raise UserError(
                f"{name}: {pair} are only {closest:.3f} Å apart; no molecular dynamics can start there: "
                "relax or repair the structure, or check its cell and units (Å)"
            )
    temperature = internal_temperature(state)
    if temperature > HOTTEST_SANE:
        raise UserError(
            f"{name}: its velocities make {temperature:.3g} K, so they are probably in other units than "
            "ASE's (Å per ASE time, sqrt(eV/u)): convert them, or draw new ones with --temperature"
        )
    return Start(temperature, closest, pair)


# --- files --------------------------------------------------------------------------------------------


def frame_to_ase(frame: Frame, dt: float, system: int = 0) -> Atoms:
    """One system of a frame as ``ase.Atoms`` with momenta, energy and forces, ``info["step"]`` and
    ``info["time_fs"]``.

    Args:
        dt: time step of the run in ASE time.
        system: its number in the start of the run.

    Raises:
        ValueError: the system is not in this frame (it has burst).
    """
    places = (frame.systems == system).nonzero()
    if not places.numel():
        raise ValueError(f"system {system} is not in frame {frame.step}: it has burst before")
    at = places[0]
    state, chosen = frame.state.select(at), frame.state.atoms_of(at)
    numbers, masses = state.atomic_numbers.cpu().numpy(), state.masses.cpu().numpy()
    atoms = Atoms(
        numbers=numbers,
        positions=state.positions.cpu().numpy(),
        cell=state.cell[0].cpu().numpy(),
        pbc=state.pbc[0].cpu().numpy(),
        info={"step": frame.step, "time_fs": frame.step * dt / FS},
    )
    if not np.allclose(masses, atomic_masses[numbers], rtol=0, atol=1e-9):
        atoms.set_masses(masses)
    atoms.set_velocities(state.velocities.cpu().numpy())
    atoms.calc = SinglePointCalculator(
        atoms,
        energy=float(frame.prediction.energy[at]),
        forces=frame.prediction.forces[chosen].detach().cpu().numpy(),
    )
    return atoms


class TrajectoryWriter:
    """Writes frames to an ASE ``.traj`` (full precision) or extended XYZ file (8 decimals).

    While the run lasts, the frames go to ``<name>.partial``; leaving the ``with`` block gives the file its
    name, so a file of that name is always whole. After a crash the partial file is still there.

    Args:
        path: ends in .traj, .xyz or .extxyz.

    Raises:
        UserError: another ending, or a folder that is not there or not writable.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.n_written = 0
        self._append: Callable[[Atoms], Any]
        if self.path.suffix not in (".traj", ".xyz", ".extxyz"):
            raise UserError(
                f"trajectories are written as .traj, .xyz or .extxyz, but {self.path} ends otherwise: choose "
                "one of these endings"
            )
        if self.path.is_dir():
            raise UserError(f"{self.path} is a folder: give the name of a file to write to")
        try:
            if self.path.suffix == ".traj":
                self._file: Any = AseTrajectory(str(self.partial), "w")
                self._append = self._file.write
            else:
                self._file = self.partial.open("w", encoding="utf-8")
                self._append = self._append_xyz
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}): create its folder, or choose another one"
            ) from error

    def _append_xyz(self, atoms: Atoms) -> None:
        write_xyz(self._file, atoms)
        self._file.flush()

    def write(self, atoms: Atoms) -> None:
        """Append one frame (see ``frame_to_ase``)."""
        self._append(atoms)
        self.n_written += 1

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if not self.n_written:  # not even a start was sound: no file is better than an empty one
            self.partial.unlink()
        elif kind is None:
            self.partial.replace(self.path)
