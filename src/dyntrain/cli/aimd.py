"""``dyntrain aimd``: make AIMD runs of a system, or go on with those that were stopped."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Ensemble(StrEnum):
    nve = "nve"
    langevin = "langevin"


def aimd(
    system: Annotated[
        str, typer.Argument(help="A molecule by name (ethanol, CH3CH2OH) or a structure file.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the runs; the same command goes on with them.")],
    runs: Annotated[int, typer.Option(help="Independent runs; more than before adds runs.")] = 1,
    steps: Annotated[int, typer.Option(help="Recorded steps a run.")] = 1000,
    dt: Annotated[float, typer.Option(help="Time step, fs.")] = 0.5,
    temperature: Annotated[float, typer.Option(help="Of the start and the thermostat, K.")] = 500.0,
    ensemble: Annotated[Ensemble, typer.Option(help="Of the recorded part.")] = Ensemble.nve,
    method: Annotated[
        str, typer.Option(help="GFN2-xTB, GFN1-xTB, or an ASE calculator by name.")
    ] = "GFN2-xTB",
    seed: Annotated[int, typer.Option(help="Same seed, same numbers.")] = 0,
    thermalise: Annotated[int, typer.Option(help="Langevin steps before the recording, discarded.")] = 500,
    workers: Annotated[
        int | None, typer.Option(help="Runs at the same time; one a core unless given.")
    ] = None,
) -> None:
    """Make AIMD runs in full precision: start, thermalise, record positions, velocities, forces and energy.

    Stopped at any moment, the same command goes on, to the same digits.
    """
    import os

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from dyntrain.reference import AimdProgress, AimdSettings, generate_aimd

    settings = AimdSettings(
        system=system,
        method=method,
        ensemble=ensemble.value,
        temperature_K=temperature,
        dt_fs=dt,
        n_steps=steps,
        thermalise_steps=thermalise,
        seed=seed,
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(system, total=None)
        worked = False

        def show(now: AimdProgress) -> None:
            nonlocal worked
            worked = True
            text = f"run {now.run}: {now.energy_eV:.3f} eV, {now.temperature_K:.0f} K"
            bar.update(task, description=text, completed=now.steps_done, total=now.steps_total)

        files = generate_aimd(
            settings, output, n_runs=runs, workers=workers or min(runs, os.cpu_count() or 1), progress=show
        )
        bar.update(task, visible=worked)
    if not worked:
        print(f"nothing to do: all {runs} runs are there")
    for file in files:
        print(file)
