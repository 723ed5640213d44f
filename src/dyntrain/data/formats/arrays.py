"""npy and npz: numpy's files, read without ever unpickling, and never larger than they really are."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from dyntrain.data.formats.text import damaged, open_packed
from dyntrain.errors import UserError


def read_npy(file: Path) -> np.ndarray:
    """One array.

    Raises:
        UserError: damaged content, or Python objects instead of numbers.
    """
    try:
        with open_packed(file) as stream:
            data = stream.read()
        return _parse(data, str(file))
    except UserError:
        raise
    # numpy raises whatever its parsing of the header trips over; the user needs the place.
    except Exception as error:
        raise damaged(file, "a numpy array", error) from error


def read_npz(file: Path) -> dict[str, np.ndarray]:
    """All arrays of numbers or texts by name; arrays of Python objects are left out, never loaded.

    Raises:
        UserError: damaged content.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with open_packed(file) as stream, zipfile.ZipFile(stream) as archive:
            for name in archive.namelist():
                if name.endswith(".npy"):
                    _keep(arrays, name.removesuffix(".npy"), archive.read(name), f"{file}, {name}")
    except UserError:
        raise
    # zipfile and numpy raise whatever their parsing trips over; the user needs the place.
    except Exception as error:
        raise damaged(file, "an npz archive", error) from error
    return arrays


def _keep(arrays: dict[str, np.ndarray], name: str, data: bytes, place: str) -> None:
    array = _parse(data, place, objects=False)
    if array.dtype != object:
        arrays[name] = array


def _parse(data: bytes, place: str, objects: bool = True) -> np.ndarray:
    from io import BytesIO

    stream: IO[bytes] = BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read: Any = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise UserError(f"{place}: npy format {version} is not known.")
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        if objects:
            raise UserError(
                f"{place} holds pickled Python objects, which are never loaded; save plain numbers."
            )
        return np.empty(0, dtype=object)
    size = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize if shape else dtype.itemsize
    rest = data[stream.tell() :]
    if size != len(rest):
        raise UserError(
            f"{place} should hold {size} bytes for its shape {shape}, but has {len(rest)}: it is cut off."
        )
    return np.frombuffer(rest, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def numbers(values: np.ndarray, name: str, shape: tuple[int | None, ...], place: str) -> np.ndarray:
    """The array as float64 of the shape (None: any length).

    Raises:
        UserError: another shape, or no numbers.
    """
    if values.dtype.kind not in "fiu":
        raise UserError(f"{place}: `{name}` holds no numbers but {values.dtype}.")
    fits = len(values.shape) == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, values.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise UserError(f"{place}: `{name}` must have shape [{wanted}], got {list(values.shape)}.")
    return values.astype(np.float64)
