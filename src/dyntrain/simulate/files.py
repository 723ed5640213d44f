"""Trajectory files of a run: whole once they have their name; a killed run goes on in them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.data import atomic_masses
from ase.io.extxyz import write_xyz
from ase.io.trajectory import Trajectory as AseTrajectory
from torch import Tensor

from dyntrain.errors import UserError
from dyntrain.rollout import Frame
from dyntrain.simulate.h5md import H5mdWriter
from dyntrain.simulate.partial import Mark, PartialFile
from dyntrain.state import State
from dyntrain.units import FS

ENDINGS = (".traj", ".xyz", ".extxyz", ".h5md", ".h5")
"""Of trajectory files that can be written."""

MOST_FILES = 256
"""Systems that are written to a file each; many systems allow no more open files."""


def frame_to_ase(frame: Frame, dt: float, system: int = 0, conserved: Tensor | None = None) -> Atoms:
    """One system of a frame as ``ase.Atoms`` with momenta, energy and forces, ``info["step"]`` and
    ``info["time_fs"]``.

    Args:
        dt: time step of the run in ASE time.
        system: its number in the start of the run.
        conserved: conserved energies of the frame's systems, [n_systems] eV, for
            ``info["conserved_energy"]``.

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
    if conserved is not None:
        atoms.info["conserved_energy"] = float(conserved[at])
    if not np.allclose(masses, atomic_masses[numbers], rtol=0, atol=1e-9):
        atoms.set_masses(masses)
    atoms.set_velocities(state.velocities.cpu().numpy())
    if state.fixed is not None and bool(state.fixed.any()):
        atoms.set_constraint(FixAtoms(mask=state.fixed.cpu().numpy()))
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
        mark: of an earlier writer's partial file, which is cut back to it and gone on with.

    Raises:
        UserError: another ending, a folder that is not there or not writable, or a partial file that is
            not the marked one.
    """

    def __init__(self, path: Path | str, mark: Mark | None = None) -> None:
        self.path = Path(path)
        if self.path.suffix not in (".traj", ".xyz", ".extxyz"):
            raise UserError(
                f"trajectories are written as .traj, .xyz, .extxyz or .h5md, but {self.path} ends otherwise: "
                "choose one of these endings"
            )
        self._partial = PartialFile(self.path, mark)
        self.partial = self._partial.partial
        self.n_written = 0 if mark is None else mark.n_written
        if self.path.suffix == ".traj":
            self._file: Any = AseTrajectory(str(self.partial), "a")
        else:
            self._file = self.partial.open("a", encoding="utf-8")

    def write(self, atoms: Atoms) -> None:
        """Append one frame (see ``frame_to_ase``)."""
        if self.path.suffix == ".traj":
            self._file.write(atoms)
        else:
            write_xyz(self._file, atoms)
            self._file.flush()
        self.n_written += 1

    def mark(self) -> Mark:
        """Where the file stands; what was written before it is on the disk."""
        stream = self._stream()
        stream.flush()
        os.fsync(stream.fileno())
        return self._partial.mark(self.n_written)

    def _stream(self) -> Any:
        return self._file.backend.fd if self.path.suffix == ".traj" else self._file

    def close(self, finished: bool) -> None:
        """Give the file its name if it is finished; without any frame it vanishes."""
        try:
            self._file.close()
        except OSError:  # the disk is full
            with contextlib.suppress(OSError):
                self._stream().close()
            self._partial.release()
            raise
        if finished:
            self._partial.finish(self.n_written)
        else:
            self._partial.release()

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(finished=kind is None)


class TrajectoryFiles:
    """The files of a batch: one a system, or one H5MD file with a group a system.

    Args:
        output: the file of one system, or of all as H5MD; several systems have ``name_000.traj`` ….
        start: the batch.
        dt: time step in ASE time.
        every: frames 0, every, 2·every, … and the last one will come; H5MD holds no last one out of step.
        marks: of an earlier run's files, which are gone on with.

    Attributes:
        paths: of the files.
    """

    def __init__(
        self, output: Path, start: State, dt: float, every: int, marks: Sequence[Mark] | None = None
    ) -> None:
        self._dt, self._every = dt, every
        self.paths = trajectory_paths(output, start.n_systems)
        places = list(marks) if marks is not None else [None] * len(self.paths)
        self._h5md: H5mdWriter | None = None
        self._writers: list[TrajectoryWriter] = []
        if output.suffix in (".h5", ".h5md"):
            self._h5md = H5mdWriter(output, start, every * dt, places[0])
        else:
            self._writers = [TrajectoryWriter(p, m) for p, m in zip(self.paths, places, strict=True)]

    def write(self, frame: Frame, conserved: Tensor, systems: Sequence[int] | None = None) -> None:
        """Append a frame (of some systems only) with its conserved energies, [n_systems] eV."""
        if self._h5md is not None:
            if frame.step % self._every == 0:
                self._h5md.write(frame)
            return
        for system in frame.systems.tolist() if systems is None else systems:
            self._writers[system].write(frame_to_ase(frame, self._dt, system, conserved))

    def marks(self) -> list[Mark]:
        """Where the files stand, for a checkpoint; what was written before is on the disk."""
        return [writer.mark() for writer in self._all()]

    def n_written(self) -> list[int]:
        """Frames in each file."""
        return [writer.n_written for writer in self._all()]

    def close(self, finished: bool) -> None:
        """Give the files their names if the run is finished."""
        for writer in self._all():
            writer.close(finished)

    def _all(self) -> Sequence[TrajectoryWriter | H5mdWriter]:
        return self._writers if self._h5md is None else [self._h5md]


def trajectory_paths(output: Path, n_systems: int) -> list[Path]:
    """Where the trajectories of a batch lie.

    Raises:
        UserError: another ending, or too many systems for a file each.
    """
    if output.suffix not in ENDINGS:
        raise UserError(
            f"trajectories are written as {', '.join(ENDINGS)}, but {output} ends otherwise: choose one of "
            "these endings"
        )
    if n_systems == 1 or output.suffix in (".h5", ".h5md"):
        return [output]
    if n_systems > MOST_FILES:
        raise UserError(
            f"{n_systems} systems would need a {output.suffix} file each, more than {MOST_FILES}: write them "
            f"to one H5MD file, --output {output.stem}.h5md"
        )
    width = max(3, len(str(n_systems - 1)))
    return [output.with_name(f"{output.stem}_{n:0{width}d}{output.suffix}") for n in range(n_systems)]
