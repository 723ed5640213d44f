"""Diagnose: is a reference run usable for dynamic training, and what is odd about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dyntrain.data.breaks import find_breaks, with_breaks
from dyntrain.data.contents import (
    closest_distances,
    drift,
    energy_force_match,
    finite_difference_temperature,
    kick_ratio,
    looks_shuffled,
    mean_temperature,
)
from dyntrain.data.findings import find_oddities
from dyntrain.data.motion import moving_atoms
from dyntrain.data.raw import infer_dt
from dyntrain.data.run_report import Finding, RunReport, refuse_unusable, refused
from dyntrain.data.thermostat import Ensemble, guess_ensemble, measure
from dyntrain.data.trajectory import Trajectory
from dyntrain.data.velocities import CLEAR_CORRELATION
from dyntrain.units import FS

__all__ = ["Finding", "RunReport", "diagnose", "refuse_unusable", "refused", "usable_runs"]


def diagnose(trajectory: Trajectory) -> RunReport:
    """Measure a run: nothing is changed, and what the data cannot tell stays None."""
    broken = with_breaks(trajectory, find_breaks(trajectory))
    motion = measure(broken)
    fit = infer_dt(broken.positions, broken.forces, broken.masses)
    moving = moving_atoms(broken.positions)
    ensemble: Ensemble = guess_ensemble(motion, broken.dt) if motion else "unknown"
    # A Langevin bath hides the forces in noise, but not where the noise averages out.
    explained = fit is not None and (
        fit.correlation > CLEAR_CORRELATION or (ensemble == "langevin" and fit.error < 0.05)
    )
    energies = energy_force_match(broken)
    consistent = energies.correlation is not None and energies.correlation > CLEAR_CORRELATION
    conserved = ensemble == "nve" and consistent and not energies.jumps
    forces = np.linalg.norm(broken.forces, axis=2)
    report = RunReport(
        file=broken.file,
        n_frames=broken.n_frames,
        n_atoms=broken.n_atoms,
        formula=broken.formula,
        dt_fs=broken.dt_fs,
        dt_origin=broken.dt_origin,
        dt_fs_stated=None if broken.dt_origin == "inferred" else broken.dt_fs,
        dt_fs_inferred=fit.dt / FS if fit is not None and explained else None,
        dt_correlation=fit.correlation if fit is not None else None,
        stride=1 if fit is not None and explained and fit.unstrided else None,
        residual=motion.residual if motion else None,
        residual_after_friction=motion.residual_after_friction if motion else None,
        ensemble=ensemble,
        wrapped=broken.wrapped,
        shuffled=False if explained or ensemble == "langevin" else looks_shuffled(broken),
        breaks=broken.breaks,
        fixed_atoms=tuple(int(a) for a in np.setdiff1d(np.arange(broken.n_atoms), moving)),
        velocities=broken.velocities_origin,
        kick_ratio=kick_ratio(broken),
        temperature_K=mean_temperature(broken, moving),
        temperature_from_positions_K=finite_difference_temperature(broken, moving),
        drift_meV_atom_ps=drift(broken) if conserved else None,
        closest_A=closest_distances(broken),
        largest_force_eV_A=float(forces.max()),
        energy_slope=energies.slope,
        energy_correlation=energies.correlation,
        notes=broken.notes,
    )
    findings = find_oddities(broken, report, motion, fit, energies)
    return dataclasses.replace(report, findings=findings)


def usable_runs(trajectories: Sequence[Trajectory]) -> tuple[list[Trajectory], list[RunReport]]:
    """The runs with their breaks and fixed atoms marked, ready for windows, and what was found of each.

    Raises:
        UserError: a run that dynamic training cannot use, with the reason.
    """
    reports = [diagnose(trajectory) for trajectory in trajectories]
    for report in reports:
        refuse_unusable(report)
    marked = [
        with_breaks(run, report.breaks).replace(fixed_atoms=report.fixed_atoms)
        for run, report in zip(trajectories, reports, strict=True)
    ]
    return marked, reports
