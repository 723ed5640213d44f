"""Raw runs: what a file says of a run, and its careful conversion to a Trajectory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import atomic_masses, chemical_symbols

from dyntrain.data.masses import masses_advice
from dyntrain.data.motion import DtFit, fit_dt, instant_period, moving_atoms, unwrap
from dyntrain.data.trajectory import (
    DtOrigin,
    FloatArray,
    IntArray,
    Trajectory,
    VelocitiesOrigin,
    check_cell,
    check_finite,
    check_masses,
)
from dyntrain.data.velocities import (
    CLEAR_CORRELATION,
    TOLERANCE,
    from_half_steps,
    refuse_wrong_unit,
    verlet_velocities,
)
from dyntrain.errors import UserError
from dyntrain.units import BOHR, FS, HARTREE

# An inferred dt is used only where the forces explain the motion this well (median relative residual).
EXACT_RESIDUAL = 1e-3
# A stated dt may then differ from the inferred one by this much (time stamps have few digits), else by 10 %.
EXACT_TOLERANCE = 0.01
# Tables of the elements' masses differ by less than this share, isotopes by more.
_UNUSUAL_MASS = 0.03
# Of frames more than a third of the fastest period apart at least this share of the motion is unexplained.
_SPARSE_RESIDUAL = 0.3
# Residual with the best dt above which wrong masses are looked for.
_LEFT_BY_MASSES = 0.03
# Inferred over stated dt → what is likely wrong. Forces in a unit of x eV make the inferred dt √x too large.
_DT_FACTORS = {
    1000.0: "dt seems to be given in ps",
    1 / FS: "dt seems to be given in ASE time",
    FS: "dt seems to be converted to ASE time in the wrong direction",
    1 / 41.341374: "dt seems to be given in atomic units",
    math.sqrt(HARTREE / BOHR): "the forces seem to be hartree/bohr",
    math.sqrt(0.5 * HARTREE / BOHR): "the forces seem to be rydberg/bohr",
    math.sqrt(HARTREE): "the forces seem to be hartree/Å",
    math.sqrt(0.0433641): "the forces seem to be kcal/mol/Å",
    math.sqrt(0.0103643): "the forces seem to be kJ/mol/Å",
    math.sqrt(0.00103643): "the forces seem to be kJ/mol/nm",
    math.sqrt(1 / BOHR): "the positions seem to be in bohr",
    math.sqrt(HARTREE) / BOHR: "positions and forces seem to be in atomic units",
}


@dataclass(eq=False)
class RawRun:
    """One run as its file tells it, in internal units, before anything is inferred or repaired.

    positions, forces: [n_frames, n_atoms, 3] Å and eV/Å; energies: [n_frames] eV.
    velocities:    [n_frames, n_atoms, 3] Å/ASE time, or None where the file has none.
    displacements: velocities × dt [n_frames, n_atoms, 3] Å, for layouts that store that product.
    cell:          [3, 3] or [n_frames, 3, 3] Å, rows; pbc: [3].
    dt_fs:         interval between frames as the file states it, else None.
    breaks:        frames at which the file itself says that time is not continuous.
    stress:        [n_frames, 6] eV/Å³: xx, yy, zz, yz, xz, xy; ASE's sign (σ = 1/V ∂E/∂ε: positive where the
                   cell wants to shrink, the opposite of what VASP, CP2K and Quantum ESPRESSO print); None
                   where a frame has none.
    stride:        steps of the AIMD from frame to frame, where the file says it.
    """

    file: str
    reader: str
    positions: FloatArray
    forces: FloatArray
    energies: FloatArray
    cell: FloatArray
    pbc: np.ndarray
    atomic_numbers: IntArray
    masses: FloatArray
    velocities: FloatArray | None = None
    displacements: FloatArray | None = None
    dt_fs: float | None = None
    breaks: tuple[int, ...] = ()
    notes: list[str] = field(default_factory=list)
    stress: FloatArray | None = None
    stride: int | None = None


def to_trajectory(run: RawRun, dt_fs: float | None = None) -> Trajectory:
    """Settle dt, unwrap, and take or rebuild the velocities; every assumption becomes a note.

    Args:
        dt_fs: the interval between frames as the user states it; beats what the file says.

    Raises:
        UserError: values that are not finite, dt unknown or contradicted by positions and forces,
            velocities in another unit.
    """
    notes = list(run.notes)
    for name in ("positions", "forces", "energies"):
        check_finite(getattr(run, name), name, run.file)
    check_masses(run.masses, run.file)
    notes += _unusual_masses(run)
    check_cell(run.cell, run.pbc, run.file, 0)
    if run.positions.shape[0] < 2:
        raise UserError(
            f"{run.file} holds {run.positions.shape[0]} frame(s); a run needs at least 2 consecutive frames."
        )
    positions, jumps = unwrap(run.positions, run.cell, run.pbc)
    if jumps.size:
        notes.append(
            f"Positions were wrapped into the cell (atoms jump by lattice vectors at {jumps.size} frames, "
            f"first at {jumps[0]}); unwrapped."
        )
    dt, dt_origin = _settle_dt(run, positions, dt_fs, notes)
    velocities, velocities_origin = _settle_velocities(run, positions, dt, notes)
    return as_told(
        run,
        positions=positions,
        velocities=velocities,
        dt=dt,
        notes=tuple(notes),
        velocities_origin=velocities_origin,
        dt_origin=dt_origin,
        wrapped=bool(jumps.size),
    )


def as_told(run: RawRun, **settled: Any) -> Trajectory:
    """What a file tells as a Trajectory; ``settled``: the fields that it does not tell, or not rightly."""
    told = {
        name: getattr(run, name)
        for name in (
            "positions",
            "velocities",
            "forces",
            "energies",
            "cell",
            "pbc",
            "atomic_numbers",
            "masses",
            "breaks",
            "file",
            "reader",
            "notes",
            "stress",
            "stride",
        )
    }
    return Trajectory(**{**told, **settled})


def _unusual_masses(run: RawRun) -> list[str]:
    """A note where atoms have another mass than their element: isotopes, or elements that are mixed up."""
    known = (run.atomic_numbers > 0) & (run.atomic_numbers < len(atomic_masses))
    standard = atomic_masses[np.where(known, run.atomic_numbers, 0)]
    odd = known & (np.abs(run.masses / standard - 1) > _UNUSUAL_MASS)
    found = sorted(
        {
            (chemical_symbols[z], round(float(m), 4))
            for z, m in zip(run.atomic_numbers[odd], run.masses[odd], strict=True)
        }
    )
    told = ", ".join(f"{symbol} {mass:g} u" for symbol, mass in found)
    return [f"Masses are not those of the elements: {told}."] if found else []


def _settle_dt(
    run: RawRun, positions: FloatArray, dt_fs: float | None, notes: list[str]
) -> tuple[float, DtOrigin]:
    """dt in ASE time: stated by the user, else by the file, else inferred where that is exact."""
    fit = infer_dt(positions, run.forces, run.masses)
    stated = dt_fs if dt_fs is not None else run.dt_fs
    if stated is None:
        return _inferred_dt(run, fit, notes), "inferred"
    if not (np.isfinite(stated) and stated > 0):
        raise UserError(f"{run.file}: dt must be a positive number of fs, got {stated:g}.")
    if fit is not None:
        _check_stated_dt(run, positions, stated, fit, by_user=dt_fs is not None)
    if dt_fs is not None and run.dt_fs is not None and abs(dt_fs / run.dt_fs - 1) > 1e-3:
        notes.append(f"dt = {dt_fs:g} fs as you state it; the file's time stamps say {run.dt_fs:g} fs.")
    return stated * FS, "given" if dt_fs is not None else "file"


def infer_dt(positions: FloatArray, forces: FloatArray, masses: FloatArray) -> DtFit | None:
    """`fit_dt`, with friction and centre-of-mass motion left out where that is needed; None if too short."""
    if positions.shape[0] < 3 or not moving_atoms(positions).size:
        return None
    plain = fit_dt(positions, forces, masses)
    if plain.residual < EXACT_RESIDUAL:
        return plain
    other = fit_dt(positions, forces, masses, without_friction=True)
    # The friction-free fit has fewer degrees of freedom (none for a diatomic): only where it explains more.
    return other if abs(other.correlation) > abs(plain.correlation) else plain


def _inferred_dt(run: RawRun, fit: DtFit | None, notes: list[str]) -> float:
    advice = "state `dt` (fs between frames)"
    if fit is None:
        raise UserError(
            f"{run.file} has no time stamps, and positions and forces of "
            f"{run.positions.shape[0]} frames are too few (or nothing moves) to infer dt; {advice}."
        )
    if np.isnan(fit.dt) or fit.residual > EXACT_RESIDUAL:
        guess = "" if np.isnan(fit.dt) else f" (nearest: {fit.dt / FS:.4g} fs)"
        raise UserError(
            f"{run.file} has no time stamps, and dt cannot be inferred safely{guess}: forces explain the "
            f"motion only up to a residual of {fit.residual:.1e} (limit {EXACT_RESIDUAL:g}); {advice}."
        )
    dt_fs = _rounded(fit.dt / FS)
    notes.append(
        f"dt = {dt_fs:.6g} fs inferred from positions and forces (no time stamps in the file; Verlet "
        f"residual {fit.residual:.1e})."
    )
    return dt_fs * FS


def _rounded(dt_fs: float) -> float:
    """A dt as a user would have set it, where that is within what the file's digits can tell."""
    short = float(f"{dt_fs:.3g}")
    return short if abs(short / dt_fs - 1) < 1e-4 else dt_fs


def _check_stated_dt(run: RawRun, positions: FloatArray, stated: float, fit: DtFit, by_user: bool) -> None:
    if fit.correlation < -CLEAR_CORRELATION:
        raise UserError(
            f"{run.file}: the forces point against the motion (correlation {fit.correlation:.3f}): the file "
            "seems to hold gradients dE/dr; turn their sign to get forces."
        )
    ratio = fit.dt / FS / stated
    allowed = EXACT_TOLERANCE if fit.residual < EXACT_RESIDUAL else TOLERANCE
    if fit.correlation < CLEAR_CORRELATION or abs(ratio - 1) <= allowed or _too_sparse(run, stated, fit):
        return
    causes = dict(_DT_FACTORS)
    if 1 < round(ratio) < 100:
        saved = f"perhaps one frame in {round(ratio)} was saved: dt is the time between saved frames"
        causes[float(round(ratio))] = saved
    nearest = min(causes, key=lambda factor: abs(ratio / factor - 1))
    likely = causes[nearest] if abs(ratio / nearest - 1) < 0.02 else None
    # A wrong unit leaves the motion explained by another dt; wrong masses of some elements do not.
    if likely is None or fit.residual > _LEFT_BY_MASSES:
        likely = masses_advice(positions, run.forces, run.masses, run.atomic_numbers, stated * FS) or likely
    who = "you state" if by_user else "its time stamps say"
    remedy = "" if by_user else "; `dt` (fs between frames) overrides the time stamps"
    raise UserError(
        f"{run.file}: {who} {stated:g} fs between frames, but positions and forces say "
        f"{fit.dt / FS:.4g} fs (factor {ratio:.4g}, correlation {fit.correlation:.3f}); "
        f"{likely or 'check dt, the unit of the forces and the masses'}{remedy}."
    )


def _too_sparse(run: RawRun, stated: float, fit: DtFit) -> bool:
    """Whether frames lie so far apart that no dt explains the motion, and the best says nothing."""
    if fit.residual < _SPARSE_RESIDUAL or run.velocities is None:
        return False
    period = instant_period(run.velocities, run.forces, run.masses)
    return period is not None and stated * FS > period / 3


def _settle_velocities(
    run: RawRun, positions: FloatArray, dt: float, notes: list[str]
) -> tuple[FloatArray, VelocitiesOrigin]:
    """Velocities at the frames: the file's, shifted from its half steps, or rebuilt."""
    velocities = run.displacements / dt if run.displacements is not None else run.velocities
    moves = bool(moving_atoms(positions).size)
    if velocities is not None and moves and not velocities.any():
        notes.append("All velocities in the file are zero although the atoms move; they are not used.")
        velocities = None
    if velocities is None:
        notes.append("Velocities rebuilt from positions and forces by the velocity-Verlet relation.")
        return verlet_velocities(positions, run.forces, run.masses, dt, run.breaks), "rebuilt"
    check_finite(velocities, "velocities", run.file)
    if not moves:
        return velocities, "read"
    shifted = from_half_steps(positions, velocities, run.forces, run.masses, dt)
    if shifted is not None:
        notes.append("Velocities in the file belong to half steps (leapfrog); shifted by half a step.")
        return shifted, "shifted"
    refuse_wrong_unit(positions, velocities, run.forces, run.masses, dt, run.file)
    return velocities, "read"
