"""Who is told how a training goes."""

from __future__ import annotations

from typing import Any, Protocol

from dyntrain.config import Config
from dyntrain.curriculum import Plan
from dyntrain.data.diagnose import RunReport
from dyntrain.data.splits import Split
from dyntrain.training.checkpoint import Progress


class Observer(Protocol):
    """Is told how training goes; the command line shows it."""

    def started(self, split: Split, reports: list[RunReport], config: Config, resumed: bool) -> None: ...

    def note(self, text: str) -> None: ...

    def stepped(self, plan: Plan, loss: float, share: float | None, progress: Progress) -> None: ...

    def validating(self, share: float) -> None: ...

    def validated(self, row: dict[str, Any]) -> None: ...


class Silent:
    """An observer that says nothing."""

    def started(self, split: Split, reports: list[RunReport], config: Config, resumed: bool) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def stepped(self, plan: Plan, loss: float, share: float | None, progress: Progress) -> None:
        pass

    def validating(self, share: float) -> None:
        pass

    def validated(self, row: dict[str, Any]) -> None:
        pass
