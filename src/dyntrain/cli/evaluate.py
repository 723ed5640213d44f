"""`dyntrain evaluate`: how long one or several models are right, on held-out runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dyntrain.data.trajectory import Trajectory
    from dyntrain.evaluate import ModelResult, Verdict


def evaluate(
    model: Annotated[Path, typer.Argument(help="Model file.", show_default=False)],
    files: Annotated[
        list[str], typer.Argument(help="Held-out runs: files, folders or patterns.", show_default=False)
    ],
    more: Annotated[
        list[Path] | None, typer.Option("--model", help="Another model to compare with; may be repeated.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the page (HTML) to this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all numbers to this file.")] = None,
    horizon: Annotated[float, typer.Option(help="Follow the recorded run for so many fs.")] = 150.0,
    starts: Annotated[int, typer.Option(help="Roll-outs, each from another recorded frame.", min=1)] = 16,
    free_runs: Annotated[int, typer.Option(help="Free NVE runs; 0 for none.", min=0)] = 8,
    free_length: Annotated[float, typer.Option(help="Length of each free run in fs.", min=1.0)] = 1000.0,
    dt: Annotated[
        float | None, typer.Option(help="Time between frames in fs, where the files do not say it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the starts.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="float32 or float64; else the model's own.")] = None,
) -> None:
    """Roll models out against held-out runs (their kicks applied), let them run free, and judge."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from dyntrain.cli.loading import load_potential
    from dyntrain.data.readers import read_trajectories
    from dyntrain.errors import UserError
    from dyntrain.evaluate import evaluate_model, judge
    from dyntrain.threads import limit_threads

    if horizon <= 0:
        raise UserError(f"--horizon must be a time in fs above 0, got {horizon:g}")
    # What would stop us after minutes of work is asked for before them.
    for output in (report, json):
        if output is not None and not output.parent.is_dir():
            raise UserError(
                f"{output} cannot be written: there is no folder {output.parent}; create it or choose another"
            )
    if report is not None:
        from dyntrain.report import require_report_extra

        require_report_extra()
    models = [model, *(more or [])]
    potentials = [load_potential(path, device, precision) for path in models]
    runs = read_trajectories(files, dt)
    limit_threads(max(starts, free_runs) * max(run.n_atoms for run in runs))
    console = Console()
    results = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        for name, potential in zip(model_names(models), potentials, strict=True):
            tasks: dict[str, Any] = {}

            def show(what: str, done: int, total: int, tasks: dict[str, Any] = tasks) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what)
                bar.update(tasks[what], completed=done, total=total)

            results.append(
                evaluate_model(
                    name,
                    potential,
                    runs,
                    horizon_fs=horizon,
                    n_starts=starts,
                    n_free_runs=free_runs,
                    free_length_fs=free_length,
                    seed=seed,
                    progress=show,
                )
            )
    verdict = judge(results)
    print_results(results, verdict, console)
    if json is not None:
        _write_json(json, results, verdict, runs)
        console.print(f"numbers: {json}", highlight=False, soft_wrap=True)
    if report is not None:
        from dyntrain.report import write_report

        write_report(
            report,
            "How long is the model right?" if len(models) == 1 else "How long are the models right?",
            verdict,
            results,
            provenance=_provenance(models, runs, seed),
        )
        console.print(f"page: {report}", highlight=False, soft_wrap=True)


def model_names(models: Sequence[Path]) -> list[str]:
    """Short names that tell the models apart: of their files, else of their folders, else the whole paths."""
    for names in ([path.stem for path in models], [path.absolute().parent.name for path in models]):
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({number})" for number, path in enumerate(models, 1)]


def print_results(results: Sequence[ModelResult], verdict: Verdict, console: Any) -> None:
    """Print the table of an evaluation and its verdict in words."""
    from rich.table import Table

    from dyntrain.evaluate import summary_rows

    rollout = results[0].rollout
    table = Table(title=f"{rollout.n_starts} roll-outs beside the held-out runs, kicks applied")
    table.add_column("median over the starts")
    for result in results:
        table.add_column(result.name, justify="right")
    for label, cells in summary_rows(results):
        table.add_row(label, *cells)
    console.print(table)
    if rollout.horizon_fs < rollout.horizon_asked_fs - 1e-6:
        console.print(
            f"the runs allow {rollout.horizon_fs:g} fs, not the {rollout.horizon_asked_fs:g} fs asked for",
            highlight=False,
        )
    if results[0].free is not None:
        console.print(
            f"a free run has failed when {results[0].free.criterion}", highlight=False, soft_wrap=True
        )
    console.print(f"[bold]{verdict.headline}[/bold]", highlight=False, soft_wrap=True)
    for reason in verdict.reasons:
        console.print(f"  {reason}", highlight=False, soft_wrap=True)


def _write_json(
    path: Path, results: Sequence[ModelResult], verdict: Verdict, runs: Sequence[Trajectory]
) -> None:
    import json

    from dyntrain import __version__
    from dyntrain.atomic import write_text

    record = {
        "dyntrain": __version__,
        "verdict": {
            "winner": verdict.winner,
            "headline": verdict.headline,
            "reasons": list(verdict.reasons),
        },
        "runs": [
            {"file": run.file, "n_frames": run.n_frames, "formula": run.formula, "dt_fs": run.dt_fs}
            for run in runs
        ],
        "models": [result.to_dict() for result in results],
    }
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def _provenance(models: Sequence[Path], runs: Sequence[Trajectory], seed: int) -> dict[str, str]:
    from dyntrain import __version__

    return {
        "models": ", ".join(str(path) for path in models),
        "held-out runs": "; ".join(
            f"{run.file} ({run.formula}, {run.n_frames} frames of {run.dt_fs:g} fs)" for run in runs
        ),
        "seed": str(seed),
        "dyntrain": __version__,
    }
