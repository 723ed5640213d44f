"""A file that is being written under another name, and can be cut back to where a checkpoint saw it."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import NamedTuple

from dyntrain.errors import UserError

# An ASE trajectory keeps the number of its frames, and where their list lies, in its first 48 bytes.
_HEAD = 48


class Mark(NamedTuple):
    """How long a file is, how it begins (hexadecimal), and how many frames it holds."""

    n_bytes: int
    head: str
    n_written: int


class PartialFile:
    """``<name>.partial`` beside the place of a file.

    Args:
        path: the file's name once it is whole.
        mark: cut an earlier partial file back to this; None: an empty one.

    Raises:
        UserError: the place cannot be written, or the partial file is not the marked one.
    """

    def __init__(self, path: Path, mark: Mark | None) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        if path.is_dir():
            raise UserError(f"{path} is a folder: give the name of a file to write to")
        if mark is not None:
            self._find(mark)
        try:
            # Appending: the file of a run that is going on is left as it is.
            self._lock = self.partial.open("ab")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise UserError(f"another run is writing {path}: wait for it, or choose another one") from error
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}): create its folder, or choose another one"
            ) from error
        with self.partial.open("r+b") as file:
            file.truncate(0 if mark is None else mark.n_bytes)
            file.write(b"" if mark is None else bytes.fromhex(mark.head))

    def _find(self, mark: Mark) -> None:
        # Killed between two files getting their names, one has it already.
        if not self.partial.exists() and self.path.exists():
            with self.path.open("rb") as file:
                if file.read(16).hex() == mark.head[:32]:
                    self.path.replace(self.partial)
        if not self.partial.exists() or self.partial.stat().st_size < mark.n_bytes:
            raise UserError(
                f"{self.partial} is not there or shorter than its checkpoint says, so the run cannot go on: "
                "begin anew with --restart"
            )

    def mark(self, n_written: int) -> Mark:
        """How the file stands (flush it first)."""
        with self.partial.open("rb") as file:
            head = file.read(_HEAD)
        return Mark(self.partial.stat().st_size, head.hex(), n_written)

    def finish(self, n_written: int) -> None:
        """Give the file its name; without any frame it vanishes: no file is better than an empty one."""
        if n_written:
            self.partial.replace(self.path)
        else:
            self.partial.unlink()
        self.release()

    def release(self) -> None:
        """Let another run write the file."""
        self._lock.close()
