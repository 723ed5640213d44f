"""What commands of several trainings and measurements show on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from dyntrain.training import Observer


@contextmanager
def task_bars(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Bars that go when all is done, one a name: yields ``show(name, done, total)``."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total)

        yield show


class Terminal:
    """The observer of `compare` and `improve`: lines, and bars of trainings and of measurements."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def training(self, name: str) -> Iterator[Observer]:
        from dyntrain.cli.train import TrainingBar

        with TrainingBar(name) as bar:
            yield bar

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, int, int], None]]:
        with task_bars(self.console) as show:
            yield show
