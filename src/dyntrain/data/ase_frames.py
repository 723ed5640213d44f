"""ASE frames: what a file holds of each frame, of ASE's own .traj without the cost of its objects."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase.calculators.calculator import all_properties
from ase.data import atomic_masses

from dyntrain.data.trajectory import FloatArray

_MAGIC = b"- of UlmASE-Trajectory"
# version, number of frames, place of the table of their places: int64 behind magic and tag (24 bytes).
_HEADER, _HEADER_AT = struct.Struct("<3q"), 24


class Frame(NamedTuple):
    """One frame as ASE knows it.

    numbers, pbc, masses: of the atoms, [n_atoms], [3], [n_atoms] u.
    positions, cell: [n_atoms, 3] and [3, 3] Å.
    arrays, info: what else is there of each atom and of the frame, by name.
    results: of the calculator.
    """

    numbers: np.ndarray
    pbc: np.ndarray
    masses: Any
    positions: FloatArray
    cell: FloatArray
    arrays: dict[str, Any]
    info: dict[str, Any]
    results: dict[str, Any]


def of_atoms(atoms: Any) -> Frame:
    """The frame of an ``ase.Atoms``."""
    results = {} if atoms.calc is None else {k: v for k, v in atoms.calc.results.items() if v is not None}
    cell = atoms.cell.array.copy()
    return Frame(
        atoms.numbers, atoms.pbc, atoms.get_masses(), atoms.positions, cell, atoms.arrays, atoms.info, results
    )


def is_traj(file: Path) -> bool:
    with open(file, "rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def traj_frames(file: Path) -> Iterator[Frame]:
    """The frames of a .traj file: JSON for each with the places of its arrays (ase.io.ulm tells the format).

    Raises whatever damaged content trips over.
    """
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _, n_frames, table = _HEADER.unpack_from(data, _HEADER_AT)
        first: dict[str, Any] = {}
        for place in struct.unpack_from(f"<{n_frames}q", data, table):
            item = _item(data, place)
            head = _head(item) if "numbers" in item or not first else first  # not told: as in the first frame
            first = first or head
            calculator = item.get("calculator", {})
            yield Frame(
                **head,
                positions=item["positions"],
                cell=np.array(item["cell"], dtype=np.float64),
                arrays={"momenta": item["momenta"]} if "momenta" in item else {},
                info=item.get("info") or {},
                results={p: calculator[p] for p in all_properties if calculator.get(p) is not None},
            )


def _head(item: dict[str, Any]) -> dict[str, Any]:
    numbers = np.array(item["numbers"])
    pbc = np.broadcast_to(np.array(item["pbc"], dtype=bool), 3)
    masses = item.get("masses")
    masses = atomic_masses[numbers] if masses is None else np.array(masses, dtype=np.float64)
    return {"numbers": numbers, "pbc": pbc, "masses": masses}


def _item(data: mmap.mmap, place: int) -> dict[str, Any]:
    from ase.io.jsonio import decode

    (size,) = struct.unpack_from("<q", data, place)
    item: dict[str, Any] = decode(data[place + 8 : place + 8 + size].decode(), False)
    return _filled(item, data, "<" if item.pop("_little_endian", True) else ">")


def _filled(item: dict[str, Any], data: mmap.mmap, order: Any) -> dict[str, Any]:
    """The item with its arrays, which a dot behind their names marks, in place of where they are."""
    filled = {}
    for name, value in item.items():
        if not name.endswith("."):
            filled[name] = value
        elif "ndarray" in value:
            shape, dtype, offset = value["ndarray"]
            kind = np.dtype(dtype)
            piece = data[offset : offset + math.prod(shape) * kind.itemsize]
            filled[name[:-1]] = np.frombuffer(piece, kind.newbyteorder(order)).reshape(shape).astype(kind)
        else:
            filled[name[:-1]] = _filled(value, data, order)
    return filled
