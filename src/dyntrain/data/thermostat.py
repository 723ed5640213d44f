"""Thermostat: what a run's departure from F = ma says of its ensemble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dyntrain.data.constraints import Held
from dyntrain.data.motion import cosine, moving_atoms, second_difference
from dyntrain.data.trajectory import FloatArray, IntArray, Trajectory

Ensemble = Literal["nve", "nose-hoover", "berendsen", "csvr", "langevin", "rescaling", "unknown"]

_EXACT = 1e-3
# Noise is named where it turns the total momentum by this share of the atoms' momenta between two frames.
_TURNED = 0.1


@dataclass(frozen=True, eq=False)
class Motion:
    """How far forces explain the second differences of the positions, away from breaks.

    residual, residual_held, residual_after_friction: medians over atoms and frames of the unexplained part
        over dt²F/m: as it is; without what constraints, the centre of mass and a changing cell do (`Held`);
        and with one friction coefficient a frame (a = F/m − ξ v) fitted besides.
    rms_residual: rms of the part unexplained by forces and `Held` over rms of dt²F/m: sees what strikes few
        atoms or frames.
    friction: ξ of each inner frame, 1/ASE time, [n_inner]; `temperature`: Σ m v² of the same frames.
    bath: the unexplained part read as that of a Langevin bath.
    frames: the inner frames, int64 [n_inner].
    """

    residual: float
    residual_held: float
    residual_after_friction: float
    rms_residual: float
    friction: FloatArray
    temperature: FloatArray
    bath: Bath
    frames: IntArray


@dataclass(frozen=True, eq=False)
class Bath:
    """What forces leave unexplained, as one friction for the whole run and noise.

    friction: of a step, ξ dt.
    noise: what forces and this friction leave, mass-weighted, over dt, [n_inner, n_moving, 3].
    share: of each atom's noise that can show beside what is removed with `Held`, [n_moving].
    force_factor: how much of the given forces acts, with its standard error `force_error`; the noise of a
        Langevin step hides forces, but not on average.
    """

    friction: float
    noise: FloatArray
    share: FloatArray
    force_factor: float
    force_error: float

    @property
    def forces_act(self) -> bool:
        """Whether the given forces may be the run's own, whose factor falls to 0.7 at a friction of 1/dt."""
        return abs(self.force_factor - 1) < 0.5 + 2 * self.force_error


def inner_frames(trajectory: Trajectory) -> IntArray:
    """Frames whose two neighbours belong to the same stretch, int64."""
    inner = np.ones(trajectory.n_frames, dtype=bool)
    inner[[0, -1]] = False
    for b in trajectory.breaks:
        inner[[b - 1, b]] = False
    return np.flatnonzero(inner)


def measure(trajectory: Trajectory, held: Held) -> Motion | None:
    """Hold the motion against the forces; None where no frame has two neighbours or nothing moves."""
    t, atoms, frames = trajectory, held.atoms, inner_frames(trajectory)
    if not atoms.size or not frames.size:
        return None
    root = np.sqrt(t.masses[atoms])[:, None]
    r = t.positions[:, atoms]
    moved = root * second_difference(r)[frames - 1]
    velocities = root * (r[2:] - r[:-2])[frames - 1] / (2 * t.dt)
    pulls = t.forces[frames][:, atoms] / root
    gap = moved - t.dt**2 * pulls
    leave_out = held.projection(r[frames], root)
    left, along = leave_out(gap), leave_out(velocities)
    squares = np.einsum("kia,kia->k", along, along)
    work = np.einsum("kia,kia->k", left, along)
    friction = -np.divide(work, squares, out=np.zeros_like(work), where=squares > 0) / t.dt**2
    rest = left + t.dt**2 * friction[:, None, None] * along
    some = slice(None, None, max(1, frames.size // 100))
    white = np.random.default_rng(0).normal(size=gap[some].shape)
    share = np.square(held.projection(r[frames][some], root)(white)).mean(axis=(0, 2))
    size = t.dt**2 * pulls
    return Motion(
        residual=_median_ratio(gap, size),
        residual_held=_median_ratio(left, size),
        residual_after_friction=_median_ratio(rest, size),
        rms_residual=float(np.sqrt((left**2).sum() / (size**2).sum())) if pulls.any() else np.inf,
        friction=friction,
        temperature=np.einsum("kia,kia->k", velocities, velocities),
        bath=_bath(left / t.dt, along, t.dt * leave_out(pulls), share, frames),
        frames=frames,
    )


def _bath(
    left: FloatArray, velocities: FloatArray, pulls: FloatArray, share: FloatArray, frames: IntArray
) -> Bath:
    """The bath whose friction makes what is `left` independent of the velocities two frames earlier.

    Those of the same frame hold half of the noise themselves, and would tell of less friction.
    """
    later = 2 + np.flatnonzero(frames[2:] - frames[:-2] == 2)
    before = velocities[later - 2]
    kept = float((velocities[later] * before).sum())
    friction = -float((left[later] * before).sum()) / kept if kept else 0.0
    noise = left + friction * velocities
    square = float((pulls * pulls).sum())
    factor = 1 + float((noise * pulls).sum()) / square if square else np.nan
    error = float(np.sqrt((noise**2).sum() / (noise.size * square))) if square else np.inf
    return Bath(friction, noise, share, factor, error)


def guess_ensemble(motion: Motion, *, barostat: bool = False, noisy_forces: bool = False) -> Ensemble:
    """Name what acted beside the forces, from how it moves in time; "unknown" unless that is clear.

    One friction a frame explains Nosé–Hoover, Berendsen, CSVR and velocity rescaling alike; its course
    tells them apart: a function of the momentary temperature (Berendsen), its derivative one
    (Nosé–Hoover), uncorrelated in time (CSVR), non-zero at few frames (rescaling).

    Args:
        barostat: whether the cell changes.
        noisy_forces: whether the noise lies in the forces, so that it tells of no bath.
    """
    explained = motion.residual_after_friction
    friction_helps = motion.residual_held > 1e-6 and explained < 0.05 * motion.residual_held
    if motion.residual_held < _EXACT and not friction_helps:
        # Collisions (Andersen) leave most atoms of most frames alone: medians do not see them.
        # What a barostat scales is no NVE; it has no name here.
        conserved = motion.rms_residual < 10 * _EXACT and (motion.residual < _EXACT or not barostat)
        return "nve" if conserved else "unknown"
    if not (explained < _EXACT or friction_helps):
        bath_acts = not noisy_forces and motion.bath.forces_act and is_white_noise(motion)
        return "langevin" if bath_acts else "unknown"
    if motion.friction.size < 20:
        return "unknown"
    return _kind_of_friction(motion.friction, motion.temperature)


def _kind_of_friction(friction: FloatArray, temperature: FloatArray) -> Ensemble:
    if np.mean(np.abs(friction) > 0.05 * np.abs(friction).max()) < 0.2:
        return "rescaling"
    if _lagged(friction, -1 / temperature) > 0.95:
        return "berendsen"
    # A single Nosé–Hoover thermostat gives 1, a chain about 0.8, the other kinds below 0.4.
    if _lagged(np.gradient(friction), temperature) > 0.7:
        return "nose-hoover"
    if abs(_pearson(friction[1:], friction[:-1])) < 0.5:
        return "csvr"
    return "unknown"


def is_white_noise(motion: Motion) -> bool:
    """Whether the unexplained part is what a Langevin bath does.

    Mass-weighted it must be equally large for all atoms, uncorrelated with itself two or more frames later,
    and no larger than a friction of about 1/dt makes it (variance 2 ξ k_B T dt).
    """
    noise, share = motion.bath.noise, motion.bath.share
    n = noise.shape[0]
    if n < 20:
        return False
    free = share > 0.05  # an atom that constraints and the like leave no freedom says nothing
    if not free.any():
        return False
    per_atom = np.einsum("kia,kia->i", noise, noise)[free] / (3 * n * share[free])
    kinetic = motion.temperature.mean() / (3 * noise.shape[1])
    even = per_atom.max() < 3 * per_atom.min()
    later = max(abs(cosine(noise[lag:], noise[:-lag])) for lag in (2, 3, 5))
    return bool(even and later < 0.15 and per_atom.mean() < 2.5 * kinetic)


def noise_between_frames(run: Trajectory) -> bool:
    """Whether something random acts on the atoms one by one, seen however far the frames lie apart.

    Forces between the atoms and a friction common to all of them (Nosé–Hoover, Berendsen, CSVR) keep the
    direction of the total momentum and, where no lattice exerts a torque, of the angular momentum; Langevin's
    noise and Andersen's collisions turn them. Net forces and torques that the frames show (fixed atoms, a
    lattice) leave the matter open, and so does a lattice whose centre of mass is held: False then.
    """
    moving = moving_atoms(run.positions)  # what pushes those that are fixed is lost to them
    r, forces, masses = run.positions[:, moving], run.forces[:, moving], run.masses[moving]
    momenta = masses[:, None] * run.velocities[:, moving]
    arms = r - np.einsum("kia,i->ka", r, masses)[:, None] / masses.sum()
    steps = np.setdiff1d(np.arange(run.n_frames - 1), np.array(run.breaks, dtype=np.int64) - 1)
    for parts, pulls in ((momenta, forces), (np.cross(arms, momenta), np.cross(arms, forces))):
        total = parts.sum(axis=1)
        along = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-300)
        turned = np.linalg.norm(np.cross(total[steps + 1], along[steps]), axis=1)
        pushed = run.dt * np.linalg.norm(pulls.sum(axis=1), axis=1)
        usual = np.sqrt((parts**2).sum(axis=(1, 2)).mean())
        if _rms(turned) > max(_TURNED * usual, 3 * _rms(pushed)):
            return True
    return False


def _rms(x: FloatArray) -> float:
    return float(np.sqrt((x**2).mean())) if x.size else 0.0


def _lagged(x: FloatArray, y: FloatArray) -> float:
    """Largest correlation with y a frame earlier, at the same frame, or a frame later."""
    return max(_pearson(x[1:], y[:-1]), _pearson(x, y), _pearson(x[:-1], y[1:]))


def _pearson(x: FloatArray, y: FloatArray) -> float:
    return cosine(x - x.mean(), y - y.mean())


def _median_ratio(gap: FloatArray, size: FloatArray) -> float:
    above, below = np.linalg.norm(gap, axis=-1), np.linalg.norm(size, axis=-1)
    return float(np.median(above[below > 0] / below[below > 0])) if (below > 0).any() else float("inf")
