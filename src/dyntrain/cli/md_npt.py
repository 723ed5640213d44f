"""`dyntrain md --ensemble npt`: constant pressure and temperature, one system, through ASE."""

from __future__ import annotations

import time

import ase.units
import numpy as np
import typer
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dyntrain.calculator import Calculator
from dyntrain.cli.loading import load_potential
from dyntrain.cli.md_options import Options, read_systems, writing
from dyntrain.errors import UserError
from dyntrain.rollout import BurstGuard
from dyntrain.signals import StopSignals
from dyntrain.simulate import TrajectoryWriter, atom_name, check_start
from dyntrain.state import State
from dyntrain.threads import limit_threads
from dyntrain.units import FS


def run_npt(options: Options, device: str, precision: str | None) -> int:
    """Run one periodic system at constant pressure; the exit code: 0, 1 (failed) or 130 (stopped).

    Isotropic: the cell keeps its shape (Martyna, Tobias and Klein, J. Chem. Phys. 101, 4177 (1994), as ASE
    has it). The barostat's time constant is ten times the thermostat's. There are no checkpoints.
    """
    console = Console()
    atoms = _start(options)
    potential = load_potential(options.model, device, precision, options.trust)
    found = check_start(State.from_ase(atoms), str(options.starts[0]))
    limit_threads(len(atoms))
    atoms.calc = Calculator(potential)
    atoms.get_stress()  # refuses now what cannot be done
    tau = options.time_constant * FS
    motion = IsotropicMTKNPT(
        atoms,
        options.dt * FS,
        temperature_K=options.temperatures[0],
        pressure_au=options.pressure * ase.units.GPa,
        tdamp=tau,
        pdamp=10.0 * tau,
    )
    text = f"{options.starts[0]}: {atoms.get_chemical_formula()}, {found.temperature:.1f} K, "
    console.print(f"{text}{atoms.get_volume():.1f} Å³", highlight=False, soft_wrap=True)
    with writing(options.output), TrajectoryWriter(options.output) as writer:
        failure, stopped = _run(options, motion, atoms, writer, console)
    kept = f"{writer.n_written} frames in {options.output}"
    console.print(f"{motion.nsteps} steps ({motion.nsteps * options.dt:g} fs); {kept}", highlight=False)
    if failure:
        when = f"after step {motion.nsteps - 1} ({(motion.nsteps - 1) * options.dt:g} fs)"
        typer.echo(f"dyntrain: the run failed {when}: {failure}", err=True)
        return 1
    return 130 if stopped else 0


def _start(options: Options) -> Atoms:
    """The only start, with its velocities.

    Raises:
        UserError: several systems, no cell, fixed atoms, H5MD, or a trajectory that is there.
    """
    systems = read_systems(options)
    if len(systems) > 1:
        raise UserError(f"--ensemble npt runs one system at a time, not {len(systems)}: call it for each")
    state = systems[0].state
    if not bool(state.pbc.all()):
        raise UserError(f"{options.starts[0]} is not periodic in all directions, so it has no pressure")
    if state.fixed is not None:
        raise UserError(
            f"{options.starts[0]} fixes atoms, which --ensemble npt cannot: free them, or use csvr"
        )
    options.check_outputs([options.output])
    if options.output.suffix not in (".traj", ".xyz", ".extxyz"):
        raise UserError(f"--ensemble npt writes .traj, .xyz or .extxyz, but {options.output} ends otherwise")
    if options.output.exists() and not options.restart:
        raise UserError(
            f"{options.output} is there already: choose another --output, or --restart to replace it"
        )
    atoms = Atoms(
        state.atomic_numbers.numpy(),
        state.positions.numpy(),
        masses=state.masses.numpy(),
        cell=state.cell[0].numpy(),
        pbc=True,
    )
    atoms.set_velocities(state.velocities.numpy())
    return atoms


def _run(
    options: Options, motion: IsotropicMTKNPT, atoms: Atoms, writer: TrajectoryWriter, console: Console
) -> tuple[str, bool]:
    """Step by step: why it failed (empty: it did not), and whether it was stopped."""
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("T {task.fields[temperature]:.0f} K  P {task.fields[pressure]:.3f} GPa"),
        TextColumn("{task.fields[speed]:.3g} ns/day"),
        TimeRemainingColumn(),
    )
    begun, shown, before = time.perf_counter(), 0.0, atoms.positions.copy()
    writer.write(_frame(motion, atoms, options.dt))
    with StopSignals() as signals, Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=options.steps, temperature=0.0, pressure=0.0, speed=0.0)
        for step in range(1, options.steps + 1):
            try:
                motion.run(1)
            except UserError as error:
                return str(error), False
            if failure := _broken(atoms, before):
                return failure, False
            before = atoms.positions.copy()
            if step % options.every == 0 or step == options.steps:
                writer.write(_frame(motion, atoms, options.dt))
            now = time.perf_counter()
            if now - shown > 0.2 or step == options.steps:
                pressure = -np.trace(atoms.get_stress(voigt=False, include_ideal_gas=True)) / 3
                bar.update(
                    task,
                    completed=step,
                    temperature=atoms.get_temperature(),
                    pressure=pressure / ase.units.GPa,
                    speed=step * options.dt * 1e-6 / (now - begun) * 86400,
                )
                shown = now
            if signals.received:
                return "", True
    return "", False


def _broken(atoms: Atoms, before: np.ndarray) -> str:
    """Why a step was beyond reason (by the limits of ``BurstGuard``); empty where it was not."""
    way = np.linalg.norm(atoms.positions - before, axis=1)
    limit = BurstGuard().max_step
    if not (way <= limit).all():
        atom = int(np.argmax(way))  # takes NaN for the largest
        name = atom_name(State.from_ase(atoms), atom)
        return f"{name} moved {way[atom]:.3g} Å in one step, more than {limit:g} Å"
    return ""


def _frame(motion: IsotropicMTKNPT, atoms: Atoms, dt_fs: float) -> Atoms:
    frame = atoms.copy()
    frame.info = {
        "step": motion.nsteps,
        "time_fs": motion.nsteps * dt_fs,
        "conserved_energy": motion.get_conserved_energy(),
    }
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces, stress=stress)
    return frame
