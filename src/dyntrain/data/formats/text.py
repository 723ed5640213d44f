"""Text files: line by line whatever their compression, each mistake told with its line."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from dyntrain.data.trajectory import FloatArray
from dyntrain.errors import UserError

PACKED_SUFFIXES = (".gz", ".bz2", ".xz")

# How compressed files begin, whatever their name.
_OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}

# What reading raises where a file is damaged; anything else is a defect of ours.
DAMAGE = (ValueError, LookupError, EOFError, OSError, zlib.error, lzma.LZMAError, OverflowError)


def open_packed(file: Path) -> IO[bytes]:
    """The bytes of a file, unpacked on the way where it is compressed (gzip, bzip2, xz)."""
    with open(file, "rb") as stream:
        head = stream.read(8)
    for magic, opener in _OPENERS.items():
        if head.startswith(magic):
            return cast(IO[bytes], opener(file, "rb"))
    return open(file, "rb")


@contextmanager
def unpacked(file: Path) -> Iterator[Path]:
    """The file itself, or where it is compressed a temporary copy that is not; for readers that need a file.

    Raises:
        UserError: a compressed file that is damaged or cut off.
    """
    with open(file, "rb") as stream:
        compressed = stream.read(8).startswith(tuple(_OPENERS))
    if not compressed:
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="dyntrain-") as folder:
        copy = Path(folder) / plain_name(file)
        try:
            with open_packed(file) as packed, open(copy, "wb") as plain:
                shutil.copyfileobj(packed, plain)
        except DAMAGE as error:
            raise damaged(file, "a compressed file", error) from error
        yield copy


def plain_name(file: Path) -> str:
    """The file's name without the suffix of a compression."""
    name = file.name
    for suffix in PACKED_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def beside(file: Path, name: str) -> Path | None:
    """The file of this name in the same folder, compressed or not; None where there is none."""
    for candidate in (name, *(name + suffix for suffix in PACKED_SUFFIXES)):
        if (path := file.with_name(candidate)).is_file():
            return path
    return None


def damaged(file: Path | str, what: str, error: BaseException, place: str = "") -> UserError:
    """The refusal of a file that cannot be read as what it seems to be."""
    said = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{file}{place} cannot be read as {what} ({said[:160]}): it is damaged or cut off.")


class Lines:
    """Lines of a text file, one by one; a last line without its end counts as cut off and is not given.

    number: how many lines were given so far; cut: whether the last line was incomplete.
    """

    def __init__(self, file: Path, stream: IO[str]) -> None:
        self.file, self.number, self.cut = file, 0, False
        self._stream = stream

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._stream)
        if not line.endswith("\n"):
            self.cut = True
            raise StopIteration
        self.number += 1
        return line

    def take(self, count: int) -> list[str] | None:
        """The next lines, or None where the file ends before."""
        taken: list[str] = []
        while len(taken) < count:
            if (line := next(self, None)) is None:
                return None
            taken.append(line)
        return taken

    def floats(self, n_rows: int, first: int = 0, count: int = 3) -> FloatArray | None:
        """Columns first … first + count − 1 of the next lines, [n_rows, count]; None where the file ends."""
        rows = self.take(n_rows)
        return None if rows is None else floats(rows, first, count)


def floats(rows: list[str], first: int = 0, count: int = 3) -> FloatArray:
    """Columns first … first + count − 1 of lines of words, [n_rows, count]; ValueError where they lack."""
    words = [row.split()[first : first + count] for row in rows]
    array = np.array([word for row in words for word in row], dtype=np.float64)
    if any(len(row) != count for row in words):
        raise ValueError(f"expected {first + count} columns in each of {len(rows)} lines")
    return array.reshape(len(rows), count)


@contextmanager
def reading(file: Path, what: str) -> Iterator[Lines]:
    """Lines of a text file; what the body cannot parse is refused with the line it stands in.

    Args:
        what: the kind of file, as the message names it ("a VASP OUTCAR").

    Raises:
        UserError: damaged content.
    """
    lines: Lines | None = None
    try:
        with open_packed(file) as packed, io.TextIOWrapper(packed, encoding="utf-8") as stream:
            lines = Lines(file, stream)
            yield lines
    except UserError:
        raise
    except DAMAGE as error:
        place = f", line {lines.number}," if lines is not None else ""
        raise damaged(file, what, error, place) from error


def head_of(file: Path, size: int = 4096) -> bytes:
    """The first bytes of a file, unpacked; as many as can be read of a damaged one."""
    try:
        with open_packed(file) as stream:
            return stream.read(size)
    except DAMAGE:
        return b""
