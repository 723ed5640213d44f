"""Ways for a training to be killed at a chosen moment, each run in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dyntrain.config import parse_config
from dyntrain.training import loop
from dyntrain.training.learner import Learner
from dyntrain.training.logs import CsvLog, TensorBoardLog
from dyntrain.training.validation import Validation

# A fork server has the slow imports done but has never run anything: forking from it is quick and safe.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["dyntrain.training.loop", "torch.utils.tensorboard"])


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _wrapped(owner: Any, name: str, before: Callable[..., None], after: Callable[..., None]) -> None:
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        before(*args, **kwargs)
        result = original(*args, **kwargs)
        after(*args, **kwargs)
        return result

    setattr(owner, name, call)


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _at_call(number: int, action: Callable[..., None]) -> Callable[..., None]:
    """Act at the n-th call, counted from 1."""
    calls = [0]

    def count(*args: Any, **kwargs: Any) -> None:
        calls[0] += 1
        if calls[0] == number:
            action(*args, **kwargs)

    return count


def _half_a_file(_: Any, path: Path) -> None:
    Path(path).write_bytes(b"PK half a file")
    _die()


def _half_a_row(log: CsvLog, _: Any) -> None:
    with log.path.open("a") as file:
        file.write("7,11,0.3")
    _die()


def _kill_at(moment: str, number: int) -> None:
    """Arrange that this process is killed at the n-th time it comes to ``moment``."""
    die = _at_call(number, lambda *_, **__: _die())
    places: dict[str, tuple[Any, str, Callable[..., None], Callable[..., None]]] = {
        "before an optimiser step": (Learner, "update", die, _nothing),
        "after an optimiser step": (Learner, "update", _nothing, die),
        "in a validation": (Validation, "round", _nothing, die),
        "after a validation": (Validation, "score", _nothing, die),
        "while a file is half written": (torch, "save", _at_call(number, _half_a_file), _nothing),
        "before a file is renamed": (Path, "replace", die, _nothing),
        "after a file is renamed": (Path, "replace", _nothing, die),
        "while a row is half written": (CsvLog, "append", _at_call(number, _half_a_row), _nothing),
        "after a row is written": (CsvLog, "append", _nothing, die),
        "after TensorBoard has the row": (TensorBoardLog, "log", _nothing, die),
    }
    _wrapped(*places[moment])


def _train(values: dict[str, Any], moment: str | None, number: int, every_s: float) -> None:
    torch.set_num_threads(1)
    loop.CHECKPOINT_EVERY_S = every_s
    if moment is not None:
        _kill_at(moment, number)
    loop.train(parse_config(values))


def start_training(
    values: dict[str, Any], moment: str | None = None, number: int = 1, every_s: float = 0.0
) -> Any:
    """Train in another process, which may be killed at a moment; a checkpoint each ``every_s`` seconds."""
    process = _CONTEXT.Process(target=_train, args=(values, moment, number, every_s))
    process.start()
    return process


def exit_code(process: Any) -> int:
    """Of a process when it is over; −9 if it was killed."""
    process.join(120)
    assert process.exitcode is not None, "the training hangs"
    return int(process.exitcode)
