"""Quantum ESPRESSO pw.x: the output of an MD calculation."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from dyntrain.data.formats.frames import Steps, check_numbered, left_out
from dyntrain.data.formats.text import Lines, floats, reading
from dyntrain.data.raw import RawRun
from dyntrain.data.timestamps import settle_time_stamps, stride_of
from dyntrain.data.trajectory import FloatArray
from dyntrain.errors import UserError
from dyntrain.units import AUT, BOHR, FS, HARTREE

# pw.x works in Rydberg units: energies of ½ hartree, and a unit of time twice as long as hartree's.
_RYDBERG = HARTREE / 2
_TIME_UNIT_FS = 2 * AUT / FS


def read_pwscf(file: Path) -> RawRun:
    """Read the run; positions before the first step stand in the header, those of later ones after each step.

    Raises:
        UserError: no MD run, or damaged content.
    """
    run = _Pwscf(file)
    with reading(file, "a pw.x output") as lines:
        for line in lines:
            run.take(line, lines)
        return run.finish(lines.cut)


class _Pwscf:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.n_atoms = 0
        self.alat: float | None = None
        self.cell: FloatArray | None = None
        self.labels: list[str] = []
        self.species_masses: dict[str, float] = {}
        self.dt: float | None = None
        self.next_positions: FloatArray | None = None
        self.energy: float | None = None
        self.frames = Steps()
        self.steps: list[int] = []
        self.step = 0
        self.dropped = 0
        self.jumps = 0
        self.done = False

    def take(self, line: str, lines: Lines) -> None:
        if line.startswith("!") and "total energy" in line:
            self.energy = float(line.split("=")[1].split()[0]) * _RYDBERG
        elif "Forces acting on atoms" in line:
            self._frame(lines)
        elif (
            "total   stress  (Ry/bohr**3)" in line
            and self.frames.pressures
            and self.frames.pressures[-1] is None
        ):
            self.frames.pressures[-1] = lines.floats(3)  # of the frame whose forces stand above
        elif line.startswith("ATOMIC_POSITIONS"):
            self._positions(line, lines)
        elif line.startswith("CELL_PARAMETERS"):
            self._cell(line, lines)
        elif "Time step" in line and "a.u." in line:
            self.dt = float(line.split("=")[1].split()[0]) * _TIME_UNIT_FS
        elif "Entering Dynamics" in line:
            step = int(line.split("=")[1])
            self.jumps += self.step > 0 and step != self.step + 1
            self.step = step
        elif "JOB DONE" in line:
            self.done = True
        elif not self.frames.positions:
            self._header(line, lines)

    def _header(self, line: str, lines: Lines) -> None:
        if "number of atoms/cell" in line:
            self.n_atoms = int(line.split("=")[1])
        elif "lattice parameter (alat)" in line:
            self.alat = float(line.split("=")[1].split()[0]) * BOHR
        elif line.lstrip().startswith("celldm(1)="):
            self.alat = float(line.split("=")[1].split()[0]) * BOHR or self.alat
        elif "crystal axes:" in line and self.alat and (rows := lines.take(3)) is not None:
            self.cell = floats([_after_bracket(row) for row in rows]) * self.alat
        elif "atomic species   valence    mass" in line:
            for row in lines:
                if len(words := row.split()) < 3:
                    break
                self.species_masses[words[0]] = float(words[2])
        elif "positions (alat units)" in line and self.alat and (rows := lines.take(self.n_atoms)):
            self.labels = [row.split()[1] for row in rows]
            self.next_positions = floats([_after_bracket(row) for row in rows]) * self.alat

    def _positions(self, line: str, lines: Lines) -> None:
        self.next_positions = None
        rows = lines.take(self.n_atoms)
        if rows is None or self.cell is None:
            return
        if [row.split()[0] for row in rows] != self.labels:
            raise UserError(
                f"{self.file}, frame {len(self.frames.positions)}: the atoms differ from those of frame 0."
            )
        values = floats(rows, first=1)
        unit = _unit_of(line)
        if unit == "crystal":
            self.next_positions = values @ self.cell
        else:
            self.next_positions = values * self._scale(unit)

    def _cell(self, line: str, lines: Lines) -> None:
        if (rows := lines.floats(3)) is None:
            return
        unit = _unit_of(line)
        if unit.startswith("alat="):  # (alat= 10.18000000), in bohr
            self.cell = rows * float(unit.split("=")[1]) * BOHR
        else:
            self.cell = rows * self._scale(unit)

    def _scale(self, unit: str) -> float:
        known = {"angstrom": 1.0, "bohr": BOHR, "alat": self.alat, "": self.alat}
        if (scale := known.get(unit)) is None:
            raise UserError(f"{self.file}: unknown unit ({unit}) of positions or cell.")
        return scale

    def _frame(self, lines: Lines) -> None:
        rows: list[str] = []
        for line in lines:
            if "force =" in line:
                rows.append(line)
            if len(rows) == self.n_atoms:
                break
        if (
            len(rows) < self.n_atoms
            or self.energy is None
            or self.next_positions is None
            or self.cell is None
        ):
            self.dropped += 1
            return
        check_numbered([int(row.split()[1]) for row in rows], self.file, len(self.frames.positions))
        self.frames.forces.append(floats([row.split("force =")[1] for row in rows]) * (_RYDBERG / BOHR))
        self.frames.positions.append(self.next_positions)
        self.frames.cells.append(self.cell)
        self.frames.energies.append(self.energy)
        self.steps.append(self.step)
        self.frames.pressures.append(None)
        self.next_positions = self.energy = None

    def finish(self, cut: bool) -> RawRun:
        if not self.step or self.dt is None:
            raise UserError(f"{self.file}: no step of molecular dynamics is in this pw.x output.")
        if not self.frames.positions:
            raise UserError(f"{self.file} holds no complete step.")
        if unknown := sorted(set(self.labels) - self.species_masses.keys()):
            raise UserError(f"{self.file}: no mass is given for {', '.join(unknown)}.")
        times = [{"time_fs": step * self.dt} for step in self.steps]
        dt_fs, breaks, notes = settle_time_stamps(times, str(self.file))
        if cut or not self.done:
            notes.append("pw.x did not end by itself: the complete steps before are used.")
        if self.jumps:
            notes.append(
                f"The numbers of the steps jump {self.jumps} time(s): parts of the file are missing."
            )
        if self.steps[0] != 0:
            notes.append(f"The file begins at step {self.steps[0]} of the run.")
        return self.frames.run(
            self.file,
            "Quantum ESPRESSO pw.x",
            self.labels,
            np.array([self.species_masses[label] for label in self.labels]),
            pressure_unit=_RYDBERG / BOHR**3,
            notes=[*notes, *left_out(self.dropped + (self.energy is not None))],
            dt_fs=dt_fs,
            breaks=breaks,
            stride=stride_of(self.steps),
        )


def _after_bracket(row: str) -> str:
    """The words behind the last opening bracket of `a(1) = (  -0.5  0.0  0.5 )`."""
    return row.rpartition("(")[2]


def _unit_of(line: str) -> str:
    """The unit of `ATOMIC_POSITIONS (alat)` or `CELL_PARAMETERS (alat= 10.18)`, lower case."""
    match = re.search(r"[({]\s*(.*?)\s*[)}]", line)
    return match[1].replace(" ", "").lower() if match else ""
