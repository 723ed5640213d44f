"""Contents: temperatures, distances, energies and repetitions in a run, each measured by itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dyntrain.data.motion import complete, cosine
from dyntrain.data.thermostat import inner_frames
from dyntrain.data.trajectory import FloatArray, IntArray, Trajectory
from dyntrain.data.velocities import CLEAR_CORRELATION
from dyntrain.units import FS, KB

# Closest distances are looked for in at most so many frames, and pairs of atoms in all of them together.
_SAMPLED_FRAMES, _SAMPLED_PAIRS = 200, 20_000_000


def mean_temperature(run: Trajectory, moving: IntArray) -> float | None:
    """Mean of Σ m v² / (3 N k_B) over the atoms that move, K."""
    return _temperature(run.velocities[:, moving], run.masses[moving])


def finite_difference_temperature(run: Trajectory, moving: IntArray) -> float | None:
    """The same from [r(k+1) − r(k−1)] / 2dt, away from breaks, K."""
    frames = inner_frames(run)
    if not frames.size:
        return None
    velocities = (run.positions[frames + 1] - run.positions[frames - 1])[:, moving] / (2 * run.dt)
    return _temperature(velocities, run.masses[moving])


def _temperature(velocities: FloatArray, masses: FloatArray) -> float | None:
    if not masses.size:
        return None
    twice_kinetic = np.einsum("kia,kia,i->", velocities, velocities, masses)
    return float(twice_kinetic / (velocities.shape[0] * 3 * masses.size * KB))


def kick_ratio(run: Trajectory) -> float | None:
    """rms of the kicks √(|δr|² + |δv dt|²) over rms of dt²F/m, mass-weighted, breaks left out."""
    sizes = kick_sizes(run)[_steps_inside(run)]
    return float(np.sqrt((sizes**2).mean())) if sizes.size and np.isfinite(sizes).all() else None


def energy_exchange(run: Trajectory) -> float:
    """Correlation of the potential energy's changes with the losses of the kinetic energy; 1 in NVE.

    Unlike forces and motion these belong together however far the frames lie apart.
    """
    steps = _steps_inside(run)
    kinetic = 0.5 * np.einsum("kia,kia,i->k", run.velocities, run.velocities, run.masses)
    return cosine(np.diff(run.energies)[steps], -np.diff(kinetic)[steps])


def kick_sizes(run: Trajectory) -> FloatArray:
    """The same of each step, [n_frames − 1], over the run's rms of dt²F/m; nan where there are no forces."""
    moving = np.setdiff1d(np.arange(run.n_atoms), run.fixed_atoms)
    root = np.sqrt(run.masses[moving])[:, None]
    size = float(np.sqrt((run.dt**4 * (run.forces[:, moving] / root) ** 2).mean())) if moving.size else 0.0
    if size == 0:
        return np.full(run.n_frames - 1, np.nan)
    kicks = run.kicks()
    moved, turned = (root * kick.numpy()[:, moving] for kick in (kicks.positions, kicks.velocities * run.dt))
    return np.asarray(np.sqrt((moved**2 + turned**2).mean(axis=(1, 2))) / size)


def _steps_inside(run: Trajectory) -> IntArray:
    """First frames of all steps that cross no break."""
    steps = np.ones(run.n_frames - 1, dtype=bool)
    steps[[b - 1 for b in run.breaks]] = False
    return np.flatnonzero(steps)


# Energy steps that miss −F·Δr by so many times the run's median, and that of the steps around, are told of.
_ROUGH = 20.0
# … and errors of the stress above this share of its range.
_STRESS_NOISE = 0.01


class EnergyMatch(NamedTuple):
    """Energy changes against the work −F·Δr of the forces: both 1 where energies belong to the forces.

    jumps: frames b at which the energy jumps against b − 1 (left out of slope and correlation).
    rough: frames b reached by steps that differ far more than the others, yet too little to be jumps.
    """

    slope: float | None
    correlation: float | None
    jumps: tuple[int, ...]
    rough: tuple[int, ...] = ()


def energy_force_match(run: Trajectory) -> EnergyMatch:
    """Hold E(k+1) − E(k) against −½[F(k) + F(k+1)]·[r(k+1) − r(k)], breaks left out.

    Nothing is said of a changing cell whose stress does work that positions and forces do not show.
    """
    steps = _steps_inside(run)
    mean_force = 0.5 * (run.forces[steps] + run.forces[steps + 1])
    work = -np.einsum("kia,kia->k", mean_force, run.positions[steps + 1] - run.positions[steps])
    change = run.energies[steps + 1] - run.energies[steps]
    if steps.size < 3 or not (work.any() and change.any()):
        return EnergyMatch(None, None, ())
    large = np.abs(work) >= np.median(np.abs(work[work != 0]))
    misfit = np.abs(change - np.median(change[large] / work[large]) * work)
    odd = misfit > max(20 * float(np.median(misfit)), 0.3 * float(np.sqrt((work**2).mean())))
    # Where many steps are odd there are no jumps: the energies are simply not those of the forces.
    if odd.sum() > max(3, 0.05 * odd.size):
        odd[:] = False
    # A smooth run's misfit follows how fast its forces turn: hold each step also against those around it.
    usual = np.maximum(np.median(misfit), _median_around(misfit))
    rough = ~odd & (misfit > _ROUGH * usual)
    rough_frames = 1 + steps[rough] if rough.sum() <= max(3, 0.05 * rough.size) else steps[:0]
    jumps, work, change = 1 + steps[odd], work[~odd], change[~odd]
    slope = float((work * change).sum() / (work * work).sum())
    correlation = cosine(work, change)
    if not run.fixed_cell and correlation < CLEAR_CORRELATION:
        return EnergyMatch(None, None, ())
    return EnergyMatch(slope, correlation, tuple(jumps.tolist()), tuple(rough_frames.tolist()))


def stress_jumps(run: Trajectory) -> tuple[int, ...]:
    """Frames whose stress stands out against that of the two frames before and after, away from breaks.

    A run's stress is smooth in time: its fourth differences, 6 times an error in a single frame, stay small.
    """
    if run.stress is None:
        return ()
    odd: list[int] = []
    for first, stop in run.stretches:
        if stop - first < 12:
            continue
        bend = np.abs(np.diff(np.asarray(run.stress[first:stop]), n=4, axis=0)).max(axis=1)
        far = np.flatnonzero(bend > max(_ROUGH * float(np.median(bend)), _STRESS_NOISE * np.ptp(run.stress)))
        # An error in one frame shows in five differences: the largest is its own.
        groups = np.split(far, 1 + np.flatnonzero(np.diff(far) > 1)) if far.size else []
        odd += [first + 2 + int(group[bend[group].argmax()]) for group in groups]
    return tuple(odd) if len(odd) <= max(3, 0.05 * run.n_frames) else ()


def _median_around(x: FloatArray, reach: int = 3) -> FloatArray:
    """Median of the values up to `reach` before and after each, without it, [n]."""
    padded = np.concatenate([np.full(reach, np.nan), x, np.full(reach, np.nan)])
    shifts = [k for k in range(2 * reach + 1) if k != reach]
    return np.asarray(np.nanmedian([padded[k : k + x.size] for k in shifts], axis=0))


def drift(run: Trajectory) -> float | None:
    """Slope of the total energy in time, meV/atom/ps: one line, its own offset in each stretch."""
    kinetic = 0.5 * np.einsum("kia,kia,i->k", run.velocities, run.velocities, run.masses)
    total = run.energies + kinetic
    time_ps = np.arange(run.n_frames) * run.dt / FS / 1000.0
    above = below = 0.0
    for first, stop in run.stretches:
        t = time_ps[first:stop] - time_ps[first:stop].mean()
        above += float((t * total[first:stop]).sum())
        below += float((t * t).sum())
    return 1000.0 * above / below / run.n_atoms if below > 0 else None


def closest_distances(run: Trajectory) -> dict[str, float]:
    """Smallest distance of each element pair ("C-H") in Å, minimum image, over at most 200 frames."""
    first, second = np.triu_indices(run.n_atoms, k=1)
    affordable = int(np.clip(_SAMPLED_PAIRS // max(first.size, 1), 5, _SAMPLED_FRAMES))
    chosen = np.unique(np.linspace(0, run.n_frames - 1, affordable).astype(int))
    smallest = np.full(first.size, np.inf)
    for frame in chosen:
        smallest = np.minimum(smallest, _distances(run, int(frame), first, second))
    names = np.array(
        ["-".join(sorted((run.symbols[i], run.symbols[j]))) for i, j in zip(first, second, strict=True)]
    )
    return {str(name): float(smallest[names == name].min()) for name in np.unique(names)}


def frame_closest(run: Trajectory, frame: int) -> float:
    """Distance of the closest two atoms of one frame, Å, minimum image; nan for a single atom."""
    distances = _distances(run, frame, *np.triu_indices(run.n_atoms, k=1))
    return float(distances.min()) if distances.size else np.nan


def _distances(run: Trajectory, frame: int, first: IntArray, second: IntArray) -> FloatArray:
    vectors = run.positions[frame, second] - run.positions[frame, first]
    if run.pbc.any():
        cell = complete(run.cell_at(frame), run.pbc)
        images = np.where(run.pbc, np.rint(vectors @ np.linalg.inv(cell)), 0.0)
        vectors = vectors - images @ cell
    return np.asarray(np.linalg.norm(vectors, axis=1))


def repeated_frames(run: Trajectory) -> tuple[int, ...]:
    """Frames whose positions equal those of an earlier frame to the last digit."""
    seen: set[int] = set()
    repeated = []
    for frame in range(run.n_frames):
        key = hash(run.positions[frame].tobytes())
        if key in seen:
            repeated.append(frame)
        seen.add(key)
    return tuple(repeated)


def looks_shuffled(run: Trajectory) -> bool | None:
    """Whether frames lie far nearer to frames elsewhere in the file than to the next one.

    None where they do not: frames too far apart in time look the same as an unlucky order.
    """
    if run.alone:
        return None
    n = run.n_frames
    asked = np.unique(np.linspace(0, n - 2, _SAMPLED_FRAMES).astype(int))
    flat = (np.sqrt(run.masses)[:, None] * run.positions).reshape(n, -1)
    nearest, following = [], []
    for frame in asked:
        distances = np.linalg.norm(flat - flat[frame], axis=1)
        following.append(distances[frame + 1])
        distances[frame] = np.inf
        nearest.append(distances.min())
    return True if np.median(nearest) < 0.5 * np.median(following) else None
