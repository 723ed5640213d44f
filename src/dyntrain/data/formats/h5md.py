"""H5MD (HDF5): reading any code's file with units, and mapping our own stores without loading them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase.data import atomic_masses

from dyntrain.data.formats.frames import one_cell
from dyntrain.data.keys import KeyMap
from dyntrain.data.natural_order import natural_order
from dyntrain.data.raw import RawRun
from dyntrain.data.timestamps import settle_time_stamps, stride_of
from dyntrain.data.trajectory import FloatArray, IntArray
from dyntrain.data.unit_names import h5md_factor
from dyntrain.errors import UserError
from dyntrain.units import FS

MAGIC = b"\x89HDF\r\n\x1a\n"


@contextmanager
def opened(file: Path, mark: str = "h5md", kind: str = "H5MD") -> Iterator[h5py.File]:
    """An HDF5 file of a kind that has the group `mark`; what HDF5 cannot read is refused in a sentence."""
    try:
        with h5py.File(file, "r", locking=False) as h5:
            if not isinstance(h5.get(mark), h5py.Group):
                raise UserError(f"{file} is HDF5 but not {kind} (it has no group `{mark}`).")
            yield h5
    except UserError:
        raise
    # HDF5 reports damage as almost any exception; the user needs the file, not our traceback.
    except Exception as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"{file} cannot be read as {kind} ({said[:160]}): it is damaged or cut off."
        ) from error


def member(group: h5py.Group, path: str, file: Path | str) -> Any:
    """What lies at a path below a group, or None; links that lead out of the file are never followed.

    Raises:
        UserError: an external link, or data kept outside the file.
    """
    place = group
    for name in path.split("/"):
        if not isinstance(place, h5py.Group):
            return None
        link = place.get(name, getlink=True)
        if link is None:
            return None
        if isinstance(link, h5py.SoftLink):
            place = member(place.file if link.path.startswith("/") else place, link.path.strip("/"), file)
            continue
        if not isinstance(link, h5py.HardLink):
            where = f"{place.name.rstrip('/')}/{name}"
            raise UserError(
                f"{file}: {where} is a link to another file, which is not followed; copy the data in."
            )
        place = place[name]
    if isinstance(place, h5py.Dataset) and (place.external or place.is_virtual):
        raise UserError(
            f"{file}: the data of {place.name} lie in another file, which is not followed; copy them in."
        )
    return place


def read_boundary(box: h5py.Group, file: Path | str) -> np.ndarray:
    """pbc [3] of a box's attribute `boundary` ("periodic" or "none" for each direction).

    Raises:
        UserError: anything else.
    """
    said = [b.decode() if isinstance(b, bytes) else str(b) for b in np.ravel(box.attrs.get("boundary", []))]
    said = said * 3 if len(said) == 1 else said
    if len(said) != 3 or not set(said) <= {"periodic", "none"}:
        raise UserError(
            f"{file}: the boundary of {box.name} must be three times periodic or none, got {said}."
        )
    return np.array([b == "periodic" for b in said])


def run_names(h5: h5py.File, file: Path | str) -> list[str]:
    """Names of the particle groups that have positions, in the order they were made in, else by number."""
    particles = member(h5, "particles", file)
    names = list(particles) if isinstance(particles, h5py.Group) else []
    if names and not particles.id.get_create_plist().get_link_creation_order():
        names.sort(key=natural_order)
    found = [name for name in names if isinstance(member(h5, f"particles/{name}/position", file), h5py.Group)]
    if not found:
        raise UserError(f"{file} has no particles with positions (/particles/NAME/position/value).")
    return found


def read_h5md(file: Path, keys: KeyMap) -> RawRun:
    """Read the only particle group of an H5MD file of another code.

    Raises:
        UserError: several groups, missing elements or units, damaged content.
    """
    with opened(file) as h5:
        names = run_names(h5, file)
        if len(names) > 1:
            raise UserError(
                f"{file} has several particle groups ({', '.join(names)}); convert them one by one."
            )
        return _Group(h5, names[0], file, keys).read()


class _Group:
    def __init__(self, h5: h5py.File, name: str, file: Path, keys: KeyMap) -> None:
        self.h5, self.name, self.file, self.keys = h5, name, file, keys
        self.group = member(h5, f"particles/{name}", file)
        self.notes: list[str] = []

    def read(self) -> RawRun:
        positions = self._frames("position", "positions")
        n_frames, n_atoms = positions.shape[:2]
        energies = self._energies(n_frames)
        forces, velocities = self._frames("force", "forces"), None
        if member(self.group, "velocity", self.file) is not None:
            velocities = self._frames("velocity", "velocities")
        for name, array in (("force", forces), ("velocity", velocities)):
            if array is not None and array.shape != positions.shape:
                raise UserError(f"{self.file}: {name} has shape {array.shape}, position {positions.shape}.")
        numbers = self._species(n_atoms)
        cell, pbc = self._box(n_frames)
        times = self._times(n_frames)
        dt_fs, breaks, notes = settle_time_stamps([{"time_fs": t} for t in times], str(self.file))
        return RawRun(
            file=str(self.file),
            reader="H5MD",
            positions=positions,
            forces=forces,
            energies=energies,
            cell=cell,
            pbc=pbc,
            atomic_numbers=numbers,
            masses=self._masses(numbers),
            velocities=velocities,
            dt_fs=dt_fs,
            breaks=breaks,
            notes=self.notes + notes,
            stride=self._stride(),
        )

    def _frames(self, name: str, quantity: str) -> FloatArray:
        values = member(self.group, f"{name}/value", self.file)
        if not isinstance(values, h5py.Dataset) or len(values.shape) != 3 or values.shape[2] != 3:
            raise UserError(
                f"{self.file}: /particles/{self.name}/{name}/value must be [n_frames, n_atoms, 3]."
            )
        return np.asarray(values[...], dtype=np.float64) * self._factor(values, quantity)

    def _factor(self, values: h5py.Dataset, quantity: str) -> float:
        if (stated := self.keys.factor(quantity)) is not None:
            return stated
        unit = values.attrs.get("unit")
        if unit is None:
            raise UserError(
                f"{self.file}: {values.name} has no unit; state it as `keys: {{units: {{{quantity}: …}}}}`."
            )
        text = unit.decode() if isinstance(unit, bytes) else str(unit)
        return h5md_factor(text, f"{self.file}, {values.name}")

    def _energies(self, n_frames: int) -> FloatArray:
        for path in (f"observables/{self.name}/potential_energy/value", "observables/potential_energy/value"):
            values = member(self.h5, path, self.file)
            if isinstance(values, h5py.Dataset):
                if values.shape not in ((n_frames,), (n_frames, 1)):
                    raise UserError(f"{self.file}: /{path} must have shape [{n_frames}], got {values.shape}.")
                return np.asarray(values[...], dtype=np.float64).reshape(-1) * self._factor(values, "energy")
        raise UserError(f"{self.file} has no potential energies (/observables/potential_energy).")

    def _species(self, n_atoms: int) -> IntArray:
        species = self._fixed("species")
        if species is None or species.shape != (n_atoms,):
            raise UserError(f"{self.file}: /particles/{self.name}/species must name {n_atoms} atoms.")
        numbers = species.astype(np.int64)
        if not ((numbers > 0) & (numbers < len(atomic_masses))).all():
            raise UserError(
                f"{self.file}: species must be atomic numbers, got {sorted(set(numbers.tolist()))[:8]}."
            )
        self.notes.append("The species are taken as atomic numbers.")
        return numbers

    def _masses(self, numbers: IntArray) -> FloatArray:
        masses = self._fixed("mass")
        if masses is None or masses.shape != numbers.shape:
            self.notes.append("The file has no masses: standard atomic masses.")
            return np.array(atomic_masses[numbers], dtype=np.float64)
        return masses.astype(np.float64)

    def _fixed(self, name: str) -> np.ndarray | None:
        """A property of the atoms, constant or (then of the first frame) by frame."""
        found = member(self.group, name, self.file)
        if isinstance(found, h5py.Group):
            found = member(found, "value", self.file)
            return None if found is None else np.asarray(found[0])
        return np.asarray(found[...]) if isinstance(found, h5py.Dataset) else None

    def _box(self, n_frames: int) -> tuple[FloatArray, np.ndarray]:
        box = member(self.group, "box", self.file)
        if not isinstance(box, h5py.Group):
            return np.zeros((3, 3)), np.zeros(3, dtype=bool)
        pbc = read_boundary(box, self.file)
        edges = member(box, "edges", self.file)
        if isinstance(edges, h5py.Group):
            edges = member(edges, "value", self.file)
        if edges is None:
            return np.zeros((3, 3)), pbc
        values = np.asarray(edges[...], dtype=np.float64) * self._factor(edges, "positions")
        shapes: dict[tuple[int, ...], Any] = {
            (3,): lambda: np.diag(values),
            (3, 3): lambda: values,
            (n_frames, 3): lambda: one_cell(values[:, :, None] * np.eye(3)),
            (n_frames, 3, 3): lambda: one_cell(values),
        }
        if values.shape not in shapes:
            raise UserError(f"{self.file}: box edges have shape {values.shape}, expected [3] or [3, 3].")
        return shapes[values.shape](), pbc

    def _stride(self) -> int | None:
        """A scalar step is the interval (H5MD 1.1)."""
        step = member(self.group, "position/step", self.file)
        if not isinstance(step, h5py.Dataset) or step.dtype.kind not in "iu":
            return None
        steps = np.asarray(step[...], dtype=np.int64).ravel()
        return stride_of([0, *steps] if steps.size == 1 else steps.tolist())

    def _times(self, n_frames: int) -> FloatArray:
        """fs; a scalar time is the interval (H5MD 1.1)."""
        time = member(self.group, "position/time", self.file)
        if not isinstance(time, h5py.Dataset):
            raise UserError(f"{self.file}: /particles/{self.name}/position has no time.")
        scale = self._factor(time, "time") / FS
        values = np.asarray(time[...], dtype=np.float64) * scale
        if values.ndim == 0:
            return np.arange(n_frames) * values
        if values.shape != (n_frames,):
            raise UserError(f"{self.file}: position/time has {values.size} times for {n_frames} frames.")
        return values
