"""`dyntrain md`: molecular dynamics of one or many structures with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def md(
    model: Annotated[Path, typer.Argument(help="Model file.", show_default=False)],
    start: Annotated[
        list[Path],
        typer.Argument(
            help="Structure files that ASE reads; the last frame of each is a start.", show_default=False
        ),
    ],
    steps: Annotated[int, typer.Option(help="Number of steps.", min=1, show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            help="Trajectory: .traj, .xyz, .extxyz (several systems: name_000.traj …), .h5md (all in one)."
        ),
    ] = Path("md.traj"),
    dt: Annotated[float, typer.Option(help="Time step in fs.")] = 0.5,
    every: Annotated[int, typer.Option(help="Write every so many steps.", min=1)] = 10,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            help="K; of the drawn velocities (0: at rest) and of the thermostat; repeat it for systems at "
            "each. Without it: the file's velocities."
        ),
    ] = None,
    copies: Annotated[int, typer.Option(help="Systems for each start and temperature.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="System n draws from seed + n.", min=0)] = 0,
    ensemble: Annotated[
        str, typer.Option(help="nve, langevin, csvr, nose-hoover or npt (one system, through ASE).")
    ] = "nve",
    time_constant: Annotated[
        float,
        typer.Option(help="Of the thermostat in fs (Langevin: 1/friction); the barostat's is ten times it."),
    ] = 100.0,
    pressure: Annotated[float, typer.Option(help="GPa, with --ensemble npt.")] = 0.0,
    keep_velocities: Annotated[
        bool, typer.Option("--keep-velocities", help="Start a thermostat from the file's velocities.")
    ] = False,
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between checkpoints, from which the same command goes on.", min=0)
    ] = 60.0,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, over an earlier run with this output.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="float32 or float64; default: the model's own.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Another program's model file may run code that is in it.")
    ] = False,
) -> None:
    """Run molecular dynamics with a model: one or many systems in one batch, in NVE, NVT or NPT.

    Every start at every --temperature, --copies times, is a system of the batch. A run that was killed or
    stopped goes on with the same command, to the same numbers.
    """
    from dyntrain.cli.md_options import Options
    from dyntrain.cli.md_run import run_batch

    options = Options(
        model=model,
        starts=tuple(start),
        steps=steps,
        output=output,
        dt=dt,
        every=every,
        temperatures=tuple(temperature) if temperature else (),
        copies=copies,
        seed=seed,
        ensemble=ensemble,
        time_constant=time_constant,
        pressure=pressure,
        keep_velocities=keep_velocities,
        checkpoint_every=checkpoint_every,
        restart=restart,
        trust=trust,
    )
    options.check()
    if ensemble == "npt":
        from dyntrain.cli.md_npt import run_npt

        code = run_npt(options, device, precision)
    else:
        code = run_batch(options, device, precision)
    if code:
        raise typer.Exit(code)
