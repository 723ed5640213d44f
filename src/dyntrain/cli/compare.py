"""`dyntrain compare`: does dynamic training help on these data? Trains the controls and answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyntrain.cli.console import Terminal
from dyntrain.cli.evaluate import stored_reference

if TYPE_CHECKING:
    from dyntrain.compare import Comparison


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
    stored = stored_reference(reference, calculator, output / "reference-results", free_runs)
    console = _Console()
    comparison = run_comparison(given, seeds, settings, console, stored)
    write_text(output / "compare.json", json.dumps(to_dict(comparison), indent=1, allow_nan=False) + "\n")
    write_compare_page(output / "compare.html", comparison)
    console.result(comparison)
    print(f"numbers: {output / 'compare.json'}")
    print(f"page: {output / 'compare.html'}")


class _Console(Terminal):
    """Shows a comparison on a terminal."""

    def result(self, comparison: Comparison) -> None:
        self.console.print(f"[bold]{comparison.verdict.headline}[/bold]", highlight=False, soft_wrap=True)
        for reason in comparison.verdict.reasons:
            self.say(f"  {reason}")
