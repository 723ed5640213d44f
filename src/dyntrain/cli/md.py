"""`dyntrain md`: molecular dynamics (NVE) of one structure with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ase import Atoms


def md(
    model: Annotated[Path, typer.Argument(help="Model file.", show_default=False)],
    start: Annotated[
        Path,
        typer.Argument(
            help="Structure file that ASE reads; its last frame is the start.", show_default=False
        ),
    ],
    steps: Annotated[int, typer.Option(help="Number of steps.", min=1, show_default=False)],
    output: Annotated[Path, typer.Option(help="Trajectory to write: .traj, .xyz or .extxyz.")] = Path(
        "md.traj"
    ),
    dt: Annotated[float, typer.Option(help="Time step in fs.")] = 0.5,
    every: Annotated[int, typer.Option(help="Write every so many steps.", min=1)] = 10,
    temperature: Annotated[
        float | None,
        typer.Option(help="Draw velocities at so many K (0: start at rest), instead of the file's."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of that draw.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="float32 or float64; default: the model's own.")
    ] = None,
) -> None:
    """Run NVE molecular dynamics with a model, from a structure's positions and velocities."""
    from rich.console import Console

    from dyntrain.cli.loading import load_potential
    from dyntrain.errors import UserError
    from dyntrain.simulate import TrajectoryWriter, check_start, device_of, draw_velocities, simulate
    from dyntrain.state import State
    from dyntrain.threads import limit_threads
    from dyntrain.units import FS

    if not 0 < dt < 100:
        raise UserError(f"--dt must be a time step in fs between 0 and 100, got {dt:g}")
    console = Console()
    atoms = _read_start(start)
    state = State.from_ase(atoms)
    if temperature is not None:
        if not 0 <= temperature < 1e5:
            raise UserError(f"--temperature must lie between 0 and 100000 K, got {temperature:g}")
        state = draw_velocities(state, temperature, seed)
    elif not bool(state.velocities.any()):
        raise UserError(
            f"{start} holds no velocities: draw them with --temperature (in K; 0 starts at rest), or give a "
            "file with velocities or momenta"
        )
    potential = load_potential(model, device, precision)
    found = check_start(state, str(start))
    nearest = (
        f"closest pair {found.closest_distance:.3f} Å ({found.closest_pair})"
        if found.closest_distance is not None
        else "no two atoms within 3 Å"
    )
    console.print(
        f"{start}: {atoms.get_chemical_formula()}, {found.temperature:.1f} K, {nearest}",
        highlight=False,
        soft_wrap=True,
    )
    limit_threads(state.n_atoms)
    run = simulate(potential, state.to(device_of(potential)), dt * FS, steps)
    stopped = False
    with TrajectoryWriter(output) as writer:
        try:
            summary = _run(run, writer, steps, dt, every, console)
        except KeyboardInterrupt:
            stopped = True
            summary = f"stopped by the user after step {run.n_steps_done}"
    kept = f"{writer.n_written} frames in {output}" if writer.n_written else "nothing written"
    console.print(f"{summary}; {kept}", highlight=False, soft_wrap=True)
    if run.bursts:
        burst = run.bursts[0]
        when = f"after step {burst.step} ({burst.step * dt:g} fs)" if burst.step >= 0 else "at its start"
        typer.echo(f"dyntrain: the run failed {when}: {burst.reason}", err=True)
        raise typer.Exit(1)
    if stopped:
        raise typer.Exit(130)


def _read_start(start: Path) -> Atoms:
    import ase.io

    from dyntrain.errors import UserError

    if not start.is_file():
        raise UserError(f"{start} is not there (a structure file was expected): check the path")
    try:
        atoms = ase.io.read(start, index=-1)
    except Exception as error:  # ASE's readers raise anything
        raise UserError(
            f"{start} cannot be read as a structure ({type(error).__name__}: {error}): give a file that ASE "
            "reads"
        ) from error
    assert isinstance(atoms, ase.Atoms)  # index −1: one frame
    if not len(atoms):
        raise UserError(f"{start} holds no atoms: give a structure to start from")
    if atoms.constraints:
        raise UserError(
            f"{start} fixes atoms ({type(atoms.constraints[0]).__name__}), which `dyntrain md` cannot do: "
            "remove the constraint, or run ASE's dynamics with dyntrain.Calculator"
        )
    return atoms


def _run(run: Any, writer: Any, steps: int, dt: float, every: int, console: Any) -> str:
    """Iterate the run under a progress bar and write its frames; one sentence on how it went."""
    import time

    import numpy as np
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from dyntrain.observables import energy_drift
    from dyntrain.simulate import frame_to_ase, internal_temperature
    from dyntrain.units import FS

    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("E {task.fields[energy]:.4f} eV  T {task.fields[temperature]:.0f} K"),
        TextColumn("{task.fields[speed]:.3g} ns/day"),
        TimeRemainingColumn(),
    )
    times: list[float] = []
    energies: list[float] = []
    temperatures: list[float] = []
    begun, shown, last = time.perf_counter(), 0.0, None
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=steps, energy=0.0, temperature=0.0, speed=0.0)
        for frame in run:
            last = frame
            due = frame.step % every == 0 or frame.step == steps
            if due:
                writer.write(frame_to_ase(frame, dt * FS))
            now = time.perf_counter()
            if due or now - shown > 0.2:
                energy = float(frame.prediction.energy[0] + frame.state.kinetic_energy()[0])
                temperature = internal_temperature(frame.state)
                if due:
                    times.append(frame.step * dt)
                    energies.append(energy)
                    temperatures.append(temperature)
                speed = frame.step * dt * 1e-6 / (now - begun) * 86400
                progress.update(
                    task, completed=frame.step, energy=energy, temperature=temperature, speed=speed
                )
                shown = now
        if run.bursts and last is not None and last.step % every:
            writer.write(frame_to_ase(last, dt * FS))  # the last sound frame shows best what went wrong
    if last is None:
        return "no step was possible"
    seconds = time.perf_counter() - begun
    parts = [
        f"{last.step} steps ({last.step * dt:g} fs) at {last.step * dt * 1e-6 / seconds * 86400:.3g} ns/day"
    ]
    parts.append(f"mean temperature {np.mean(temperatures):.1f} K")
    if len(times) >= 3:
        drift = energy_drift(np.array(times), np.array(energies), last.state.n_atoms)
        parts.append(f"energy drift {drift:+.3g} meV/atom/ps")
    return ", ".join(parts)
