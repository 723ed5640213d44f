"""Findings of the motion: whether forces explain it, what else acts, and how often it was saved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dyntrain.data.causes import lag_of_forces, lattice_jumps, odd_forces, position_digits, rounding_share
from dyntrain.data.constraints import Held
from dyntrain.data.masses import SPARSE_LEFT, WrongMass, find_wrong_masses
from dyntrain.data.motion import DtFit
from dyntrain.data.run_report import Finding, RunReport, Severity, finding
from dyntrain.data.small_steps import with_small_steps
from dyntrain.data.spectrum import STABLE_SHARE
from dyntrain.data.stride import estimate_stride
from dyntrain.data.thermostat import Motion, is_white_noise, noise_between_frames
from dyntrain.data.trajectory import Trajectory
from dyntrain.data.velocities import CLEAR_CORRELATION

# Frames further apart than this share of the fastest period no longer tell how far apart they are.
INFERABLE_SHARE = 1 / 3
# Forces shifted by a frame, coarse positions and the like are looked for where more than this is unexplained.
_UNEXPLAINED = 1e-3
# Rounded positions are the reason where their rounding makes up this share of what is unexplained.
_ROUNDING_SHARE = 0.3
# A bath that takes this share of the velocities away at each step is told of: its noise hides the forces.
_STRONG_FRICTION = 0.4
# Noise of the forces above this share of the motion needs a look.
_NOISY = 0.05
_CONVERGE = "converge the electrons of each frame more tightly, or check where the forces come from"
_NOISE = "noise on the atoms one by one (Langevin, Andersen)"


@dataclass(frozen=True, eq=False)
class Measured:
    """What `diagnose` measured of a run whose breaks and fixed atoms are marked."""

    run: Trajectory
    report: RunReport
    held: Held
    motion: Motion | None
    fit: DtFit | None

    @property
    def explained(self) -> bool:
        """Whether forces and a bath explain the motion."""
        return self.fit is not None and (
            self.fit.correlation >= CLEAR_CORRELATION or self.report.ensemble == "langevin"
        )

    @cached_property
    def in_small_steps(self) -> bool:
        """Whether frames so far apart that forces cannot explain the motion are still a run to unroll."""
        ready = with_small_steps(self.run, every_step=self.report.stride == 1)
        return ready.small_steps > 1 and not self.report.shuffled

    @cached_property
    def wrong_masses(self) -> tuple[WrongMass, ...]:
        """Masses that the motion contradicts; of frames far apart only where they explain nearly all."""
        if self.report.ensemble == "langevin":
            return ()
        sparse = self.fit is not None and self.fit.smoothed and not self.fit.noisy
        return find_wrong_masses(self.run, self.held, *([SPARSE_LEFT] if sparse else []))


def about_structures(run: Trajectory) -> list[Finding]:
    """Structures of no run say nothing of motion."""
    what = f"{run.n_frames} structure(s) of no run"
    told = "trained on where S = 1; nothing tells whether dt, forces and units are right"
    return [finding("alone", "info", "certain", what, training=told)]


def about_motion(m: Measured) -> list[Finding]:
    """Why a run is no dynamics at all, or what acts on it beside its forces."""
    if len(m.report.fixed_atoms) == m.run.n_atoms:
        what = "no atom moves in the whole run; these are no dynamics"
        return [finding("nothing_moves", "error", "certain", what, training="there is nothing to unroll")]
    if not m.run.forces.any():
        what = "all forces are zero: check where they are stored"
        return [finding("no_forces", "error", "certain", what, training="there is nothing to learn")]
    found = [*_about_time(m)]
    if m.motion is None or m.fit is None:
        what = "too few consecutive frames to hold the motion against forces"
        unchecked = "units, dt and masses are taken on trust"
        found.append(finding("too_short", "warning", "certain", what, training=unchecked))
    elif not m.explained and not m.in_small_steps:
        found.append(_unexplained(m))
    elif m.explained:
        found += [*_about_bath(m, m.motion), *_about_rest(m, m.motion)]
    return [*found, *_about_holding(m)]


def _unexplained(m: Measured) -> Finding:
    cause, mend = _likeliest_cause(m)
    return finding(
        "forces_do_not_explain_motion",
        "error",
        "certain",
        f"forces do not explain how the atoms move (correlation {m.report.dt_correlation:.2f} of second "
        f"differences with dt²F/m, at least {CLEAR_CORRELATION} is needed); the likeliest cause: {cause}",
        training="roll-outs would follow the kicks and learn nothing of the forces",
        mend=mend,
    )


def _likeliest_cause(m: Measured) -> tuple[str, str]:
    run, period = m.run, m.report.fastest_period_fs
    if m.report.shuffled:
        return (
            "the frames are not in the order of time",
            "give the frames in the order of the run, or of no run the file under `data.structures`",
        )
    if lattice_jumps(run):
        return (
            "positions are wrapped into a cell that is not marked as periodic",
            "mark the periodic directions (pbc) in the file",
        )
    if lag := lag_of_forces(run, m.held):
        return f"frames hold the forces of the {_neighbour(lag)} frame", "shift the forces by one frame"
    digits = position_digits(run)
    if digits is not None and rounding_share(run, m.held, digits[1]) > 0.3:
        return f"the positions have only {digits[0]}", "write them with more digits"
    if wrong := m.wrong_masses:
        return f"wrong masses: {'; '.join(map(str, wrong))}", "state the masses of the run"
    if m.motion and is_white_noise(m.motion) and not m.motion.bath.forces_act:
        factor = f"{m.motion.bath.force_factor:.2g} ± {m.motion.bath.force_error:.1g}"
        return (
            f"all but the noise of a bath shows the given forces only by a factor of {factor}: they are "
            "those of other frames or of another unit",
            "check the forces",
        )
    if m.fit and m.fit.noisy:
        return "the forces are noise for the most part, other at each frame", _CONVERGE
    if m.report.stride != 1 and noise_between_frames(run):
        limit = f" (below {STABLE_SHARE * period / math.pi:.2g} fs apart)" if period else ""
        return (
            f"{_NOISE} acts between frames that lie {run.dt_fs:.3g} fs apart, and nothing in them tells it",
            f"save every step{limit}, or run NVE, Nosé–Hoover or CSVR, whose frames tell enough",
        )
    if not run.fixed_cell:
        return "the forces or dt belong to another run, or frames are missing", "check keys, units and dt"
    if period is not None and run.dt_fs > INFERABLE_SHARE * period:
        return (
            f"frames {run.dt_fs:.3g} fs apart are too far from each other for a motion of {period:.3g} fs",
            "save the run more often",
        )
    return (
        "frames are missing between those saved, or dt, the forces or the masses are wrong",
        "check keys, units, dt and masses",
    )


def _neighbour(lag: int) -> str:
    return "next" if lag > 0 else "previous"


def _about_bath(m: Measured, motion: Motion) -> list[Finding]:
    found = []
    ratio = f"{m.report.kick_ratio:.2g}" if m.report.kick_ratio is not None else "unknown"
    if m.report.barostat:
        what = (
            "a barostat scales the positions with the cell: a homogeneous strain and a friction a frame "
            f"leave {motion.residual_after_friction:.1e} of dt²F/m unexplained, forces alone "
            f"{motion.residual:.1e}"
        )
        kept = f"kicks of {ratio} of dt²F/m and the recorded cells are followed in roll-outs"
        found.append(finding("barostat", "info", "very likely", what, training=kept))
    if m.report.ensemble not in ("nve", "unknown"):
        what = f"the run is thermostatted ({m.report.ensemble})"
        kept = f"kicks of {ratio} of dt²F/m are recorded and applied wherever a roll-out is compared with it"
        found.append(finding("thermostat", "info", "very likely", what, training=kept))
    if m.report.ensemble == "langevin" and motion.bath.friction > _STRONG_FRICTION:
        what = (
            f"the Langevin bath's friction is {motion.bath.friction:.2g}/dt: its noise hides the forces "
            f"({motion.bath.force_factor:.2g} ± {motion.bath.force_error:.1g} times they show in the motion)"
        )
        lost = "kicks are far larger than what forces do, so segments teach little more than single frames"
        mend = "use a friction below 0.1/dt in the next run"
        found.append(finding("strong_friction", "warning", "very likely", what, training=lost, mend=mend))
    return found


def _about_rest(m: Measured, motion: Motion) -> list[Finding]:
    """What remains unexplained where the forces do explain most of the motion."""
    found = _about_masses(m)
    if m.report.ensemble == "langevin" or (m.fit and m.fit.strided):
        return found
    if motion.residual_after_friction < _UNEXPLAINED and motion.rms_residual < 10 * _UNEXPLAINED:
        return found
    if lag := lag_of_forces(m.run, m.held):
        found.append(
            finding(
                "forces_of_other_frames",
                "error",
                "very likely",
                f"frames hold the forces of the {_neighbour(lag)} frame",
                training="every structure would be taught the forces of another",
                mend="shift the forces by one frame",
            )
        )
    digits = position_digits(m.run)
    if digits and (share := rounding_share(m.run, m.held, digits[1])) > _ROUNDING_SHARE * motion.rms_residual:
        found.append(
            finding(
                "few_digits",
                "info",
                "very likely",
                f"positions are written with {digits[0]}, whose rounding is {share:.1g} of dt²F/m",
                training="it becomes part of the kicks, and of velocities rebuilt from positions",
                mend="write more digits where you can",
            )
        )
        if (odd := odd_forces(m.run, m.held, digits[1])).size:
            what = f"the forces of {odd.size} frame(s) do not fit the motion, the first frame {odd[0]}"
            taught = "they are taught as they are"
            found.append(finding("odd_forces", "warning", "very likely", what, training=taught))
    return found or _about_unknown(m, motion)


def _about_unknown(m: Measured, motion: Motion) -> list[Finding]:
    """Noise of the forces, which shows in the motion, or a reason that is not known."""
    if m.fit and m.fit.noisy:
        share = motion.residual_after_friction
        severity: Severity = "warning" if share > _NOISY else "info"
        what = (
            "the forces are noisy: an error that each frame's have of their own leaves "
            f"{share:.1e} of the motion unexplained"
        )
        kept = "a network learns their mean at best, and kicks carry the noise into roll-outs"
        return [finding("noisy_forces", severity, "very likely", what, training=kept, mend=_CONVERGE)]
    kept = "it is recorded as kicks and applied wherever a roll-out is compared with the run"
    if m.fit and m.fit.smoothed and not m.fit.unstrided:
        what = (
            "steps are missing between the saved frames, or the forces are noisy: their means over "
            "neighbouring frames explain more of the motion than each frame's own, which leave "
            f"{motion.residual_after_friction:.1e} of it"
        )
        return [finding("strided_or_noisy", "info", "a guess", what, training=kept)]
    if m.report.ensemble == "unknown" and not m.report.barostat:
        what = (
            f"forces leave {motion.residual_after_friction:.1e} of the motion unexplained for a reason that "
            "is not recognised (an unusual thermostat, loosely converged forces)"
        )
        return [finding("unknown_ensemble", "info", "a guess", what, training=kept)]
    return []


def _about_masses(m: Measured) -> list[Finding]:
    return [
        finding(
            "wrong_masses",
            "warning",
            "very likely",
            f"the stated masses are not those of the run: {wrong}",
            training="the kicks carry the difference of the recorded path, but each error of the network's "
            "forces moves these atoms as if they had the stated mass",
            mend="state the masses that the run was made with",
        )
        for wrong in m.wrong_masses
    ]


def _about_time(m: Measured) -> list[Finding]:
    run, fit, period = m.run, m.fit, m.report.fastest_period_fs
    found = []
    if fit is not None and fit.strided and m.explained and not m.wrong_masses:
        found.append(_strided(m))
    every_step = fit is not None and fit.unstrided and m.explained
    # The spectrum of a run in disorder says nothing; its likeliest cause is named elsewhere.
    if period is not None and not every_step and (m.explained or m.in_small_steps or fit is None):
        found += _about_step(run, period)
    inferred = m.report.dt_fs_inferred
    if inferred and fit and abs(inferred / run.dt_fs - 1) > max(0.03, 4 * fit.error):
        found.append(
            finding(
                "dt_differs",
                "warning",
                "likely",
                f"dt is {run.dt_fs:.4g} fs, but positions and forces say {inferred:.4g} fs",
                training="kicks make up for it on the recorded path only",
                mend="check dt, the forces' unit and the masses",
            )
        )
    return found


def _strided(m: Measured) -> Finding:
    n = estimate_stride(m.run, m.held)
    return finding(
        "strided",
        "info",
        "likely" if n else "very likely",
        f"only one step in {n or 'several'} of the run seems to be saved",
        training="one step of a roll-out spans the whole interval, and its kick holds what that step misses",
        mend="save every step where you can",
    )


def _too_far_apart(run: Trajectory, what: str) -> Finding:
    ready, code = with_small_steps(run, every_step=False), "frames_too_far_apart"
    if ready.small_steps == 1:
        rebuilt = run.velocities_origin == "rebuilt"
        noisy = not rebuilt and noise_between_frames(run)
        why = "with a changing cell or constraints"
        if rebuilt or noisy:
            why = "without velocities" if rebuilt else f"with {_NOISE}"
        return finding(
            code,
            "error" if rebuilt else "warning",
            "very likely",
            f"{what}; {why} it cannot be unrolled in smaller steps either",
            training="segments of more than one frame are refused",
            mend="save the run more often" + (", and its velocities with it" if rebuilt else ""),
        )
    n = ready.small_steps
    inside = np.setdiff1d(np.arange(run.n_frames - 1), np.array(run.breaks, dtype=np.int64) - 1)
    damped = 100 * run.dt * float(np.sqrt((run.friction(slice(None))[inside] ** 2).mean()))
    exact = "as many as the file says" if run.stride else "the run's own number is not known: as a guess"
    return finding(
        code,
        "warning",
        "very likely",
        what,
        training=f"{n} small steps of {run.dt_fs / n:.3g} fs lead from frame to frame ({exact}), with the "
        f"friction that the energies tell of ({damped:.2g} % of the velocities a frame, rms), and only the "
        "frames are compared; what is no friction common to all atoms (Langevin's noise) is not followed",
        mend="save the run more often where you can",
    )


def _about_step(run: Trajectory, period: float) -> list[Finding]:
    """Frames too far apart for the fastest motion, of a run of which not every step is known to be saved."""
    found = []
    known = f"its fastest motion (period {period:.3g} fs, by its forces)"
    limit = STABLE_SHARE * period / math.pi
    if run.dt_fs >= limit:
        what = (
            f"frames {run.dt_fs:.3g} fs apart are too far from each other for {known}: roll-outs are stable "
            f"up to {limit:.3g} fs a step"
        )
        found.append(_too_far_apart(run, what))
    if run.dt_fs > INFERABLE_SHARE * period:
        found.append(
            finding(
                "dt_cannot_be_inferred",
                "warning",
                "certain",
                f"dt cannot be inferred from frames {run.dt_fs:.3g} fs apart, more than a third of {known}",
                training="dt is taken on trust",
                mend="make sure that dt is the time between saved frames",
            )
        )
    return found


def _about_holding(m: Measured) -> list[Finding]:
    run, held = m.run, m.held
    found = []
    if not run.fixed_cell:
        what = "the cell changes along the run"
        follow = "roll-outs follow the recorded cells"
        found.append(finding("cell_changes", "info", "certain", what, training=follow))
    if m.report.fixed_atoms:
        found.append(_fixed_atoms(run, m.report.fixed_atoms))
    if (partly := held.partly_fixed).size:
        what = f"{partly.size} atoms move along some directions only, first atom {partly[0]}"
        kept = "kicks cancel the recorded forces along the others, but not a network's error there"
        found.append(finding("partly_fixed_atoms", "info", "certain", what, training=kept))
    if len(held.rigid):
        i, j = (run.symbols[held.atoms[a]] for a in held.rigid[0])
        what = f"{len(held.rigid)} distances are rigid (bond constraints as SHAKE's; first a {i}-{j})"
        kept = "kicks hold them on the recorded path; a network's error stretches them, free MD needs its own"
        found.append(finding("rigid_bonds", "info", "very likely", what, training=kept))
    noisy = m.fit is not None and m.fit.noisy  # noise moves nothing either, summed up over the atoms
    net = _removed_net_force(run, m.motion.frames) if held.centred and m.motion and not noisy else None
    if net:
        what = (
            f"centre-of-mass motion is taken out at each step: forces sum up to {net:.2g} eV/Å without effect"
        )
        kept = "kicks carry it; a network's forces sum up to zero"
        found.append(finding("centre_of_mass_removed", "info", "likely", what, training=kept))
    return found


def _fixed_atoms(run: Trajectory, fixed: tuple[int, ...]) -> Finding:
    what = f"{len(fixed)} atoms never move"
    stay = "they stay fixed in roll-outs"
    if run.forces[:, fixed].any():
        return finding("fixed_atoms", "info", "certain", what, training=stay)
    return finding(
        "zero_forces_on_fixed_atoms",
        "info",
        "certain",
        f"{what}, and their forces are all zero: constrained forces were written instead of raw ones",
        training=f"{stay}, and the loss leaves their forces out, since no energy has such zeros",
        mend="raw forces would teach more (ASE: `get_forces(apply_constraint=False)`)",
    )


def _removed_net_force(run: Trajectory, frames: np.ndarray) -> float | None:
    """rms of the forces' sum, eV/Å, where the total momentum does not follow it at all."""
    total = run.forces.sum(axis=1)[frames]
    net, typical = np.sqrt((total**2).mean()), np.sqrt((run.forces**2).mean() * run.n_atoms)
    if not frames.size or net < 1e-4 * typical:
        return None
    weights = run.masses[:, None] / run.dt**2
    mean = run.positions[frames + 1] - 2 * run.positions[frames] + run.positions[frames - 1]
    acceleration = np.sqrt(((weights * mean).sum(axis=1) ** 2).mean())
    return float(net) if acceleration < 0.1 * net else None
