"""Velocities: rebuilt where a file has none, shifted from half steps, refused in a wrong unit."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from dyntrain.data.motion import cosine
from dyntrain.data.trajectory import FloatArray
from dyntrain.errors import UserError
from dyntrain.units import BOHR, FS

# Above this correlation with the motion a factor between the two is clear, and refused beyond the tolerance.
CLEAR_CORRELATION = 0.9
TOLERANCE = 0.1

# Multiplying a number in this unit by the factor gives Å / ASE time.
_UNITS = {
    "Å/fs": 1 / FS,
    "Å/ps": 1e-3 / FS,
    "nm/ps": 1e-2 / FS,
    "m/s": 1e-5 / FS,
    "bohr/fs": BOHR / FS,
    "atomic units": 41.341374 * BOHR / FS,  # bohr per ħ/hartree, of which a fs has 41.34
}


def verlet_velocities(
    positions: FloatArray,
    forces: FloatArray,
    masses: FloatArray,
    dt: float,
    breaks: tuple[int, ...] = (),
) -> FloatArray:
    """Velocities of the velocity-Verlet run with these positions and forces, [n_frames, n_atoms, 3].

    Inside a stretch v(k) = [r(k+1) − r(k−1)] / 2dt; at its ends, from the positions on one side and the
    force: v(k) = [r(k+1) − r(k)]/dt − ½ F(k)/m dt, and mirrored. A frame alone between two breaks has no
    such neighbour and keeps the central difference: no step ever starts from it.
    """
    step = np.diff(positions, axis=0) / dt
    half = 0.5 * dt * forces / masses[:, None]
    velocities = np.empty_like(positions)
    velocities[1:-1] = 0.5 * (step[1:] + step[:-1])
    edges = [0, *breaks, positions.shape[0]]
    for first, stop in itertools.pairwise(edges):
        last = stop - 1
        if last > first or first == 0:
            velocities[first] = step[first] - half[first]
        if last > first or stop == positions.shape[0]:
            velocities[last] = step[last - 1] + half[last]
    return velocities


def from_half_steps(
    positions: FloatArray, velocities: FloatArray, forces: FloatArray, masses: FloatArray, dt: float
) -> FloatArray | None:
    """Velocities at the frames if those given are v(k − ½) or v(k + ½) of a leapfrog run, else None.

    Half-step velocities are the steps of the positions, [r(k) − r(k−1)]/dt, to the digits of the file;
    ½ F/m dt leads from there to the frame.
    """
    step = np.diff(positions, axis=0) / dt
    if step.shape[0] < 3:
        return None
    inner, size = velocities[1:-1], float(np.abs(step).mean())
    full = float(np.abs(inner - 0.5 * (step[1:] + step[:-1])).mean())
    half_kick = 0.5 * dt * forces / masses[:, None]
    for half_step, sign in ((step[:-1], 1.0), (step[1:], -1.0)):
        gap = float(np.abs(inner - half_step).mean())
        if gap < 0.01 * size and gap < 0.2 * full:
            return velocities + sign * half_kick
    return None


class _Match(NamedTuple):
    correlation: float
    factor: float
    advice: str


def velocity_match(
    positions: FloatArray, velocities: FloatArray, forces: FloatArray, masses: FloatArray, dt: float
) -> tuple[float, float]:
    """(correlation, factor) of the motion between frames against the given velocities.

    The factor is what the velocities must be multiplied by to explain the motion: 1 when all is well.
    """
    moved, mean = _moved_and_mean(positions, velocities, forces, masses, dt)
    match = _match(moved, mean, "")
    return match.correlation, match.factor


def refuse_wrong_unit(
    positions: FloatArray,
    velocities: FloatArray,
    forces: FloatArray,
    masses: FloatArray,
    dt: float,
    file: str,
) -> None:
    """Refuse velocities that are a clear multiple of what the positions do.

    Raises:
        UserError: names the factor and the likeliest unit.
    """
    moved, mean = _moved_and_mean(positions, velocities, forces, masses, dt)
    mass = masses[:, None]
    plain = _match(moved, mean, "")
    if plain.correlation < -CLEAR_CORRELATION:
        raise UserError(
            f"{file}: the velocities point against the motion of the positions; the frames are in reverse "
            "order, or the velocities have the wrong sign."
        )
    confused = (
        _match(moved, mean / mass, "they look like momenta: divide them by the masses"),
        _match(moved, mean * mass, "the momenta seem to hold velocities: multiply them by the masses"),
    )
    best = max(confused, key=lambda match: match.correlation)
    # Where all masses are alike the three differ by a factor only, and the plain reading comes first.
    if plain.correlation > 0.98 * best.correlation:
        best = plain
    if best.correlation < CLEAR_CORRELATION or (best is plain and abs(plain.factor - 1) <= TOLERANCE):
        return
    advice = best.advice or _name_unit(best.factor, masses)
    raise UserError(
        f"{file}: the velocities are {1 / plain.factor:.4g} times what the finite differences of the "
        f"positions give; {advice} (expected is ASE's unit, Å/fs times {1 / FS:.3f}, stored as momenta)."
    )


def _name_unit(factor: float, masses: FloatArray) -> str:
    units = dict(_UNITS)
    if not np.ptp(masses):
        units |= {"momenta (divide them by the mass)": 1 / masses[0]}
    name = next((name for name, size in units.items() if abs(factor / size - 1) < 0.05), None)
    return f"they look like {name}" if name else "check their unit, and dt"


def _moved_and_mean(
    positions: FloatArray, velocities: FloatArray, forces: FloatArray, masses: FloatArray, dt: float
) -> tuple[FloatArray, FloatArray]:
    """Mass-weighted displacements between frames and what the velocities make of them, jumps left out.

    r(k+1) − r(k) = dt [v(k) + v(k+1)]/2 + c dt² [a(k) − a(k+1)] with c = 1/4 for every step of velocity
    Verlet and c = 1/12 (up to dt⁵) for a smooth path, that is, where only every n-th step was saved.
    """
    root = np.sqrt(masses)[:, None]
    mean = 0.5 * dt * root * (velocities[1:] + velocities[:-1])
    bend = dt**2 * np.diff(forces, axis=0) / root
    step = root * np.diff(positions, axis=0)
    size = np.linalg.norm(step.reshape(step.shape[0], -1), axis=1)
    kept = size <= 5 * np.median(size)
    mean, bend, step = mean[kept], bend[kept], step[kept]
    candidates = (step + bend / 4, step + bend / 12)
    return max(candidates, key=lambda moved: _match(moved, mean, "").correlation), mean


def _match(moved: FloatArray, mean: FloatArray, advice: str) -> _Match:
    square = float((mean * mean).sum())
    factor = float((moved * mean).sum()) / square if square > 0 else np.nan
    return _Match(cosine(moved, mean), factor, advice)
