"""Findings of the contents: breaks, wrapping, velocities, energies, distances and sizes of forces."""

from __future__ import annotations

import numpy as np
from ase.data import atomic_numbers, covalent_radii

from dyntrain.data.breaks import describe_break, find_irregular, spacing
from dyntrain.data.causes import lattice_jumps
from dyntrain.data.constraints import Held
from dyntrain.data.contents import EnergyMatch, repeated_frames, stress_jumps
from dyntrain.data.run_report import Finding, RunReport, finding
from dyntrain.data.trajectory import Trajectory
from dyntrain.data.velocities import CLEAR_CORRELATION, velocity_match
from dyntrain.data.wrong_units import name_energy_factor

# Beyond these shares of a covalent bond: atoms inside each other, and no bond anywhere (positions in bohr?).
_TOO_CLOSE, _LIKE_BOHR = 0.6, (1.6, 2.1)
_LARGE_FORCE = 100.0
# Frames further apart than this share of the fastest period no longer add up −F·Δr to energy changes.
_SPARSE = 0.25
_SURE_CORRELATION = 0.995
# Where a bath's noise moves the atoms as well, velocities explain at least this much of it.
_NOISY_CORRELATION = 0.7


def about_breaks(run: Trajectory) -> list[Finding]:
    """Where the run is not continuous, and what seems to have happened there."""
    found = []
    if run.wrapped:
        what = "positions were wrapped into the cell, with jumps by lattice vectors"
        done = "they are unwrapped, so nothing is lost"
        found.append(finding("wrapped", "info", "certain", what, training=done))
    if run.breaks:
        found.append(_breaks(run))
    if run.breaks and lattice_jumps(run):
        found.append(
            finding(
                "wrapped_but_not_periodic",
                "warning",
                "very likely",
                "atoms jump by cell vectors along directions not marked as periodic: wrapped positions",
                training="each jump is a break, and distances across the boundary are wrong",
                mend="mark the periodic directions (pbc) in the file",
            )
        )
    if lone := tuple(first for first, stop in run.stretches if stop - first == 1):
        what = (
            f"{len(lone)} frame(s) fit neither the frame before nor the one after, first {lone[0]}: their "
            "forces or positions are likely wrong"
        )
        found.append(
            finding("lone_frames", "warning", "likely", what, training="no window holds them", frames=lone)
        )
    if irregular := find_irregular(run):
        what = (
            f"{len(irregular)} step(s) are far rougher than the others, first into frame {irregular[0]} "
            "(loosely converged or damaged frames?)"
        )
        kept = "they stay, their kicks carry the difference"
        found.append(finding("irregular_steps", "info", "certain", what, training=kept, frames=irregular))
    if repeated := repeated_frames(run):
        what = f"{len(repeated)} frame(s) repeat the positions of an earlier one, first {repeated[0]}"
        twice = "they count twice, and would look like new ones if held out for validation"
        found.append(
            finding(
                "duplicates",
                "warning",
                "certain",
                what,
                training=twice,
                mend="remove them from the file",
                frames=repeated,
            )
        )
    return found


def _breaks(run: Trajectory) -> Finding:
    longest = max(stop - first for first, stop in run.stretches)
    shown = ", ".join(str(b) for b in run.breaks[:5]) + (", …" if len(run.breaks) > 5 else "")
    kinds = [describe_break(run, b) for b in run.breaks[:50]]
    counted = sorted({kind: kinds.count(kind) for kind in kinds}.items(), key=lambda item: -item[1])
    told = "; ".join(kind if len(counted) == 1 else f"{kind} ({n}×)" for kind, n in counted)
    every = spacing(run.breaks)
    regular = f", every {every} frames" if every else ""
    return finding(
        "breaks",
        "warning",
        "certain",
        f"the run is not continuous at {len(run.breaks)} frame(s) ({shown}){regular}: {told}",
        training=f"no window crosses them, so segments have at most {longest} frames",
        frames=run.breaks,
    )


def about_velocities(run: Trajectory, report: RunReport, held: Held) -> list[Finding]:
    """Whether velocities are those of the positions."""
    # A barostat moves atoms beside their velocities, so there is nothing to hold them against.
    if run.velocities_origin == "rebuilt" or not held.atoms.size or report.barostat:
        return []
    correlation, factor = velocity_match(run.positions, run.velocities, run.forces, run.masses, run.dt)
    # Langevin's noise moves atoms beside their velocities: at a friction of 1/dt the correlation is 0.9.
    noisy = report.ensemble == "langevin"
    if correlation < (_NOISY_CORRELATION if noisy else CLEAR_CORRELATION):
        return [
            finding(
                "velocities_contradict_positions",
                "error",
                "certain",
                f"the velocities do not fit the motion of the positions (correlation {correlation:.2f})",
                training="every roll-out would start in a wrong direction",
                mend="they belong to other frames or atoms; leave them out of the file to have them rebuilt",
            )
        ]
    if abs(factor - 1) > (0.25 if noisy else 0.05):
        what = f"the velocities are {1 / factor:.3f} times the motion"
        return [
            finding(
                "velocities_scaled",
                "warning",
                "likely",
                what,
                training="kicks make up for it on the recorded path only",
                mend="check their unit, and dt",
            )
        ]
    return []


def about_energies(run: Trajectory, report: RunReport, match: EnergyMatch) -> list[Finding]:
    """Whether energies belong to the forces."""
    slope, correlation, jumps, rough = match
    if not np.ptp(run.energies):
        what = "the energy is the same in all frames"
        useless = "it is no label"
        return [finding("constant_energy", "warning", "certain", what, training=useless)]
    period = report.fastest_period_fs
    sparse = report.stride != 1 and period is not None and run.dt_fs > _SPARSE * period
    if slope is None or correlation is None or sparse:
        return []
    found = []
    if jumps:
        found.append(
            finding(
                "energy_jumps",
                "warning",
                "certain",
                f"the energy jumps against −F·Δr at {len(jumps)} frame(s), first {jumps[0]}: another zero of "
                "the energy or an unconverged calculation",
                training="no network fits the energies on both sides",
                mend="remove these frames or leave the energy out of the loss",
                frames=jumps,
            )
        )
    if rough:
        found.append(
            finding(
                "energy_irregular",
                "info",
                "likely",
                f"energy and forces fit far worse than usual at {len(rough)} step(s), first into {rough[0]}: "
                "loosely converged or damaged numbers",
                training="they stay as they are",
                frames=rough,
            )
        )
    if abs(correlation) < CLEAR_CORRELATION:
        found.append(
            finding(
                "energies_contradict_forces",
                "warning",
                "very likely",
                f"energy changes do not follow −F·Δr (correlation {correlation:.2f}): energies and forces "
                "may come from different calculations",
                training="energy and forces pull the network apart",
                mend="train without the energy or check the keys",
            )
        )
    elif abs(slope - 1) > 0.1 and (unit := _energy_unit(run, slope, correlation)):
        found.append(unit)
    return found


def about_stress(run: Trajectory) -> list[Finding]:
    """Frames whose stress does not belong to the run."""
    if not (jumps := stress_jumps(run)):
        return []
    what = (
        f"the stress jumps at {len(jumps)} frame(s), first about {jumps[0]}, while the structure does not: "
        "an unconverged calculation or damaged numbers"
    )
    kept = "they stay as they are, and count where the stress is trained on"
    return [finding("stress_jumps", "warning", "likely", what, training=kept, frames=jumps)]


def _energy_unit(run: Trajectory, slope: float, correlation: float) -> Finding | None:
    wrong = name_energy_factor(slope, run.n_atoms, motion_is_right=run.dt_origin != "inferred")
    if wrong is None and abs(correlation) < _SURE_CORRELATION:
        return None  # a slope a little off 1 is also what few frames a vibration leave
    advice = wrong.advice if wrong else "energies may be in another unit than eV"
    if wrong and wrong.dt_factor != 1.0:
        advice += f" (dt would then be {run.dt_fs * wrong.dt_factor:.4g} fs)"
    return finding(
        "energy_unit",
        "error" if wrong else "warning",
        "very likely" if wrong else "a guess",
        f"energy changes are {slope:.4g} times −F·Δr: {advice}",
        training="energy and forces contradict each other",
        mend="state the units under `keys: units:`, or leave the energy out of the loss",
    )


def about_structure(run: Trajectory, report: RunReport) -> list[Finding]:
    """Distances and forces that no healthy run has."""
    found = []
    bonds = {
        pair: sum(covalent_radii[atomic_numbers[symbol]] for symbol in pair.split("-"))
        for pair in report.closest_A or {}
    }
    shares = {pair: distance / bonds[pair] for pair, distance in (report.closest_A or {}).items()}
    for pair, share in shares.items():
        if share < _TOO_CLOSE:
            found.append(
                finding(
                    "close_atoms",
                    "warning",
                    "certain",
                    f"{pair} come as close as {share * bonds[pair]:.2f} Å (a bond: {bonds[pair]:.2f} Å)",
                    training="such frames dominate the loss",
                    mend="check the positions' unit, the cell and pbc, and look at the frame",
                )
            )
    if shares and _LIKE_BOHR[0] < min(shares.values()) < _LIKE_BOHR[1] and run.dt_origin == "inferred":
        what = (
            f"the closest atoms are {min(shares.values()):.2f} bonds apart: all may be in atomic units (bohr)"
        )
        found.append(
            finding(
                "positions_unit",
                "warning",
                "a guess",
                what,
                training="cutoffs and an inferred dt would be wrong",
                mend="state the units under `keys: units:`",
            )
        )
    if (report.largest_force_eV_A or 0.0) > _LARGE_FORCE:
        frame = int(np.linalg.norm(run.forces, axis=2).max(1).argmax())
        found.append(
            finding(
                "large_force",
                "warning",
                "certain",
                f"a force of {report.largest_force_eV_A:.0f} eV/Å in frame {frame}",
                training="such frames dominate the loss",
                mend="look at the frame",
                frames=(frame,),
            )
        )
    return found
