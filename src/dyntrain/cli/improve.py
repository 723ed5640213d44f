"""`dyntrain improve`: train, then let the reference continue the model's own motion where it goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dyntrain.improve import RoundResult
    from dyntrain.training import Observer


def improve(
    config: Annotated[
        Path, typer.Argument(help="YAML configuration of `dyntrain train` with a section `improve`.")
    ],
) -> None:
    """Train a potential and mend it where it fails; the same command after an interruption goes on.

    Leaves improve.html, improve.json and a folder a round in the configuration's output folder; the last line
    printed is the path of the last model.
    """
    from dyntrain.config import read_config
    from dyntrain.improve import improve as run

    console = _Console()
    result = run(read_config(config), console)
    if result.finished is not None:
        console.say(f"finished: {result.finished}.")
    console.say(f"page: {result.page}")
    print(result.model)


class _Console:
    """Shows the improvement on a terminal."""

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
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            tasks: dict[str, Any] = {}

            def show(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what)
                bar.update(tasks[what], completed=done, total=total)

            yield show

    def measured(self, result: RoundResult) -> None:
        summary = result.summary()

        def listed(values: dict[str, float | None]) -> str:
            return ", ".join(f"{'burst' if v is None else f'{v:.3g}'} at {fs} fs" for fs, v in values.items())

        self.say(f"Round {result.number}: {result.calls} reference calculations trained on")
        self.say(f"  beside held-out runs (eV/Å): {listed(summary['deviation_eV_A'])}")
        if summary["audit_eV_A"]:
            self.say(f"  on its own free runs (eV/Å): {listed(summary['audit_eV_A'])}")
        self.say(
            f"  {result.n_failed} of {len(result.failed)} free runs of {result.run_length_fs:g} fs failed"
        )
