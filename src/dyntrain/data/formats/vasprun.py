"""VASP's vasprun.xml: every step's structure, free energy and forces, with POTIM and POMASS, streamed."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from dyntrain.data.formats.frames import CUT_OFF, Steps
from dyntrain.data.formats.text import DAMAGE, damaged, open_packed
from dyntrain.data.raw import RawRun
from dyntrain.data.trajectory import FloatArray, check_finite
from dyntrain.errors import UserError
from dyntrain.units import KBAR

# expat's codes for a document that ends too early: the job was killed, what came before is good.
_ENDS_EARLY = (3, 5)


def read_vasprun(file: Path) -> RawRun:
    """Read the run; forces belong to the free energy, so that is the energy taken.

    Raises:
        UserError: no MD run, damaged content, or steps without forces.
    """
    run = _Vasprun(file)
    try:
        with open_packed(file) as stream:
            for element in _elements(stream, run):
                run.take(element)
    except UserError:
        raise
    except (ET.ParseError, *DAMAGE) as error:
        raise damaged(file, "a vasprun.xml", error, f", frame {len(run.frames.positions)},") from error
    return run.finish()


def _elements(stream: IO[bytes], run: _Vasprun) -> Iterator[ET.Element]:
    """The document's main parts as each ends; freed after use, so that long runs stay small."""
    depth = 0
    try:
        for event, element in ET.iterparse(stream, events=("start", "end")):
            depth += 1 if event == "start" else -1
            if event == "end" and depth == 1:
                yield element
                element.clear()
    except ET.ParseError as error:
        if error.code not in _ENDS_EARLY or not run.frames.positions:
            raise
        run.notes.append(CUT_OFF)


class _Vasprun:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.labels: list[str] = []
        self.masses: list[float] = []
        self.potim: float | None = None
        self.notes: list[str] = []
        self.frames = Steps()

    def take(self, element: ET.Element) -> None:
        if element.tag == "parameters":
            self._parameters(element)
        elif element.tag == "atominfo":
            self._atoms(element)
        elif element.tag == "structure":
            self._selective(element)
        elif element.tag == "calculation":
            self._frame(element)

    def _parameters(self, element: ET.Element) -> None:
        values = {i.get("name"): (i.text or "").strip() for i in element.iter("i")}
        ibrion = values.get("IBRION", "0")
        if ibrion != "0":
            raise UserError(f"{self.file}: IBRION = {ibrion}, so this is no molecular dynamics (IBRION = 0).")
        self.potim = float(values["POTIM"]) if "POTIM" in values else None
        if values.get("ML_LMLFF", "F").strip(".").upper().startswith("T"):
            self.notes.append(
                "VASP's machine-learned force field was on: some energies and forces may be its own."
            )

    def _atoms(self, element: ET.Element) -> None:
        tables = {table.get("name"): table for table in element.iter("array")}
        types = [[(c.text or "").strip() for c in row] for row in tables["atomtypes"].iter("rc")]
        for row in tables["atoms"].iter("rc"):
            label, kind = ((c.text or "").strip() for c in row)
            self.labels.append(label)
            self.masses.append(float(types[int(kind) - 1][2]))

    def _selective(self, element: ET.Element) -> None:
        free = element.find("varray[@name='selective']")
        if element.get("name") != "initialpos" or free is None:
            return
        fixed = [(v.text or "").split() for v in free]
        whole = sum(flags == ["F"] * 3 for flags in fixed)
        partly = sum("F" in flags for flags in fixed) - whole
        self.notes.append(
            f"Selective dynamics: {whole} atoms are fixed" + (f", {partly} partly." if partly else ".")
        )

    def _frame(self, element: ET.Element) -> None:
        frame, structure = len(self.frames.positions), element.find("structure")
        forces = element.find("varray[@name='forces']")
        energy = element.find("energy/i[@name='e_fr_energy']")
        if structure is None or forces is None or energy is None:
            raise UserError(f"{self.file}, frame {frame} has no structure, forces or energy.")
        cell = _vectors(structure.find("crystal/varray[@name='basis']"))
        fractional = _vectors(structure.find("varray[@name='positions']"))
        if cell.shape != (3, 3):
            raise UserError(f"{self.file}, frame {frame}: the cell must have three vectors, got {len(cell)}.")
        check_finite(fractional[None], "positions", str(self.file), frame)
        check_finite(cell[None], "cell", str(self.file), frame)
        self.frames.cells.append(cell)
        self.frames.positions.append(fractional @ cell)
        self.frames.forces.append(_vectors(forces))
        self.frames.energies.append(float(energy.text or ""))
        pressure = _vectors(element.find("varray[@name='stress']"))
        self.frames.pressures.append(pressure if pressure.shape == (3, 3) else None)
        shapes = {self.frames.positions[-1].shape, self.frames.forces[-1].shape, (len(self.labels), 3)}
        if len(shapes) > 1 or not self.labels:
            raise UserError(
                f"{self.file}, frame {frame}: positions or forces are not of {len(self.labels)} atoms."
            )

    def finish(self) -> RawRun:
        if not self.frames.positions:
            raise UserError(f"{self.file} holds no complete ionic step.")
        return self.frames.run(
            self.file,
            "VASP vasprun.xml",
            self.labels,
            np.array(self.masses),
            pressure_unit=KBAR,
            notes=self.notes,
            dt_fs=self.potim,
        )


def _vectors(table: ET.Element | None) -> FloatArray:
    rows = [] if table is None else [(v.text or "").split() for v in table.iter("v")]
    return np.array([x for row in rows for x in row], dtype=np.float64).reshape(len(rows), 3 if rows else 0)
