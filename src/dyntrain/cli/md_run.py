"""The run behind `dyntrain md`: the batch with its thermostat, checkpoints, files and progress."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import typer
from ase.symbols import Symbols
from rich.console import Console
from torch import Tensor

from dyntrain.cli.loading import load_potential
from dyntrain.cli.md_meter import Meter
from dyntrain.cli.md_options import Options, System, read_systems, writing
from dyntrain.errors import UserError
from dyntrain.potential import Potential
from dyntrain.rollout import Frame
from dyntrain.signals import StopSignals
from dyntrain.simulate import (
    Burst,
    Simulation,
    TrajectoryFiles,
    atom_name,
    check_start,
    checkpoint_path,
    degrees_of_freedom,
    device_of,
    largest_forces,
    load_checkpoint,
    save_checkpoint,
    simulate,
    trajectory_paths,
)
from dyntrain.state import State, concatenate
from dyntrain.thermostats import CSVR, Langevin, NoseHooverChain, Thermostat
from dyntrain.threads import limit_threads
from dyntrain.units import FS

_MOST_SHOWN = 10
"""Systems that are listed one by one."""

_LARGE_FORCE = 30.0
"""eV/Å; a start with a larger force on an atom is not relaxed, or unknown to the model."""


def run_batch(options: Options, device: str, precision: str | None) -> int:
    """Run all systems in one batch; the exit code: 0, 1 (some failed) or 130 (stopped)."""
    console = Console()
    systems = read_systems(options)
    options.check_outputs(trajectory_paths(options.output, len(systems)))
    potential = load_potential(options.model, device, precision, options.trust)
    batch = concatenate([system.state for system in systems])
    limit_threads(batch.n_atoms)
    batch = batch.to(device_of(potential))
    _look_at_starts(console, systems, potential, batch)
    settings = options.settings() | {"--precision": precision}
    n_free = _degrees_of_freedom(options, systems)
    run, files = _begin(options, settings, potential, batch, _thermostat(options, systems, n_free), console)
    job = _Job(options, run, files, settings)
    meter = Meter(console, options.steps, run.n_steps_done, options.dt, n_free)
    with writing(options.output):
        try:
            stopped = job.go(meter)
        except BaseException:
            files.close(finished=False)
            raise
        return _end(job, systems, meter, stopped, console)


def _degrees_of_freedom(options: Options, systems: Sequence[System]) -> Tensor | None:
    """That the thermostat acts on, [n_systems]: Langevin's friction also on the motion as a whole."""
    if options.ensemble == "nve":
        return None
    if options.ensemble == "langevin":
        counts = [3.0 * int(system.state.inertia().isfinite().sum()) for system in systems]
    else:
        counts = [float(degrees_of_freedom(system.state)) for system in systems]
    return torch.tensor(counts, dtype=torch.float64)


def _thermostat(options: Options, systems: Sequence[System], n_free: Tensor | None) -> Thermostat | None:
    if n_free is None:
        return None
    temperatures = torch.tensor([system.temperature for system in systems], dtype=torch.float64)
    seeds = [system.seed for system in systems]
    tau = options.time_constant * FS
    if options.ensemble == "langevin":
        return Langevin(temperatures, tau, seeds)
    if options.ensemble == "csvr":
        return CSVR(temperatures, tau, seeds, n_free)
    return NoseHooverChain(temperatures, tau, n_free)


def _look_at_starts(console: Console, systems: Sequence[System], potential: Potential, batch: State) -> None:
    """Refuse starts that are none, and say of the others what there is to know."""
    found = [check_start(system.state, system.label) for system in systems]
    forces, atoms = largest_forces(potential, batch)
    first = 0
    for number, (system, start) in enumerate(zip(systems, found, strict=True)):
        atom = int(atoms[number]) - first
        first += system.state.n_atoms
        large = float(forces[number]) > _LARGE_FORCE
        if number >= _MOST_SHOWN and not large:
            continue
        nearest = "no two atoms within 3 Å"
        if start.closest_distance is not None:
            nearest = f"closest pair {start.closest_distance:.3f} Å ({start.closest_pair})"
        warning = ": unrelaxed, or strange to the model?" if large else ""
        _say(
            console,
            f"{system.label}: {_formula(system.state)}, {start.temperature:.1f} K, {nearest}, largest force "
            f"{float(forces[number]):.3g} eV/Å on {atom_name(system.state, atom)}{warning}",
        )
    if len(systems) > _MOST_SHOWN:
        _say(console, f"… {len(systems)} systems, {batch.n_atoms} atoms in one batch")


def _formula(state: State) -> str:
    return str(Symbols(state.atomic_numbers.numpy()).get_chemical_formula())


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _begin(
    options: Options,
    settings: dict[str, Any],
    potential: Potential,
    batch: State,
    bath: Thermostat | None,
    console: Console,
) -> tuple[Simulation, TrajectoryFiles]:
    """The run and its files, at the start or where a checkpoint says.

    Raises:
        UserError: a trajectory of that name is there, or the checkpoint is of another run.
    """
    checkpoint, dt = checkpoint_path(options.output), options.dt * FS
    for part in checkpoint.parent.glob(f".{checkpoint.name}.part*"):  # of a run that was killed
        part.unlink(missing_ok=True)
    resumed, marks = None, None
    if checkpoint.exists() and not options.restart:
        resumed, marks = load_checkpoint(checkpoint, settings, batch)
        if resumed.frame.step > options.steps:
            raise UserError(
                f"{options.output} has come to step {resumed.frame.step}, further than --steps "
                f"{options.steps}: give at least as many"
            )
        _say(console, f"going on after step {resumed.frame.step} ({resumed.frame.step * options.dt:g} fs)")
    elif not options.restart:
        for path in trajectory_paths(options.output, batch.n_systems):
            if path.exists():
                raise UserError(
                    f"{path} is there already: choose another --output, or --restart to replace it"
                )
    run = simulate(potential, batch, dt, options.steps, thermostat=bath, resumed=resumed)
    files = TrajectoryFiles(options.output, batch, dt, options.every, marks)
    if resumed is None:
        checkpoint.unlink(missing_ok=True)
    return run, files


class _Job:
    """A run with its files and checkpoints; ``go`` brings it to its end."""

    def __init__(
        self, options: Options, run: Simulation, files: TrajectoryFiles, settings: dict[str, Any]
    ) -> None:
        self.options, self.run, self.files, self.settings = options, run, files, settings
        self._kept: tuple[Frame, Tensor] | None = None  # the frame before, and its conserved energies
        self._n_told = len(run.bursts)

    def go(self, meter: Meter) -> bool:
        """Run to the end; True if it was stopped on the way (a checkpoint is written then)."""
        saved = time.perf_counter()
        if self.run.n_steps_done:
            self._kept = self.run.state().frame, self.run.conserved_energy()
        with StopSignals() as signals, meter:
            for frame in self.run:
                conserved = self.run.conserved_energy()
                self._write_last_frames()
                due = self._is_due(frame.step)
                if due:
                    self.files.write(frame, conserved)
                self._kept = frame, conserved
                meter.note(frame, conserved, due)
                if frame.step == self.options.steps:
                    break
                now = time.perf_counter()
                if signals.received or now - saved >= self.options.checkpoint_every:
                    self._save()
                    saved = now
                if signals.received:
                    return True
            self._write_last_frames()
        return False

    def _is_due(self, step: int) -> bool:
        return step % self.options.every == 0 or step == self.options.steps

    def _write_last_frames(self) -> None:
        """Of the systems just lost: the last sound frame shows best what went wrong."""
        lost = self.run.bursts[self._n_told :]
        self._n_told += len(lost)
        if self._kept is None or not lost or self._is_due(self._kept[0].step):
            return
        frame, conserved = self._kept
        self.files.write(frame, conserved, [burst.system for burst in lost])

    def _save(self) -> None:
        save_checkpoint(
            checkpoint_path(self.options.output), self.settings, self.run.state(), self.files.marks()
        )


def _end(job: _Job, systems: Sequence[System], meter: Meter, stopped: bool, console: Console) -> int:
    """Say how it went and what is kept; the exit code."""
    output, run = job.options.output, job.run
    job.files.close(finished=not stopped)
    if not stopped:
        checkpoint_path(output).unlink(missing_ok=True)
    n_frames = sum(job.files.n_written())
    paths = [path if not stopped else path.with_name(path.name + ".partial") for path in job.files.paths]
    where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} … {paths[-1].name}"
    kept = f"{n_frames} frames in {where}" if n_frames else "nothing written"
    summary = meter.summary()
    if stopped:
        summary = f"stopped by the user after step {run.n_steps_done}, the same command goes on; {summary}"
    _say(console, f"{summary}; {kept}")
    for burst in run.bursts:
        typer.echo(f"dyntrain: {_failure(burst, systems, job.options.dt)}", err=True)
    if stopped:
        return 130
    return 1 if run.bursts else 0


def _failure(burst: Burst, systems: Sequence[System], dt: float) -> str:
    which = "the run" if len(systems) == 1 else f"system {burst.system} ({systems[burst.system].label})"
    when = f"after step {burst.step} ({burst.step * dt:g} fs)" if burst.step >= 0 else "at its start"
    return f"{which} failed {when}: {burst.reason}"
