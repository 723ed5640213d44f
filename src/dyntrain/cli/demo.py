"""`dyntrain demo`: AIMD, check, two trainings and the verdict, with progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dyntrain.data.run_report import RunReport
    from dyntrain.evaluate import ModelResult, Verdict
    from dyntrain.reference import AimdProgress
    from dyntrain.training import Observer


def demo(
    short: Annotated[
        bool, typer.Option("--short", help="Smaller numbers, the same code: under 90 s.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for everything; the same command goes on.")] = Path(
        "dyntrain-demo"
    ),
    seed: Annotated[int, typer.Option(help="Same seed and budget, same numbers.", min=0)] = 0,
) -> None:
    """Train one network twice on AIMD made here, one-step and dynamically, and say which is better."""
    import dataclasses

    from dyntrain.demo import SHORT, DemoSettings, run_demo
    from dyntrain.threads import limit_threads

    limit_threads(9)  # atoms of an ethanol

    settings = dataclasses.replace(SHORT if short else DemoSettings(), seed=seed)
    page = run_demo(output, settings, _Console())
    print(f"page: {page}")


class _Console:
    """Shows the demo on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console()

    def say(self, text: str) -> None:
        self.console.print(f"[bold]{text}[/bold]", highlight=False)

    @contextmanager
    def _bar(self, *columns: Any) -> Iterator[Any]:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *columns,
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        ) as bar:
            yield bar

    @contextmanager
    def aimd(self, what: str) -> Iterator[Callable[[AimdProgress], None]]:
        self.console.print(what, highlight=False)
        with self._bar() as bar:
            task = bar.add_task("AIMD", total=None)

            def show(now: AimdProgress) -> None:
                text = f"run {now.run}: {now.temperature_K:.0f} K"
                bar.update(task, description=text, completed=now.steps_done, total=now.steps_total)

            yield show

    def checked(self, report: RunReport) -> None:
        from dyntrain.cli.check import show

        show(report, self.console)

    @contextmanager
    def training(self, name: str) -> Iterator[Observer]:
        from dyntrain.cli.train import TrainingBar

        with TrainingBar(name.replace("_", "-")) as bar:
            yield bar

    @contextmanager
    def evaluating(self) -> Iterator[Callable[[str, int, int], None]]:
        with self._bar() as bar:
            tasks: dict[str, Any] = {}

            def show(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what)
                bar.update(tasks[what], completed=done, total=total)

            yield show

    def result(self, results: list[ModelResult], verdict: Verdict) -> None:
        from dyntrain.cli.evaluate import print_results

        print_results(results, verdict, self.console)
