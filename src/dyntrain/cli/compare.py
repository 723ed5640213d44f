"""`dyntrain compare`: does dynamic training help on these data? Trains the controls and answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dyntrain.compare import Comparison
    from dyntrain.reference.cache import StoredReference
    from dyntrain.training import Observer


def compare(
    config: Annotated[Path, typer.Argument(help="YAML configuration, as for `dyntrain train`.")],
    seeds: Annotated[
        int, typer.Option(help="Trainings of each arm, with seeds one after another.", min=1)
    ] = 2,
    starts: Annotated[int, typer.Option(help="Roll-outs beside the held-out runs.", min=1)] = 32,
    free_runs: Annotated[int, typer.Option(help="Free NVE runs of each model; 0 for none.", min=0)] = 16,
    free_length: Annotated[float, typer.Option(help="Length of each free run in fs.", min=1.0)] = 1000.0,
    free_temperature: Annotated[
        float | None, typer.Option(help="Draw the free runs' velocities for so many K; else the recording's.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Audit: recompute structures of the free runs with the method of the recording: tblite "
            "(GFN2-xTB), GFN1-xTB, or an ASE calculator by name."
        ),
    ] = None,
    calculator: Annotated[
        Path | None, typer.Option(help="YAML file with keywords of --reference, as for `dyntrain aimd`.")
    ] = None,
) -> None:
    """Dynamic training against its controls, at equal labelled frames and equal budget.

    Trains with the configuration, and besides one-step, one-step with noise and stop-gradient, each with
    every seed for about max_time; measures all models on held-out runs; leaves compare.html and compare.json
    in the output folder. The same command after an interruption goes on.
    """
    import json

    from dyntrain.atomic import write_text
    from dyntrain.compare import run_comparison, to_dict
    from dyntrain.config import read_config
    from dyntrain.evaluate import EvaluationSettings
    from dyntrain.report import require_report_extra
    from dyntrain.report.compare_page import write_compare_page

    require_report_extra()
    given = read_config(config)
    settings = EvaluationSettings(
        n_starts=starts,
        n_free_runs=free_runs,
        free_length_fs=free_length,
        free_temperature_K=free_temperature,
        seed=given.seed,
    )
    output = Path(given.output)
    stored = _stored_reference(reference, calculator, output / "reference-results", free_runs)
    console = _Console()
    comparison = run_comparison(given, seeds, settings, console, stored)
    write_text(output / "compare.json", json.dumps(to_dict(comparison), indent=1, allow_nan=False) + "\n")
    write_compare_page(output / "compare.html", comparison)
    console.result(comparison)
    print(f"numbers: {output / 'compare.json'}")
    print(f"page: {output / 'compare.html'}")


def _stored_reference(
    method: str | None, options: Path | None, store: Path, n_free_runs: int
) -> StoredReference | None:
    from dyntrain.cli.aimd import read_options
    from dyntrain.errors import UserError
    from dyntrain.reference.cache import StoredReference

    if method is None and options is not None:
        raise UserError("--calculator holds keywords of --reference, which is not given: add it")
    if method is not None and n_free_runs < 1:
        raise UserError("--reference audits the free runs, but --free-runs is 0: allow at least one")
    if method is None:
        return None
    return StoredReference(method, read_options(options) if options is not None else {}, store)


class _Console:
    """Shows a comparison on a terminal."""

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
    def measuring(self) -> Iterator[Callable[[str, int, int], None]]:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            tasks: dict[str, Any] = {}

            def show(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what)
                bar.update(tasks[what], completed=done, total=total)

            yield show

    def result(self, comparison: Comparison) -> None:
        self.console.print(f"[bold]{comparison.verdict.headline}[/bold]", highlight=False, soft_wrap=True)
        for reason in comparison.verdict.reasons:
            self.say(f"  {reason}")
