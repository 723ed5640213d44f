"""Files appear whole or not at all: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dyntrain.errors import UserError


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary path to write to; on leaving without an error it replaces ``path`` in one step.

    Raises:
        UserError: the folder does not exist or cannot be written, or the disk is full.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part{os.getpid()}")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; choose a folder you can write to"
        ) from error
    except RuntimeError as error:
        if "inline_container" not in str(error):  # torch.save's word for a write that failed
            raise
        raise UserError(
            f"cannot write {path}: the disk is full, or files may not grow so large; make room and give the "
            "same again"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write a whole text file atomically (UTF-8)."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")
