"""FHI-aims: the output of a Born–Oppenheimer MD run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from dyntrain.data.formats.frames import (
    CUT_OFF,
    left_out,
    numbers_of,
    one_cell,
    standard_masses,
)
from dyntrain.data.formats.text import Lines, floats, reading
from dyntrain.data.raw import RawRun
from dyntrain.data.timestamps import settle_time_stamps
from dyntrain.data.trajectory import FloatArray
from dyntrain.errors import UserError
from dyntrain.units import FS


def read_aims(file: Path) -> RawRun:
    """Read the run: FHI-aims prints structure and velocities (Å, Å/ps) of a step after its forces.

    Raises:
        UserError: no MD run, or damaged content.
    """
    run = _Aims(file)
    with reading(file, "an FHI-aims output") as lines:
        for line in lines:
            run.take(line, lines)
        return run.finish(lines.cut)


class _Aims:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.n_atoms = 0
        self.species = ""
        self.species_masses: dict[str, float] = {}
        self.labels: list[str] = []
        self.forces_now: FloatArray | None = None
        self.energy: float | None = None
        self.time: float | None = None
        self.positions: list[FloatArray] = []
        self.velocities: list[FloatArray] = []
        self.forces: list[FloatArray] = []
        self.cells: list[FloatArray] = []
        self.energies: list[float] = []
        self.times: list[float] = []
        self.dropped = 0

    def take(self, line: str, lines: Lines) -> None:
        if "Total atomic forces" in line and "[eV/Ang]" in line:
            rows = lines.take(self.n_atoms)
            self.forces_now = (
                None if rows is None else floats([row.partition("|")[2] for row in rows], first=1)
            )
        elif "| Electronic free energy       :" in line:
            self.energy = _value(line)
        elif "| Simulation time" in line:
            self.time = _value(line) * 1000.0  # ps
        elif "Atomic structure (and velocities) as used in the preceding time step" in line:
            self._structure(lines)
        elif not self.positions:
            self._header(line)

    def _header(self, line: str) -> None:
        if "| Number of atoms" in line:
            self.n_atoms = int(line.split(":")[1])
        elif "Reading configuration options for species" in line:
            self.species = line.split()[5]
        elif re.search(r"\| Found (atomic )?mass", line):
            self.species_masses[self.species] = _value(line)

    def _structure(self, lines: Lines) -> None:
        cell: list[str] = []
        atoms: list[str] = []
        speeds: list[str] = []
        for line in lines:
            words = line.split()
            if not words or words[0] not in ("lattice_vector", "atom", "velocity"):
                if len(atoms) == len(speeds) == self.n_atoms:
                    break
                continue
            {"lattice_vector": cell, "atom": atoms, "velocity": speeds}[words[0]].append(line)
            if len(atoms) == len(speeds) == self.n_atoms:
                break
        whole = len(atoms) == len(speeds) == self.n_atoms and len(cell) in (0, 3)
        if not whole or self.forces_now is None or self.energy is None or self.time is None:
            self.dropped += 1
            return
        labels = [row.split()[4] for row in atoms]
        if self.labels and labels != self.labels:
            raise UserError(
                f"{self.file}, frame {len(self.positions)}: the atoms differ from those of frame 0."
            )
        self.labels = labels
        self.positions.append(floats(atoms, first=1))
        self.velocities.append(floats(speeds, first=1) * (1e-3 / FS))
        self.cells.append(floats(cell, first=1) if cell else np.zeros((3, 3)))
        self.forces.append(self.forces_now)
        self.energies.append(self.energy)
        self.times.append(self.time)
        self.forces_now = self.energy = self.time = None

    def finish(self, cut: bool) -> RawRun:
        if not self.positions:
            raise UserError(f"{self.file} holds no complete step of molecular dynamics.")
        cell = one_cell(self.cells)
        numbers = numbers_of(self.labels, self.file)
        masses = standard_masses(self.labels, numbers)
        for number, label in enumerate(self.labels):
            masses[number] = self.species_masses.get(label, masses[number])
        dt_fs, breaks, notes = settle_time_stamps([{"time_fs": t} for t in self.times], str(self.file))
        if self.times[0] != 0:
            notes.append(f"The file begins at {self.times[0]:g} fs of the run.")
        if unknown := sorted(set(self.labels) - self.species_masses.keys()):
            notes.append(f"The file has no mass of {', '.join(unknown)}: standard atomic masses.")
        return RawRun(
            file=str(self.file),
            reader="FHI-aims",
            positions=np.stack(self.positions),
            forces=np.stack(self.forces),
            energies=np.array(self.energies),
            cell=cell,
            pbc=np.full(3, bool(cell.any())),
            atomic_numbers=numbers,
            masses=masses,
            velocities=np.stack(self.velocities),
            dt_fs=dt_fs,
            breaks=breaks,
            notes=[
                *notes,
                *left_out(self.dropped),
                *([CUT_OFF] if cut or self.forces_now is not None else []),
            ],
        )


def _value(line: str) -> float:
    """The number behind the colon of `| Simulation time : 0.1E-02 ps`."""
    return float(line.split(":")[1].split()[0])
