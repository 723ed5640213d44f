"""`dyntrain md` in a process of its own, killed at a chosen moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# A fork server has the slow imports done but has never run anything: forking from it is quick and safe.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["dyntrain.cli.md_run", "dyntrain.models.files"])


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _half_a_file(_: Any, path: Path) -> None:
    Path(path).write_bytes(b"PK half a file")
    _die()


def _half_a_frame(writer: Any, *_: Any) -> None:
    with writer._partial.partial.open("ab") as file:
        file.write(b"\x07half a frame")
    _die()


def _kill_at(moment: str, number: int) -> None:
    """Arrange that this process is killed the n-th time it comes to ``moment``."""
    from dyntrain.simulate.files import TrajectoryWriter
    from dyntrain.simulate.h5md import H5mdWriter

    places: dict[str, list[tuple[Any, str, Callable[..., None], bool]]] = {
        "before a frame": [(TrajectoryWriter, "write", _die, True), (H5mdWriter, "write", _die, True)],
        "in a frame": [(c, "write", _half_a_frame, True) for c in (TrajectoryWriter, H5mdWriter)],
        "after a frame": [(TrajectoryWriter, "write", _die, False), (H5mdWriter, "write", _die, False)],
        "in a checkpoint": [(torch, "save", _half_a_file, True)],
        "before a rename": [(Path, "replace", _die, True)],
        "after a rename": [(Path, "replace", _die, False)],
    }
    for owner, name, action, before in places[moment]:
        _wrap(owner, name, action, number, before)


def _wrap(owner: Any, name: str, action: Callable[..., None], number: int, before: bool) -> None:
    original, calls = getattr(owner, name), [0]

    def call(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if before and calls[0] == number:
            action(*args, **kwargs)
        result = original(*args, **kwargs)
        if not before and calls[0] == number:
            action(*args, **kwargs)
        return result

    setattr(owner, name, call)


def _run(words: list[str], moment: str | None, number: int) -> None:
    from dyntrain.cli import main

    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (the process ends with it)
    if moment is not None:
        _kill_at(moment, number)
    sys.argv = ["dyntrain", "md", *words]
    main()


def run_in_process(words: list[object], moment: str | None = None, number: int = 1) -> int:
    """The exit code of a run, −9 if it was killed."""
    process = _CONTEXT.Process(target=_run, args=([str(word) for word in words], moment, number))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the run hangs"
    return int(process.exitcode)
