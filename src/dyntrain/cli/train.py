"""`dyntrain train` and `dyntrain schema`: a configuration in, a trained model out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress as Bar

    from dyntrain.config import Config
    from dyntrain.curriculum import Plan
    from dyntrain.data.diagnose import Finding, RunReport
    from dyntrain.data.splits import Split
    from dyntrain.training.checkpoint import Progress


def train(
    config: Annotated[Path, typer.Argument(help="YAML configuration (`data:` alone is enough).")],
    devices: Annotated[
        int, typer.Option(help="Processes on each machine (GPUs, or CPU processes).", min=1)
    ] = 1,
    num_nodes: Annotated[int, typer.Option(help="Machines; start the same command on each.", min=1)] = 1,
    trust: Annotated[
        bool, typer.Option("--trust", help="start_from may run program code that is in its file.")
    ] = False,
) -> None:
    """Train a potential; the same command after an interruption goes on where it was.

    Leaves model.pt (its path is the last line printed), the resolved config.yaml, log.csv and checkpoints in
    the configuration's output folder.
    """
    import math
    import sys

    from dyntrain.config import read_config
    from dyntrain.training import train as run

    settings = read_config(config)
    if trust:
        settings = settings.model_copy(update={"trust": True})
    with TrainingBar() as bar:
        result = run(settings, devices=devices, num_nodes=num_nodes, observer=bar)
    if not result.is_first:
        return
    if result.finished is None:
        print(f"max_time ({settings.max_time}) is over; the same command goes on.")
    else:
        print(
            f"finished: {result.finished} (step {result.progress.step}, {result.progress.cpu_s:.0f} CPU-s)."
        )
    best = result.progress.best
    if best is not None and not math.isfinite(best[1]):
        print(
            "The training failed: in no validation did the model give finite numbers at all, so "
            f"{result.model} is of no use; try a lower learning rate (`curriculum.lr`) in another output.",
            file=sys.stderr,
        )
        raise typer.Exit(1)
    print(result.model)


def schema() -> None:
    """Print the JSON schema of the training configuration."""
    import json

    from dyntrain.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2, ensure_ascii=False))


class TrainingBar:
    """Shows a training: a progress line with S, loss, learning rate and time left, a line an epoch."""

    def __init__(self, name: str = "training") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.name = name
        self.console = Console()
        self.bar: Bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self.task: Any = None

    def __enter__(self) -> TrainingBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.task is not None:  # of several processes the first alone is told anything
            self.bar.stop()

    def started(self, split: Split, reports: list[RunReport], config: Config, resumed: bool) -> None:
        from rich.markup import escape

        say = self.console.print
        for line in _told(reports):
            say(line)
        runs = [run.n_frames for run in split.train if not run.alone]
        structures = sum(run.n_frames for run in split.train if run.alone)
        say(
            f"{self.name}: {len(runs)} run(s) of {sum(runs)} frames "
            + (f"and {structures} structures " if structures else "")
            + f"to train on, {len(split.validation)} run(s) to validate on. {escape(split.how)}"
        )
        say("Roll-outs beside recorded runs apply the runs' kicks.")
        if resumed:
            say(f"Going on from the checkpoint in {escape(config.output)}.")
        has_end = config.budget or config.max_epochs or config.max_time
        total = 1.0 if has_end else None
        self.task = self.bar.add_task(self.name, total=total, numbers="")
        self.bar.start()

    def note(self, text: str) -> None:
        from rich.markup import escape

        self.console.print(escape(text))

    def stepped(self, plan: Plan, loss: float, share: float | None, progress: Progress) -> None:
        bursts = int(progress.epoch_sums.get("burst", 0))
        skipped = int(progress.epoch_sums.get("skipped", 0))
        numbers = f"S {plan.segment_length}  loss {loss:.4f}  lr {plan.lr:.1e}  step {progress.step}"
        if bursts or skipped:
            numbers += f"  [red]{bursts} burst, {skipped} skipped[/]"
        self.bar.update(self.task, completed=share, numbers=numbers)

    def validating(self, share: float) -> None:
        self.bar.update(self.task, numbers=f"validation {share:.0%}")

    def validated(self, row: dict[str, Any]) -> None:
        first, mean = row["validation_force_mae_first"], row["validation_force_mae"]
        losses = [f"{name} {_number(row[f'{name}_loss'])}" for name in ("train", "validation")]
        errors = "" if mean is None else f"force MAE {first:.4f} at 0, {mean:.4f} along eV/Å"
        bursts = f"[red]{row['burst_validation']} burst[/]" if row["burst_validation"] else ""
        self.console.print(
            f"epoch {row['epoch']:3d}  S {row['segment_length']}  lr {row['lr']:.1e}  {'  '.join(losses)} "
            f"({', '.join(filter(None, (errors, bursts)))})",
            highlight=False,
        )


_TOLD_IN_FULL = 3
"""Runs with findings of one kind; how many more there are is told (an improvement adds hundreds of runs)."""


def _told(reports: list[RunReport]) -> Iterator[str]:
    """Lines of all findings, those of one kind together."""
    from rich.markup import escape

    alike: dict[str, list[tuple[str, Finding]]] = {}
    for report in reports:
        for found in report.findings:
            alike.setdefault(found.code, []).append((report.file, found))
    for places in alike.values():
        for file, found in places[:_TOLD_IN_FULL]:
            yield f"[yellow]{found.severity}[/] {escape(file)}: {escape(found.message)}"
        if (more := len(places) - _TOLD_IN_FULL) > 0:
            yield f"… and likewise of {more} more"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
