"""Files of other people's programs: what they hold, listed without running any of it."""

from __future__ import annotations

import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch


@dataclass(frozen=True)
class FileContents:
    """What a model file names, found by reading its pickles as data.

    path: of the file.
    members: files in the zip archive, without the archive's own top folder; empty if it is none.
    globals: classes and functions its pickles would import, as ``mace.modules.models.ScaleShiftMACE``.
    strings: texts in its pickles (keys of dictionaries among them).
    """

    path: Path
    members: frozenset[str]
    globals: frozenset[str]
    strings: frozenset[str]

    @property
    def packages(self) -> frozenset[str]:
        """Top-level packages of what the pickles would import."""
        return frozenset(name.split(".")[0] for name in self.globals)


def list_contents(path: Path) -> FileContents:
    """What a model file holds; nothing of it is run. A file that is no pickle has empty lists."""
    names: set[str] = set()
    strings: set[str] = set()
    members: set[str] = set()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                members.add(member.partition("/")[2] or member)
                if member.endswith(".pkl"):
                    with archive.open(member) as file:
                        _read_pickles(file, names, strings)
    else:
        with path.open("rb") as file:
            _read_pickles(file, names, strings)
    return FileContents(path, frozenset(members), frozenset(names), frozenset(strings))


def _read_pickles(file: IO[bytes], names: set[str], strings: set[str]) -> None:
    """Collect what the pickles in a file name, one after the other, until its end or something else."""
    while True:
        try:
            for kind, text in _texts(file):
                (names if kind == "global" else strings).add(text)
        except Exception:  # the disassembler raises anything on what is no pickle: there is no more to list
            return


def _texts(file: IO[bytes]) -> Iterator[tuple[str, str]]:
    """("global" or "string", text) of every operation of one pickle that has one."""
    recent = ["", ""]
    memo: dict[int, str] = {}
    for operation, argument, _ in pickletools.genops(file):
        if operation.name in ("GLOBAL", "INST"):
            yield "global", str(argument).replace(" ", ".")
        elif operation.name == "STACK_GLOBAL":
            yield "global", ".".join(recent)
        elif isinstance(argument, str):
            recent = [recent[1], argument]
            yield "string", argument
        elif operation.name == "MEMOIZE":
            memo[len(memo)] = recent[1]
        elif operation.name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(argument or 0)] = recent[1]
        elif operation.name in ("BINGET", "LONG_BINGET", "GET"):
            recent = [recent[1], memo.get(int(argument or 0), "")]


def restricted_load(path: Path) -> Any:
    """What is in a file of torch's, by its loader that runs no code from it.

    Raises:
        NoPlainData: it holds more than tensors and plain values, is damaged, or is no such file.
    """
    try:
        with warnings.catch_warnings():
            # About other people's pickles and TorchScript, which are refused below in words of our own.
            warnings.filterwarnings("ignore", message="Detected pickle protocol|'torch.load' received a zip")
            return torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        AttributeError,
    ) as error:
        raise NoPlainData(type(error).__name__) from error


class NoPlainData(Exception):
    """A file that torch's restricted loader refuses; the message is the kind of its complaint."""


def runs_code(path: Path) -> bool:
    """Whether loading the file could run code from it: the restricted loader refuses it."""
    try:
        restricted_load(path)
    except NoPlainData:
        return True
    return False
