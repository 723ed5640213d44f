"""Motion: what positions and forces of a run say of each other: dt, residual, wrapping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dyntrain.data.trajectory import FloatArray, IntArray

# Reading the stride off the two-term fit: (1 − 1/n²)/12 is 0 for every frame saved, 0.0625 for every second.
_CURVATURE_STRIDED = 0.03
# Noisy forces explain most as a mean over three frames, 1 + δ²/3; no stride comes near that third.
_CURVATURE_NOISY = 0.2
# A frame whose misfit is this many times the median is left out of the fits (resets, jumps).
_OUTLIER = 10.0
# A full strain has 9 numbers a frame: of fewer atoms than this it would explain too much, whatever they do.
_ATOMS_FOR_FULL_STRAIN = 9


@dataclass(frozen=True)
class DtFit:
    """The interval between frames for which forces explain the motion best.

    dt:          ASE time; NaN where the forces explain nothing (see `correlation`).
    correlation: of the second differences of the positions with the fitted forces; negative where the
                 forces point against the motion.
    residual:    median |r(t+dt) − 2r(t) + r(t−dt) − dt²F/m| / |dt²F/m| over atoms and frames.
    error:       standard error of dt over dt, for an unexplained part that is white noise.
    curvature:   second coefficient over the first in δ²r = c₁ F/m + c₂ δ²F/m: (1 − 1/n²)/12 where every
                 n-th step of a velocity-Verlet run was saved, 0 where all were.
    curvature_error: its standard error.
    smoothed:    whether forces explain more as means over neighbouring frames, as where steps are missing
                 between these or where the forces are noisy.
    noisy:       whether what the forces leave of the motion is mostly an error that each frame's have of
                 their own.
    """

    dt: float
    correlation: float
    residual: float
    error: float
    curvature: float
    curvature_error: float
    smoothed: bool
    noisy: bool

    @property
    def strided(self) -> bool:
        """Whether frames are clearly missing between the given ones."""
        clear = self.curvature - 3 * self.curvature_error > _CURVATURE_STRIDED
        return self.smoothed and clear and not self.noisy

    @property
    def unstrided(self) -> bool:
        """Whether clearly every step is there."""
        return self.curvature + 3 * self.curvature_error < _CURVATURE_STRIDED


def cosine(x: FloatArray, y: FloatArray) -> float:
    """Σxy / √(Σx² Σy²), the correlation of what has no mean; 0 where one of them vanishes."""
    norm = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / norm if norm > 0 else 0.0


def second_difference(x: FloatArray) -> FloatArray:
    """x(k+1) − 2x(k) + x(k−1) along the first axis, [n − 2, ...]."""
    return x[2:] - 2 * x[1:-1] + x[:-2]


def moving_atoms(positions: FloatArray) -> IntArray:
    """Atoms that move at all during the run, int64 [n_moving]."""
    return np.flatnonzero((np.ptp(positions, axis=0) > 0).any(axis=1))


def instant_period(velocities: FloatArray, forces: FloatArray, masses: FloatArray) -> float | None:
    """The shortest 2π √(⟨v²⟩/⟨a²⟩) of an atom along any direction, ASE time; None where nothing moves.

    It holds no frame against another, so that frames far apart tell it as well; a mean over the modes, it is
    never shorter than the fastest period.
    """
    accelerations = (forces - forces.mean(axis=0)) / masses[:, None]
    moving = (np.ptp(velocities, axis=0) > 0).all(axis=1)
    if not moving.any() or velocities.shape[0] < 4:
        return None
    v2, a2 = (np.einsum("kia,kib->iab", x[:, moving], x[:, moving]) for x in (velocities, accelerations))
    fastest = float(np.linalg.eigvals(np.linalg.pinv(v2) @ a2).real.max())
    return 2 * np.pi / float(np.sqrt(fastest)) if fastest > 0 else None


def unwrap(positions: FloatArray, cell: FloatArray, pbc: np.ndarray) -> tuple[FloatArray, IntArray]:
    """Undo jumps by lattice vectors between frames (along periodic directions).

    Args:
        positions: [n_frames, n_atoms, 3] Å.
        cell: [3, 3] or [n_frames, 3, 3] Å; every periodic direction has its vector.
        pbc: [3].

    Returns:
        Positions continuous in time, and the frames at which some atom had jumped, int64.
    """
    periodic = np.asarray(pbc, dtype=bool)
    nothing = np.empty(0, np.int64)
    if not periodic.any():
        return positions, nothing
    # A non-periodic direction may have no vector: a unit normal in its place leaves the other components.
    vectors = complete(cell, periodic)
    fractional = positions @ np.linalg.inv(vectors)
    jumps = np.where(periodic, np.rint(np.diff(fractional, axis=0)), 0.0)
    frames = 1 + np.flatnonzero(jumps.any(axis=(1, 2)))
    if frames.size == 0:
        return positions, nothing
    shifts = np.concatenate([np.zeros_like(jumps[:1]), np.cumsum(jumps, axis=0)])
    return positions - shifts @ vectors, frames


def complete(cell: FloatArray, periodic: np.ndarray) -> FloatArray:
    """The cell with orthogonal unit vectors along non-periodic directions, [..., 3, 3] Å."""
    completed = np.array(cell, dtype=np.float64)
    missing = np.flatnonzero(~periodic)
    if missing.size:
        for vectors in completed.reshape(-1, 3, 3):
            # The right singular vectors beyond the rank span what the periodic vectors leave free.
            normals = np.linalg.svd(vectors[periodic], full_matrices=True)[2][3 - missing.size :]
            vectors[missing] = normals
    return completed


def fit_dt(
    positions: FloatArray,
    forces: FloatArray,
    masses: FloatArray,
    *,
    without_friction: bool = False,
) -> DtFit:
    """Infer the interval between frames from δ²r = dt² F/m.

    Fitted with weights of the square root of the masses, for which a thermostat's noise is even over the
    atoms. Plain least squares is biased where steps are missing between frames (δ²r is then no longer
    dt² F/m), so δ²F/m enters the fit as well where it is significant.

    Args:
        positions: [n_frames, n_atoms, 3] Å, unwrapped, n_frames ≥ 3.
        forces: [n_frames, n_atoms, 3] eV/Å.
        masses: [n_atoms] u.
        without_friction: leave out of both sides, at each frame, what a friction common to all atoms
            (a thermostat) and a common acceleration (centre-of-mass removal) could do.
    """
    atoms = moving_atoms(positions)
    root = np.sqrt(masses[atoms])[:, None]
    r, force = positions[:, atoms], forces[:, atoms]
    pulls = force / root
    left, right, bend = root * second_difference(r), pulls[1:-1], second_difference(pulls)
    if without_friction:
        everything_moves = atoms.size == positions.shape[1]
        common = common_directions(root) if everything_moves else []
        directions = orthonormal(*common, root * (r[2:] - r[:-2]))
        left, right, bend = (remove(x, directions) for x in (left, right, bend))
    return fit_sides(left, right, bend)


def fit_sides(left: FloatArray, right: FloatArray, bend: FloatArray) -> DtFit:
    """`fit_dt` for √m δ²r, F/√m and δ²F/√m at the inner frames, each [n, n_atoms, 3]."""
    left, right, bend = (x.reshape(x.shape[0], -1) for x in (left, right, bend))
    size = np.einsum("kj,kj->k", right, right)
    if not (size > 0).any() or not left.any():
        return DtFit(np.nan, 0.0, np.inf, np.inf, 0.0, np.inf, False, False)
    # Start from the median over frames, so that a few jumps cannot pull the fit, then leave those out.
    squared_dt = np.median(np.einsum("kj,kj->k", left, right)[size > 0] / size[size > 0])
    misfit = np.linalg.norm(left - squared_dt * right, axis=1)
    kept = misfit <= _OUTLIER * np.median(misfit)
    whole = left, right, bend, kept
    left, right, bend = left[kept], right[kept], bend[kept]
    squared_dt = (left * right).sum() / (right * right).sum()
    fitted = squared_dt * right
    residual = _residual(left, fitted)
    terms = np.stack([right.ravel(), bend.ravel()], axis=1)
    found, noisy = _two_terms(left.ravel(), terms, terms), False
    smoothed = bool(found.is_above(_CURVATURE_STRIDED) and found.terms[0] > 0)
    if smoothed:
        apart = _by_other_frames(*whole)
        noise_shows = found.is_above(_CURVATURE_NOISY) or apart.is_below(_CURVATURE_STRIDED)
        noisy = noise_shows and _noise_share(left, right, bend, float(apart.terms[0])) > 0.5
        squared_dt, fitted = found.terms[0], (terms @ found.terms).reshape(left.shape)
        found = apart
    dt = float(np.sqrt(squared_dt)) if squared_dt > 0 else np.nan
    correlation = cosine(left, fitted) * (1.0 if squared_dt > 0 else -1.0)
    spread = np.sqrt(((left - fitted) ** 2).sum() / (left.size * (right * right).sum()))
    error = float(0.5 * spread / abs(squared_dt))
    return DtFit(dt, correlation, residual, error, found.curvature, found.error, smoothed, noisy)


def _noise_share(left: FloatArray, right: FloatArray, bend: FloatArray, squared_dt: float) -> float:
    """How much of the misfit's square is noise ε of the forces, −dt² ε in the misfit and δ²ε in δ²F."""
    misfit = left - squared_dt * right
    return float(squared_dt * (misfit * bend).sum() / (2 * (misfit * misfit).sum()))


class _TwoTerms(NamedTuple):
    """c₂/c₁ with its standard error, and c₁, c₂ [2]."""

    curvature: float
    error: float
    terms: FloatArray

    def is_above(self, limit: float) -> bool:
        return self.curvature - 3 * self.error > limit

    def is_below(self, limit: float) -> bool:
        return self.curvature + 3 * self.error < limit


def _two_terms(left: FloatArray, terms: FloatArray, instruments: FloatArray) -> _TwoTerms:
    """The c of left = terms @ c whose misfit does not correlate with the instruments.

    With the terms themselves as instruments this is least squares, which an error of the terms biases;
    instruments with other errors do not (method of instrumental variables).

    Args:
        left: [n].
        terms, instruments: [n, 2].
    """
    normal = instruments.T @ terms
    if left.size < 4 or not abs(np.linalg.det(normal)) > 1e-12 * abs(normal[0, 0] * normal[1, 1]):
        return _TwoTerms(0.0, np.inf, np.zeros(2))
    inverse = np.linalg.inv(normal)
    both = np.asarray(inverse @ (instruments.T @ left), dtype=np.float64)
    misfit = left - terms @ both
    # Noise is of another size for each element (White's standard error).
    spread = inverse @ (instruments.T * misfit**2 @ instruments) @ inverse.T * left.size / (left.size - 2)
    return _TwoTerms(float(both[1] / both[0]), float(np.sqrt(spread[1, 1]) / abs(both[0])), both)


def _by_other_frames(left: FloatArray, right: FloatArray, bend: FloatArray, kept: np.ndarray) -> _TwoTerms:
    """The two-term fit by the forces two and three frames away, which share no error with F and δ²F."""
    inner, kept = slice(3, -3), kept[3:-3]
    near, far = right[1:-5] + right[5:-1], right[:-6] + right[6:]
    terms, instruments = (
        np.stack([x[kept].ravel(), y[kept].ravel()], axis=1)
        for x, y in ((right[inner], bend[inner]), (near, far))
    )
    return _two_terms(left[inner][kept].ravel(), terms, instruments)


def _residual(left: FloatArray, fitted: FloatArray) -> float:
    """Median over atoms and frames of |left − fitted| / |fitted|, atoms along the last axis in threes."""
    gap = np.linalg.norm((left - fitted).reshape(-1, 3), axis=1)
    size = np.linalg.norm(fitted.reshape(-1, 3), axis=1)
    return float(np.median(gap[size > 0] / size[size > 0]))


def orthonormal(*directions: FloatArray) -> FloatArray:
    """Orthonormal directions spanning those given, frame by frame.

    Args:
        directions: each [n, n_atoms, 3] (or without n for all frames alike), mass-weighted, any length.

    Returns:
        [n, n_directions, 3 n_atoms]; a row is zero where its direction adds nothing to those before.
    """
    n = max(d.shape[0] for d in directions if d.ndim == 3)
    rows: list[FloatArray] = []
    for direction in directions:
        row = np.broadcast_to(direction.reshape(*direction.shape[:-2], -1), (n, direction.shape[-2] * 3))
        size = np.linalg.norm(row, axis=1, keepdims=True)
        for other in rows:
            row = row - np.einsum("kj,kj->k", row, other)[:, None] * other
        norm = np.linalg.norm(row, axis=1, keepdims=True)
        # What is left of a parallel direction is rounding, and would be noise if it were normalised.
        rows.append(np.divide(row, norm, out=np.zeros_like(row), where=norm > 1e-8 * size))
    return np.stack(rows, axis=1)


def common_directions(root_masses: FloatArray) -> list[FloatArray]:
    """The three directions of a motion of all atoms together, each [n_atoms, 3], mass-weighted."""
    return [root_masses * axis for axis in np.eye(3)] if root_masses.shape[0] > 1 else []


def strains(r: FloatArray, root_masses: FloatArray) -> list[FloatArray]:
    """Directions of a homogeneous strain about the centre: all nine, or the isotropic one for few atoms."""
    stretched = root_masses * (r - r.mean(axis=1, keepdims=True))
    if r.shape[1] < _ATOMS_FOR_FULL_STRAIN:
        return [stretched]
    return [stretched[..., [b]] * np.eye(3)[a] for a in range(3) for b in range(3)]


def remove(x: FloatArray, directions: FloatArray) -> FloatArray:
    """x [n, n_atoms, 3] without its components along orthonormal directions [n, n_directions, 3 n_atoms]."""
    flat = x.reshape(x.shape[0], -1)
    along = np.einsum("kdj,kj->kd", directions, flat)
    return (flat - np.einsum("kd,kdj->kj", along, directions)).reshape(x.shape)
