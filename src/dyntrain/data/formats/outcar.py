"""VASP's OUTCAR, with the positions of an XDATCAR beside it, which have more digits."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from dyntrain.data.formats.frames import CUT_OFF, Steps, left_out, missing_files
from dyntrain.data.formats.text import Lines, beside, floats, plain_name, reading
from dyntrain.data.formats.vasprun import read_vasprun
from dyntrain.data.raw import RawRun
from dyntrain.data.timestamps import settle_time_stamps, stride_of
from dyntrain.data.trajectory import FloatArray, check_cell, check_finite
from dyntrain.errors import UserError
from dyntrain.units import KBAR

# OUTCAR prints positions with five decimals; XDATCAR's must agree with them to that.
_DIGITS = 3e-5


def read_xdatcar(file: Path) -> RawRun:
    """Read the run an XDATCAR belongs to: energies and forces stand in the vasprun.xml or OUTCAR beside it.

    Raises:
        UserError: neither is there, or what they hold cannot be read.
    """
    ending = plain_name(file).removeprefix("XDATCAR")
    if (xml := beside(file, f"vasprun{ending}.xml")) is not None:
        run = read_vasprun(xml)
        run.notes.append(f"Read from {xml.name}, which has all that {file.name} has and the forces.")
        return run
    if (outcar := beside(file, f"OUTCAR{ending}")) is not None:
        return read_outcar(outcar)
    needed = f"vasprun{ending}.xml or OUTCAR{ending}"
    raise missing_files(file, [needed], "an XDATCAR has no forces and energies")


def read_outcar(file: Path) -> RawRun:
    """Read the run of an OUTCAR; energies are the free energies, to which the forces belong.

    Raises:
        UserError: no MD run, or damaged content.
    """
    run = _Outcar(file)
    with reading(file, "a VASP OUTCAR") as lines:
        for line in lines:
            run.take(line, lines)
        cut = lines.cut
    raw = run.finish(cut)
    check_cell(raw.cell, raw.pbc, raw.file, 0)
    ending = plain_name(file).removeprefix("OUTCAR")
    if (xdatcar := beside(file, f"XDATCAR{ending}")) is not None:
        _take_positions(raw, xdatcar)
    return raw


class _Outcar:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.symbols: list[str] = []
        self.type_masses: list[float] = []
        self.counts: list[int] = []
        self.potim: float | None = None
        self.cell: FloatArray | None = None
        self.pending: FloatArray | None = None
        self.notes: list[str] = []
        self.frames = Steps()
        self.pressure: FloatArray | None = None
        self.steps: list[int] = []
        self.step = self.without_forces = 0

    def take(self, line: str, lines: Lines) -> None:
        if "TOTAL-FORCE (eV/Angst)" in line:
            lines.take(1)
            self.pending = lines.floats(sum(self.counts), count=6)
            self.step += 1
        elif line.startswith("  in kB "):
            # XX YY ZZ XY YZ ZX, of the electrons and ions alone: what the motion adds stands further below.
            xx, yy, zz, xy, yz, zx = (float(word) for word in line.split()[2:8])
            self.pressure = np.array([[xx, xy, zx], [xy, yy, yz], [zx, yz, zz]])
        elif "free  energy   TOTEN" in line:
            self._frame(float(line.split("=")[1].split()[0]))
        elif "direct lattice vectors" in line:
            if (rows := lines.take(3)) is not None:
                # Nine decimals without spaces between: the numbers may touch.
                self.cell = floats([" ".join(re.findall(r"-?\d+\.\d{9}", row)) for row in rows])
        elif not self.frames.positions:
            self._header(line)

    def _header(self, line: str) -> None:
        words = line.split()
        if "VRHFIN =" in line:
            self.symbols.append(line.split("=")[1].split(":")[0].strip())
        elif "POMASS =" in line and "ZVAL" in line:
            self.type_masses.append(float(line.split("=")[1].split(";")[0]))
        elif words[:2] == ["POMASS", "="]:
            self._masses_of_incar([float(mass) for mass in re.findall(r"\d+\.\d\d", line)])
        elif "ions per type =" in line:
            self.counts = [int(word) for word in line.split("=")[1].split()]
        elif words[:2] == ["POTIM", "="]:
            self.potim = float(words[2])
        elif words[:2] == ["IBRION", "="] and int(words[2]) != 0:
            raise UserError(
                f"{self.file}: IBRION = {words[2]}, so this is no molecular dynamics (IBRION = 0)."
            )

    def _masses_of_incar(self, used: list[float]) -> None:
        """Where POMASS of the INCAR overrides the POTCAR's, it shows in the second table (two decimals)."""
        if len(used) == len(self.type_masses) and not np.allclose(used, self.type_masses, rtol=0, atol=0.006):
            self.type_masses = used
            self.notes.append("Masses are those set in the INCAR, of which the OUTCAR shows two decimals.")

    def _frame(self, energy: float) -> None:
        if self.pending is None:
            self.step += 1  # with NBLOCK > 1 forces are written at some steps only
            self.without_forces += 1
        if self.pending is None or self.cell is None:
            return
        self.frames.positions.append(self.pending[:, :3])
        self.frames.forces.append(self.pending[:, 3:])
        self.frames.cells.append(self.cell)
        self.frames.energies.append(energy)
        self.steps.append(self.step)
        self.frames.pressures.append(self.pressure)
        self.pending = self.pressure = None

    def finish(self, cut: bool) -> RawRun:
        if not self.frames.positions:
            raise UserError(f"{self.file} holds no complete ionic step.")
        if len(self.symbols) < len(self.counts) or len(self.type_masses) < len(self.counts):
            raise UserError(
                f"{self.file}: elements or masses of its {len(self.counts)} atom types are missing."
            )
        if cut or self.pending is not None:
            self.notes.append(CUT_OFF)
        if self.potim is None:
            raise UserError(f"{self.file}: POTIM is missing from its header.")
        self.notes += left_out(self.step - len(self.steps) - self.without_forces - (self.pending is not None))
        times = [{"time_fs": step * self.potim} for step in self.steps]
        dt_fs, breaks, time_notes = settle_time_stamps(times, str(self.file))
        labels = np.repeat(self.symbols[: len(self.counts)], self.counts).tolist()
        return self.frames.run(
            self.file,
            "VASP OUTCAR",
            labels,
            np.repeat(self.type_masses[: len(self.counts)], self.counts),
            pressure_unit=KBAR,
            notes=self.notes + time_notes,
            dt_fs=dt_fs,
            breaks=breaks,
            stride=stride_of(self.steps),
        )


def _take_positions(run: RawRun, xdatcar: Path) -> None:
    """Exchange the positions for XDATCAR's where those are the same to OUTCAR's digits."""
    fractional = _read_fractional(xdatcar, run.positions.shape[1])
    check_finite(fractional, "positions", str(xdatcar))
    check_finite(run.positions, "positions", run.file)
    n_frames = run.positions.shape[0]
    if fractional.shape[0] < n_frames:
        run.notes.append(f"{xdatcar.name} has other frames; positions are OUTCAR's, with five decimals.")
        return
    cell = run.cell
    away = run.positions @ np.linalg.inv(cell) - fractional[:n_frames]
    gap = (away - np.rint(away)) @ cell
    if np.abs(gap).max() > _DIGITS:
        run.notes.append(f"{xdatcar.name} has other positions; those used are OUTCAR's, with five decimals.")
        return
    run.positions = fractional[:n_frames] @ cell
    run.notes.append(f"Positions are those of {xdatcar.name}, which has more digits than OUTCAR.")


def _read_fractional(file: Path, n_atoms: int) -> FloatArray:
    frames: list[FloatArray] = []
    with reading(file, "an XDATCAR") as lines:
        for line in lines:
            if not line.lstrip().startswith("Direct configuration"):
                continue
            if (rows := lines.floats(n_atoms)) is None:
                break
            frames.append(rows)
    return np.array(frames).reshape(-1, n_atoms, 3)
