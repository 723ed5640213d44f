"""Store: runs in one HDF5 file in H5MD layout, mapped into memory so that windows are slices of the file."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

import dyntrain
from dyntrain.data.formats.h5md import member, opened, read_boundary, run_names
from dyntrain.data.trajectory import FloatArray, Trajectory
from dyntrain.errors import UserError
from dyntrain.units import FS

if TYPE_CHECKING:
    from dyntrain.data.segments import Segment

STORE = "store"
"""The `reader` of stored runs, whose breaks were looked for when they were stored."""

# Frames are copied in pieces of about this many numbers (8 MB).
_PIECE = 1_000_000
_STAMPED = 1_000_000
_READ_WHOLE = 10**9
# Our unit of velocity, Å per ASE time, as H5MD writes units: the numbers stay bit for bit ours.
_VELOCITY_UNIT = f"{FS:.17f} Angstrom fs-1"
_DATASETS = {
    "positions": ("particles/{}/position", "Angstrom"),
    "velocities": ("particles/{}/velocity", _VELOCITY_UNIT),
    "forces": ("particles/{}/force", "eV Angstrom-1"),
    "energies": ("observables/{}/potential_energy", "eV"),
    "stress": ("observables/{}/stress", "eV Angstrom-3"),
}


def write_store(trajectories: Sequence[Trajectory], file: str | os.PathLike[str]) -> None:
    """Write runs to one H5MD file (float64, contiguous, with units, dt and provenance).

    Written beside its place first and moved there whole: an interrupted call leaves no half store.

    Raises:
        UserError: no runs, a place that cannot be written, or too little room on the disk.
    """
    if not trajectories:
        raise UserError("There are no runs to store.")
    file = Path(file)
    if not file.parent.is_dir():
        raise UserError(f"{file} cannot be written: there is no folder {file.parent}; create it first.")
    _check_space(trajectories, file)
    unfinished = file.with_name(file.name + ".part")
    try:
        with h5py.File(unfinished, "w", libver=("earliest", "v110")) as h5:
            _write_head(h5)
            for number, trajectory in enumerate(trajectories):
                _write_run(h5, f"run_{number}", trajectory)
        os.replace(unfinished, file)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(f"{file} cannot be written: {error.strerror or error}.") from error


def _check_space(trajectories: Sequence[Trajectory], file: Path) -> None:
    """Refused beforehand, because HDF5 takes the process down where the disk fills up under it."""
    arrays = [getattr(run, field) for run in trajectories for field in _DATASETS]
    needed = sum(values.nbytes for values in arrays if values is not None)
    free = shutil.disk_usage(file.parent).free
    if needed > free:
        raise UserError(
            f"{file} cannot be written: it needs {needed / 1e6:.3g} MB, but {free / 1e6:.3g} MB are free; "
            "make room, or choose another place."
        )


def _write_head(h5: h5py.File) -> None:
    head = h5.create_group("h5md")
    head.attrs["version"] = np.array([1, 1])
    head.create_group("author").attrs["name"] = np.bytes_("unknown")
    creator = head.create_group("creator")
    creator.attrs["name"] = np.bytes_("dyntrain")
    creator.attrs["version"] = np.bytes_(dyntrain.__version__)
    units = head.create_group("modules/units")
    units.attrs["version"] = np.array([1, 0])
    units.attrs["system"] = np.bytes_("SI")


def _write_run(h5: h5py.File, name: str, run: Trajectory) -> None:
    for field, (path, unit) in _DATASETS.items():
        if (values := getattr(run, field)) is None:
            continue
        element = h5.create_group(path.format(name))
        _write_array(element, "value", values, unit)
        if "step" not in h5[f"particles/{name}/position"]:
            element["step"] = 1  # a scalar is H5MD's word for a fixed interval
            element["time"] = run.dt_fs
            element["time"].attrs["unit"] = np.bytes_("fs")
        else:
            for shared in ("step", "time"):
                element[shared] = h5[f"particles/{name}/position/{shared}"]
    particles = h5[f"particles/{name}"]
    particles["species"] = run.atomic_numbers
    particles["mass"] = run.masses
    particles["mass"].attrs["unit"] = np.bytes_("u")
    box = particles.create_group("box")
    box.attrs["dimension"] = 3
    box.attrs["boundary"] = np.array(["periodic" if p else "none" for p in run.pbc], dtype="S8")
    if run.cell.ndim == 2:
        _write_array(box, "edges", run.cell, "Angstrom")
    else:
        edges = box.create_group("edges")
        _write_array(edges, "value", run.cell, "Angstrom")
        for shared in ("step", "time"):
            edges[shared] = h5[f"particles/{name}/position/{shared}"]
    ours = h5.create_group(f"parameters/dyntrain/{name}")
    ours["breaks"] = np.array(run.breaks, dtype=np.int64)
    ours["fixed_atoms"] = np.array(run.fixed_atoms, dtype=np.int64)
    ours["provenance"] = json.dumps(
        {
            "file": run.file,
            "reader": run.reader,
            "first_frame": run.first_frame,
            "notes": run.notes,
            "velocities_origin": run.velocities_origin,
            "dt_origin": run.dt_origin,
            "wrapped": run.wrapped,
            "dt": run.dt,
            "stride": run.stride,
            "alone": run.alone,
        }
    )


def _write_array(group: h5py.Group, name: str, values: FloatArray, unit: str) -> None:
    # Without chunks the numbers lie in one piece of the file, which can be mapped.
    dataset = group.create_dataset(name, shape=values.shape, dtype="<f8")
    dataset.attrs["unit"] = np.bytes_(unit)
    piece = max(1, _PIECE * values.shape[0] // max(values.size, 1))
    for start in range(0, values.shape[0], piece):
        dataset[start : start + piece] = values[start : start + piece]


def is_store(file: Path) -> bool:
    """Whether an H5MD file was written by `write_store`."""
    with opened(file) as h5:
        return isinstance(member(h5, "parameters/dyntrain", file), h5py.Group)


def open_store(file: str | os.PathLike[str]) -> list[Trajectory]:
    """The runs of a store; their arrays are read from the file where and when they are touched.

    Raises:
        UserError: damaged content, named with file and quantity.
    """
    file = Path(file)
    with opened(file) as h5, open(file, "rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        runs = [_open_run(h5, name, file, mapped) for name in run_names(h5, file)]
    # Checking has touched every page: let them go, so that memory is what windows need.
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
    return runs


def _open_run(h5: h5py.File, name: str, file: Path, mapped: mmap.mmap) -> Trajectory:
    def read(path: str) -> np.ndarray:
        return _map(member(h5, path, file), path, file, mapped)

    edges = f"particles/{name}/box/edges"
    constant = isinstance(member(h5, edges, file), h5py.Dataset)
    stress = f"observables/{name}/stress/value"
    said = _provenance(member(h5, f"parameters/dyntrain/{name}/provenance", file), file)
    return Trajectory(
        positions=read(f"particles/{name}/position/value"),
        velocities=read(f"particles/{name}/velocity/value"),
        forces=read(f"particles/{name}/force/value"),
        energies=read(f"observables/{name}/potential_energy/value"),
        cell=read(edges if constant else f"{edges}/value"),
        pbc=read_boundary(member(h5, f"particles/{name}/box", file), file),
        atomic_numbers=read(f"particles/{name}/species"),
        masses=read(f"particles/{name}/mass"),
        dt=said["dt"],
        breaks=tuple(read(f"parameters/dyntrain/{name}/breaks").tolist()),
        fixed_atoms=tuple(read(f"parameters/dyntrain/{name}/fixed_atoms").tolist()),
        file=str(file) if name == "run_0" else f"{file}#{name}",
        reader=STORE,
        notes=(f"Stored from {said['file']} (read as {said['reader']}).", *said["notes"]),
        velocities_origin=said["velocities_origin"],
        dt_origin=said["dt_origin"],
        wrapped=bool(said["wrapped"]),
        stride=said["stride"],
        alone=bool(said["alone"]),
        stress=read(stress) if member(h5, stress, file) is not None else None,
    )


def _map(dataset: Any, path: str, file: Path, mapped: mmap.mmap) -> np.ndarray:
    """The numbers of a dataset as a view of the mapped file; those not in one piece of it are read."""
    if not isinstance(dataset, h5py.Dataset):
        raise UserError(f"{file}: /{path} is missing; write the store again.")
    offset = dataset.id.get_offset()
    if offset is None or dataset.size == 0 or not dataset.dtype.isnative:
        return np.asarray(dataset[...])
    if offset + dataset.size * dataset.dtype.itemsize > len(mapped):
        raise UserError(f"{file}: /{path} lies beyond the end of the file, which is cut off.")
    view = np.frombuffer(mapped, dtype=dataset.dtype, count=dataset.size, offset=offset)
    return view.reshape(dataset.shape)


def store_stamp(name: str) -> str:
    """What tells the store that the run ``name`` lies in from others.

    A hash of all its bytes, so that a copy is the same; of a store beyond a gigabyte its size, time of
    writing and first megabyte.
    """
    file = Path(re.sub(r"#run_\d+$", "", name))
    told = file.stat()
    return _stamp(file, told.st_size, told.st_mtime_ns)


@cache  # every run of a store asks
def _stamp(file: Path, size: int, written_ns: int) -> str:
    with open(file, "rb") as stream:
        if size <= _READ_WHOLE:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        first = hashlib.sha256(stream.read(_STAMPED)).hexdigest()
    return f"{size} {written_ns} {first}"


def read_ahead(segments: Iterable[Segment], runs: Sequence[Trajectory]) -> None:
    """Ask the system to fetch these windows from their stores, without waiting for it.

    Called with the next batch before a training step, the disk works while the network does. Runs that are
    in memory anyway, and systems that cannot be asked, are left alone.
    """
    for segment in segments:
        run = runs[segment.run]
        if run.reader != STORE or not hasattr(mmap, "MADV_WILLNEED"):
            continue
        for array in (run.positions, run.velocities, run.forces, run.energies):
            window = array[segment.frames.start : segment.frames.stop]
            if (mapped := _mapping(window)) is not None:
                first = _address(window) - _address(np.frombuffer(mapped, dtype=np.uint8))
                page = first - first % mmap.PAGESIZE
                mapped.madvise(mmap.MADV_WILLNEED, page, first + window.nbytes - page)


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    """The mapped file that an array is a view of."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    owner = owner.obj if isinstance(owner, memoryview) else owner
    return owner if isinstance(owner, mmap.mmap) else None


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _provenance(dataset: Any, file: Path) -> dict[str, Any]:
    if not isinstance(dataset, h5py.Dataset):
        raise UserError(f"{file}: the provenance of a run is missing; write the store again.")
    said = json.loads(dataset[()])
    expected = {
        "file": str,
        "reader": str,
        "notes": list,
        "velocities_origin": str,
        "dt_origin": str,
        "dt": float,
    }
    for key, kind in expected.items():
        if not isinstance(said.get(key), kind):
            raise UserError(f"{file}: the provenance of a run has no `{key}`; write the store again.")
    return {"wrapped": False, "stride": None, "alone": False, **said}  # which older stores do not say
