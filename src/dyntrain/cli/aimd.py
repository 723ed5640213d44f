"""``dyntrain aimd``: make AIMD runs of a system, or go on with those that were stopped."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dyntrain.reference import AimdSettings


class Ensemble(StrEnum):
    nve = "nve"
    langevin = "langevin"
    nose_hoover = "nose-hoover"


_System = Annotated[
    str,
    typer.Argument(
        help="A molecule by name (ethanol, CH3CH2OH), water-box-N or water-box-N-DENSITY (N molecules, "
        "g/cm³), h2-pd6-graphene, or a structure file."
    ),
]
_Options = Annotated[
    Path | None,
    typer.Option(
        help="YAML file with keywords of the method: accuracy and electronic_temperature (K) of xTB, or "
        "those of the ASE calculator (paths absolute)."
    ),
]


def aimd(
    system: _System,
    output: Annotated[Path, typer.Option(help="Folder for the runs; the same command goes on with them.")],
    runs: Annotated[int, typer.Option(help="Independent runs; more than before adds runs.")] = 1,
    steps: Annotated[
        int | None, typer.Option(help="Recorded steps a run; 1000 (h2-pd6-graphene: 800) unless given.")
    ] = None,
    dt: Annotated[float, typer.Option(help="Time step, fs.")] = 0.5,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Of the start and the thermostat, K; 500 (water-box, h2-pd6-graphene: 300) unless given."
        ),
    ] = None,
    ensemble: Annotated[Ensemble, typer.Option(help="Of the recorded part.")] = Ensemble.nve,
    method: Annotated[
        str | None,
        typer.Option(
            help="GFN2-xTB, GFN1-xTB, or an ASE calculator by name (cp2k, emt, lj); GFN2-xTB (water-box, "
            "h2-pd6-graphene: GFN1-xTB) unless given."
        ),
    ] = None,
    calculator: _Options = None,
    seed: Annotated[int, typer.Option(help="Same seed, same numbers.")] = 0,
    thermalise: Annotated[int, typer.Option(help="Langevin steps before the recording, discarded.")] = 500,
    workers: Annotated[
        int | None, typer.Option(help="Runs at the same time; one a core unless given.")
    ] = None,
) -> None:
    """Make AIMD runs in full precision: start, thermalise, record positions, velocities, forces and energy.

    Stopped at any moment, the same command goes on, to the same digits. With h2-pd6-graphene the surface is
    thermalised, and each run then begins with an H2 of its own flying at the cluster.
    """
    import os

    from dyntrain.reference import settings_for

    given = {
        "method": method,
        "calculator_options": read_options(calculator) if calculator else None,
        "temperature_K": temperature,
        "n_steps": steps,
    }
    settings = settings_for(
        system,
        **{name: value for name, value in given.items() if value is not None},
        ensemble=ensemble.value,
        dt_fs=dt,
        thermalise_steps=thermalise,
        seed=seed,
    )
    _generate(settings, output, runs, workers or min(runs, os.cpu_count() or 1))


def _generate(settings: AimdSettings, output: Path, runs: int, workers: int) -> None:
    """Make the runs under a progress bar and print their files."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from dyntrain.reference import AimdProgress, generate_aimd

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
    )
    worked = False
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(settings.system, total=None)

        def show(now: AimdProgress) -> None:
            nonlocal worked
            worked = True
            text = f"run {now.run}: {now.energy_eV:.3f} eV, {now.temperature_K:.0f} K"
            bar.update(task, description=text, completed=now.steps_done, total=now.steps_total)

        files = generate_aimd(settings, output, n_runs=runs, workers=workers, progress=show)
        bar.update(task, visible=worked)
    if not worked:
        print(f"nothing to do: all {runs} runs are there")
    for file in files:
        print(file)


def read_options(path: Path) -> dict[str, Any]:
    import yaml

    from dyntrain.errors import UserError

    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read calculator options from {path}: {error}") from error
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise UserError(f"{path} must hold lines `keyword: value`, got {options!r}")
    return options
