"""`dyntrain improve`: train, then let the reference continue the model's own motion where it goes wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyntrain.cli.console import Terminal

if TYPE_CHECKING:
    from dyntrain.improve import RoundResult


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


class _Console(Terminal):
    """Shows the improvement on a terminal."""

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
