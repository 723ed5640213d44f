"""The output folder of a training: one process at a time in it, and what an interrupted one left there."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dyntrain.atomic import atomic_path, write_text
from dyntrain.config import BudgetConfig, Config, dump_config, read_config
from dyntrain.errors import UserError
from dyntrain.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from dyntrain.training.logs import CsvLog

_MAY_CHANGE = {
    "max_time",
    "max_epochs",
    "budget",
    "output",
    "device",
    "logger",
    "data",
    "dt",
    "keys",
    "trust",
    "improve",
}
"""Keys that a resumed run may give differently: budget, data, dt and keys are compared by what comes out."""


_MOST_SHOWN = 3


class Earlier(NamedTuple):
    """What lies in the folder: budget (None: to be measured), progress and tensors (None: nothing begun)."""

    budget: BudgetConfig | None
    progress: Progress | None
    tensors: dict[str, Any] | None


class RunFolder:
    """``model.pt``, ``config.yaml``, ``log.csv``, ``checkpoint.pt`` and what loggers leave."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model.pt"
        self.config = path / "config.yaml"
        self.checkpoint = path / "checkpoint.pt"
        self.log = CsvLog(path / "log.csv")
        self._lock: Any = None

    def make(self) -> None:
        """Make the folder and lock it for this process.

        Raises:
            UserError: it cannot be written, or another training is running in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Appending: the file of a training that is running is left as it is.
            self._lock = (self.path / ".lock").open("a")
        except OSError as error:
            raise UserError(
                f"output: cannot write into {self.path} ({error.strerror}); choose a folder you can write to"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise UserError(
                f"another training is running in {self.path}; wait for it or choose another output"
            ) from error
        for file in (self.model, self.config, self.checkpoint):
            for part in self.path.glob(f".{file.name}.part*"):  # of a writer that was killed
                part.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """On leaving, the lock that ``make`` took is given back (it ends with the process in any case)."""
        try:
            yield
        finally:
            if self._lock is not None:
                self._lock.close()

    def earlier(self, config: Config, fingerprint: str) -> Earlier:
        """What a former call with the same settings and data left here.

        Raises:
            UserError: it was begun with other settings or other data, its files are damaged, or files that
                are not this training's would be replaced.
        """
        start = Path(config.start_from or "")
        if start.is_file() and self.model.exists() and self.model.samefile(start):
            raise UserError(
                f"start_from: {self.model} is where this training writes its own model, which would replace "
                "it; choose another output"
            )
        if not self.config.exists():
            if self.checkpoint.exists():
                raise UserError(
                    f"{self.path} holds a checkpoint but no config.yaml: put it back, or take another output"
                )
            return Earlier(config.budget, None, None)
        before = read_config(self.config)
        changed = _differences(config, before)
        budget = config.budget or before.budget
        if not self.checkpoint.exists():
            if self.config.read_text(encoding="utf-8") != dump_config(before):
                raise UserError(
                    f"{self.config} was not written by a training, which would replace it with its own: give "
                    "it another name, or choose another output"
                )
            same = not changed and config.max_time == before.max_time
            return Earlier(budget if same else config.budget, None, None)
        if changed:
            raise UserError(f"{self.path} holds a run begun with other settings ({changed}){_WAYS_OUT}")
        progress, tensors = load_checkpoint(self.checkpoint)
        if tensors["fingerprint"] != fingerprint:
            raise UserError(
                f"{self.path} holds a run begun with other data than is read now (`data`, `dt`){_WAYS_OUT}"
            )
        return Earlier(budget, progress, tensors)

    def write_config(self, config: Config) -> None:
        """Write the resolved configuration, unless it lies there already."""
        text = dump_config(config)
        if not self.config.exists() or self.config.read_text(encoding="utf-8") != text:
            write_text(self.config, text)

    def save(self, progress: Progress, tensors: dict[str, Any]) -> None:
        save_checkpoint(self.checkpoint, progress, tensors)

    def write_model(self, record: dict[str, Any]) -> None:
        with atomic_path(self.model) as part:
            torch.save(record, part)


_WAYS_OUT = ": give the same to go on, or another output to begin anew"


def _differences(config: Config, before: Config) -> str:
    """The keys that a resumed run may not change but did, with both values; empty where there are none."""
    may_change = _MAY_CHANGE if config.budget is None else _MAY_CHANGE - {"budget"}
    now, then = config.model_dump(exclude=may_change), before.model_dump(exclude=may_change)
    changed = list(_changed(now, then, ()))
    more = len(changed) - _MOST_SHOWN
    return "; ".join(changed[:_MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _changed(now: Any, then: Any, place: tuple[str, ...]) -> Iterator[str]:
    """One sentence for each key that differs, section by section."""
    if isinstance(now, dict) and isinstance(then, dict):
        for key in now | then:
            yield from _changed(now.get(key, _ABSENT), then.get(key, _ABSENT), (*place, key))
    elif now != then:
        was, became = ("not there" if value is _ABSENT else repr(value) for value in (then, now))
        yield f"`{'.'.join(place)}` was {was}, now {became}"


_ABSENT = object()
