"""Findings: what a user should know of a run, in plain sentences with what to do."""

from __future__ import annotations

import numpy as np
from ase.data import atomic_numbers, covalent_radii

from dyntrain.data.breaks import find_irregular
from dyntrain.data.contents import EnergyMatch, repeated_frames
from dyntrain.data.motion import DtFit
from dyntrain.data.run_report import Finding, RunReport
from dyntrain.data.thermostat import Motion
from dyntrain.data.trajectory import Trajectory
from dyntrain.data.velocities import CLEAR_CORRELATION, velocity_match


def find_oddities(
    run: Trajectory, report: RunReport, motion: Motion | None, fit: DtFit | None, match: EnergyMatch
) -> tuple[Finding, ...]:
    """All findings of a run whose breaks are marked, from what was measured of it."""
    return (
        *_about_motion(run, report, motion, fit),
        *_about_breaks(run),
        *_about_velocities(run, report),
        *_about_energies(run, match),
        *_about_structure(run, report),
    )


def _about_motion(
    run: Trajectory, report: RunReport, motion: Motion | None, fit: DtFit | None
) -> list[Finding]:
    found = []
    if len(report.fixed_atoms) == run.n_atoms:
        return [Finding("nothing_moves", "error", "no atom moves in the whole run; these are no dynamics.")]
    if not run.forces.any():
        return [Finding("no_forces", "error", "all forces are zero: check where they are stored.")]
    if motion is None or fit is None:
        found.append(
            Finding("too_short", "warning", "too few consecutive frames to hold the motion against forces.")
        )
    elif fit.correlation < CLEAR_CORRELATION and report.ensemble != "langevin":
        found.append(Finding("forces_do_not_explain_motion", "error", _why_unexplained(report)))
    elif report.ensemble not in ("nve", "unknown"):
        found.append(
            Finding(
                "thermostat",
                "info",
                f"the run is thermostatted ({report.ensemble}): kicks of {report.kick_ratio:.2g} of dt²F/m "
                "are recorded and applied wherever a roll-out is compared with it.",
            )
        )
    elif report.ensemble == "unknown":
        found.append(
            Finding(
                "unknown_ensemble",
                "info",
                f"forces leave {motion.residual:.1e} of the motion unexplained (thermostat, stride or few "
                "digits); it is recorded as kicks and applied wherever a roll-out is compared with the run.",
            )
        )
    if fit is not None and fit.strided:
        found.append(
            Finding("strided", "info", "only every n-th step of the run seems to be saved (n unknown, > 1).")
        )
    if report.dt_fs_inferred and report.dt_fs and abs(report.dt_fs_inferred / report.dt_fs - 1) > 0.03:
        found.append(
            Finding(
                "dt_differs",
                "warning",
                f"dt is {report.dt_fs:.4g} fs, but positions and forces say {report.dt_fs_inferred:.4g} fs: "
                "check dt, the forces' unit and the masses.",
            )
        )
    if not run.fixed_cell:
        found.append(
            Finding(
                "cell_changes", "info", "the cell changes along the run; roll-outs follow the recorded cells."
            )
        )
    if report.fixed_atoms:
        found.append(
            Finding(
                "fixed_atoms",
                "info",
                f"{len(report.fixed_atoms)} atoms never move; they stay fixed in roll-outs.",
            )
        )
    return found


def _why_unexplained(report: RunReport) -> str:
    cause = (
        "the frames are not in the order of time"
        if report.shuffled
        else "frames are missing between those saved, or dt, the forces or the masses are wrong"
    )
    return (
        f"forces do not explain how the atoms move (correlation {report.dt_correlation:.2f} of second "
        f"differences with dt²F/m, at least {CLEAR_CORRELATION} is needed); the likeliest cause: {cause}."
    )


def _about_breaks(run: Trajectory) -> list[Finding]:
    found = []
    if run.breaks:
        longest = max(stop - first for first, stop in run.stretches)
        shown = ", ".join(str(b) for b in run.breaks[:5]) + (", …" if len(run.breaks) > 5 else "")
        found.append(
            Finding(
                "breaks",
                "warning",
                f"the run is not continuous at {len(run.breaks)} frame(s) ({shown}): a reset, restart or "
                f"jump; no window crosses them, so segments have at most {longest} frames.",
                run.breaks,
            )
        )
    if lone := tuple(first for first, stop in run.stretches if stop - first == 1):
        found.append(
            Finding(
                "lone_frames",
                "warning",
                f"{len(lone)} frame(s) fit neither the frame before nor the one after, first {lone[0]}: "
                "their forces or positions are likely wrong, so no window holds them.",
                lone,
            )
        )
    if irregular := find_irregular(run):
        found.append(
            Finding(
                "irregular_steps",
                "info",
                f"{len(irregular)} step(s) are far rougher than the others, first into frame {irregular[0]} "
                "(loosely converged or damaged frames?); they stay, their kicks carry the difference.",
                irregular,
            )
        )
    if repeated := repeated_frames(run):
        found.append(
            Finding(
                "duplicates",
                "warning",
                f"{len(repeated)} frame(s) repeat the positions of an earlier one, first {repeated[0]}.",
                repeated,
            )
        )
    return found


def _about_velocities(run: Trajectory, report: RunReport) -> list[Finding]:
    if run.velocities_origin == "rebuilt" or len(report.fixed_atoms) == run.n_atoms:
        return []
    correlation, factor = velocity_match(run.positions, run.velocities, run.forces, run.masses, run.dt)
    if correlation < CLEAR_CORRELATION:
        return [
            Finding(
                "velocities_contradict_positions",
                "error",
                f"the velocities do not fit the motion of the positions (correlation {correlation:.2f}): "
                "they belong to other frames or atoms; leave them out of the file to have them rebuilt.",
            )
        ]
    if abs(factor - 1) > 0.05:
        return [
            Finding("velocities_scaled", "warning", f"the velocities are {1 / factor:.3f} times the motion.")
        ]
    return []


def _about_energies(run: Trajectory, match: EnergyMatch) -> list[Finding]:
    slope, correlation, jumps = match
    if not np.ptp(run.energies):
        return [Finding("constant_energy", "warning", "the energy is the same in all frames: no label.")]
    if slope is None or correlation is None:
        return []
    found = []
    if jumps:
        found.append(
            Finding(
                "energy_jumps",
                "warning",
                f"the energy jumps against −F·Δr at {len(jumps)} frame(s), first {jumps[0]}: another zero of "
                "the energy or an unconverged calculation.",
                jumps,
            )
        )
    if correlation < CLEAR_CORRELATION:
        found.append(
            Finding(
                "energies_contradict_forces",
                "warning",
                f"energy changes do not follow −F·Δr (correlation {correlation:.2f}): energies and forces "
                "may come from different calculations; train without the energy or check the keys.",
            )
        )
    elif abs(slope - 1) > 0.1:
        found.append(
            Finding(
                "energy_unit",
                "warning",
                f"energy changes are {slope:.4g} times −F·Δr: energies may be in another unit than eV.",
            )
        )
    return found


def _about_structure(run: Trajectory, report: RunReport) -> list[Finding]:
    found = []
    for pair, distance in (report.closest_A or {}).items():
        bond = sum(covalent_radii[atomic_numbers[symbol]] for symbol in pair.split("-"))
        if distance < 0.6 * bond:
            found.append(
                Finding(
                    "close_atoms",
                    "warning",
                    f"{pair} come as close as {distance:.2f} Å (a bond is about {bond:.2f} Å).",
                )
            )
    if (report.largest_force_eV_A or 0.0) > 100:
        frame = int(np.linalg.norm(run.forces, axis=2).max(1).argmax())
        found.append(
            Finding(
                "large_force",
                "warning",
                f"a force of {report.largest_force_eV_A:.0f} eV/Å in frame {frame}.",
                (frame,),
            )
        )
    return found
