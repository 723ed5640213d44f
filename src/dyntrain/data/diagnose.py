"""Diagnose: is a reference run usable for dynamic training, and what is odd about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dyntrain.data.breaks import find_breaks, with_breaks
from dyntrain.data.compare import find_other_zeros
from dyntrain.data.constraints import Held, find_held
from dyntrain.data.contents import (
    EnergyMatch,
    closest_distances,
    drift,
    energy_force_match,
    finite_difference_temperature,
    kick_ratio,
    looks_shuffled,
    mean_temperature,
)
from dyntrain.data.findings import INFERABLE_SHARE, Measured, about_motion, about_structures
from dyntrain.data.findings_contents import (
    about_breaks,
    about_energies,
    about_stress,
    about_structure,
    about_velocities,
)
from dyntrain.data.motion import DtFit, fit_dt, fit_sides, moving_atoms, second_difference
from dyntrain.data.raw import EXACT_RESIDUAL
from dyntrain.data.run_report import Finding, RunReport, finding, refuse_unusable, refused
from dyntrain.data.small_steps import with_small_steps
from dyntrain.data.spectrum import fastest_period_fs
from dyntrain.data.store import STORE
from dyntrain.data.thermostat import Ensemble, Motion, guess_ensemble, measure
from dyntrain.data.trajectory import FloatArray, Trajectory
from dyntrain.data.velocities import CLEAR_CORRELATION
from dyntrain.units import FS

__all__ = [
    "Finding",
    "RunReport",
    "compared",
    "diagnose",
    "marked",
    "refuse_unusable",
    "refused",
    "usable_runs",
]

# Longer runs (atoms × frames) are measured on their first part.
_MEASURED = 1_000_000
# What a barostat does is one when leaving it out leaves at most this share of the motion unexplained.
_BAROSTAT_GAIN = 0.3


def marked(trajectory: Trajectory) -> Trajectory:
    """The run with its fixed atoms and breaks marked for windows; a stored run was marked when stored.

    Of structures of no run nothing is concluded.
    """
    if trajectory.reader == STORE or trajectory.alone:
        return trajectory
    still = np.setdiff1d(np.arange(trajectory.n_atoms), moving_atoms(trajectory.positions))
    fixed = trajectory.replace(fixed_atoms=tuple(int(a) for a in still))
    return with_breaks(fixed, find_breaks(fixed))


def measured_part(run: Trajectory) -> Trajectory:
    """The run itself, or the first part of a very long one."""
    n_frames = max(_MEASURED // run.n_atoms, 2)
    return run if n_frames >= run.n_frames else run.slice(0, n_frames)


def diagnose(trajectory: Trajectory) -> RunReport:
    """Measure a run: nothing is changed, and what the data cannot tell stays None.

    A very long run, which need not fit into memory, is measured on its first part; a finding says so.
    """
    run = marked(trajectory)
    part = measured_part(run)
    report = _diagnose(part)
    if part is run:
        return report
    what = f"the run is long: all but its {len(run.breaks)} breaks is measured on {part.n_frames} frames"
    told = finding("measured_in_part", "info", "certain", what, training="the rest is taken on trust")
    return dataclasses.replace(
        report, n_frames=run.n_frames, breaks=run.breaks, findings=(told, *report.findings)
    )


def _diagnose(run: Trajectory) -> RunReport:
    held = find_held(run)
    motion, fit = measure(run, held), _fit(run, held)
    ensemble: Ensemble = "unknown"
    if motion:
        noisy = fit is not None and fit.noisy
        ensemble = guess_ensemble(motion, barostat=held.strained, noisy_forces=noisy)
    energies = energy_force_match(run)
    report = _report(run, held, motion, fit, ensemble, energies)
    if run.alone:
        return dataclasses.replace(report, findings=(*about_structures(run), *about_structure(run, report)))
    measured = Measured(run, report, held, motion, fit)
    findings = (
        *about_motion(measured),
        *about_breaks(run),
        *(() if measured.in_small_steps else about_velocities(run, report, held)),
        *about_energies(run, report, energies),
        *about_stress(run),
        *about_structure(run, report),
    )
    return dataclasses.replace(report, findings=findings)


def _report(
    run: Trajectory,
    held: Held,
    motion: Motion | None,
    fit: DtFit | None,
    ensemble: Ensemble,
    energies: EnergyMatch,
) -> RunReport:
    """All that is measured, before anything is concluded from it."""
    # A Langevin bath hides the forces in noise, but not where the noise averages out; a strong friction makes
    # them shorter as well.
    weak_bath = ensemble == "langevin" and motion is not None and motion.bath.friction < 0.2
    explained = fit is not None and (fit.correlation > CLEAR_CORRELATION or (weak_bath and fit.error < 0.05))
    period = fastest_period_fs(run)
    every_step = fit is not None and explained and fit.unstrided
    inferable = every_step or period is None or run.dt_fs <= INFERABLE_SHARE * period
    consistent = energies.correlation is not None and energies.correlation > CLEAR_CORRELATION
    conserved = ensemble == "nve" and consistent and not energies.jumps
    return RunReport(
        file=run.file,
        n_frames=run.n_frames,
        n_atoms=run.n_atoms,
        formula=run.formula,
        dt_fs=run.dt_fs,
        dt_origin=run.dt_origin,
        dt_fs_stated=None if run.dt_origin == "inferred" else run.dt_fs,
        dt_fs_inferred=fit.dt / FS if fit is not None and explained and inferable else None,
        dt_correlation=fit.correlation if fit is not None else None,
        stride=1 if every_step else run.stride,
        residual=motion.residual if motion else None,
        residual_held=motion.residual_held if motion else None,
        residual_after_friction=motion.residual_after_friction if motion else None,
        fastest_period_fs=period,
        ensemble=ensemble,
        barostat=_barostat(run, held, motion),
        wrapped=run.wrapped,
        shuffled=False if explained or ensemble == "langevin" else looks_shuffled(run),
        breaks=run.breaks,
        fixed_atoms=run.fixed_atoms,
        velocities=run.velocities_origin,
        kick_ratio=kick_ratio(run),
        temperature_K=mean_temperature(run, held.atoms),
        temperature_from_positions_K=finite_difference_temperature(run, held.atoms),
        drift_meV_atom_ps=drift(run) if conserved else None,
        closest_A=closest_distances(run),
        largest_force_eV_A=float(np.linalg.norm(run.forces, axis=2).max()),
        energy_slope=energies.slope,
        energy_correlation=energies.correlation,
        notes=run.notes,
    )


def _barostat(run: Trajectory, held: Held, motion: Motion | None) -> bool:
    """Whether a homogeneous strain a frame explains far more than a friction does alone."""
    if not held.strained or motion is None:
        return False
    unstrained = measure(run, dataclasses.replace(held, strained=False))
    return unstrained is not None and (
        motion.residual_after_friction < _BAROSTAT_GAIN * unstrained.residual_after_friction
    )


def _fit(run: Trajectory, held: Held) -> DtFit | None:
    """dt and correlation, where needed without what constraints and friction do; None if too short."""
    if run.n_frames < 3 or run.alone or not held.atoms.size:
        return None
    plain = fit_dt(run.positions, run.forces, run.masses)
    if plain.residual < EXACT_RESIDUAL:
        return plain
    root = np.sqrt(run.masses[held.atoms])[:, None]
    r, pulls = run.positions[:, held.atoms], run.forces[:, held.atoms] / root
    sides = (root * second_difference(r), pulls[1:-1], second_difference(pulls))
    path: FloatArray = root * (r[2:] - r[:-2])
    # The fits without friction and the like have fewer degrees of freedom: only where they explain more.
    best = plain
    for others in ([], [path]) if held.is_special else ([path],):
        leave_out = held.projection(r[1:-1], root, *others)
        other = fit_sides(*(leave_out(side) for side in sides))
        if other.residual < EXACT_RESIDUAL:
            return other
        if abs(other.correlation) > abs(best.correlation):
            best = other
    return best


def usable_runs(trajectories: Sequence[Trajectory]) -> tuple[list[Trajectory], list[RunReport]]:
    """The runs with breaks, fixed atoms and small steps settled, ready for windows, and what was found.

    Raises:
        UserError: a run that dynamic training cannot use, with the reason.
    """
    reports = compared(trajectories, [diagnose(trajectory) for trajectory in trajectories])
    for report in reports:
        refuse_unusable(report)
    ready = [
        with_small_steps(marked(trajectory), every_step=report.stride == 1)
        for trajectory, report in zip(trajectories, reports, strict=True)
    ]
    return ready, reports


def compared(trajectories: Sequence[Trajectory], reports: Sequence[RunReport]) -> list[RunReport]:
    """The reports with what only shows when the runs lie side by side."""
    zeros = find_other_zeros(trajectories)
    return [
        dataclasses.replace(report, findings=(*report.findings, *zeros.get(report.file, ())))
        for report in reports
    ]
