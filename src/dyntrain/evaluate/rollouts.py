"""Roll-outs of a model against the recorded run it starts from, and its errors on single structures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase.data import chemical_symbols

from dyntrain import observables
from dyntrain.data.segments import Batch, collate, find_segments
from dyntrain.data.small_steps import by_small_steps
from dyntrain.data.trajectory import Trajectory
from dyntrain.evaluate.starts import Progress, as_numpy, chunks_of, common_dt_fs, longest_horizon, spread
from dyntrain.integrators import Kicks
from dyntrain.neighbors import VerletNeighbors, neighbor_list
from dyntrain.observables import FloatArray, IntArray
from dyntrain.potential import Potential
from dyntrain.rollout import BurstGuard, Frame, StopGradient
from dyntrain.simulate import device_of
from dyntrain.state import State, concatenate
from dyntrain.unroll import unroll

MARKS_FS = (0.0, 10.0, 25.0, 50.0, 100.0, 150.0)
"""Times at which tables give the errors of a roll-out."""


@dataclass(frozen=True)
class OneStepErrors:
    """Errors on single recorded structures, over ``n_frames`` of them.

    force_mae, force_rmse:  over all components, eV/Å
    force_mae_per_element:  symbol → eV/Å
    energy_mae:             meV/atom
    energy_mae_shifted:     without each run's mean error (dynamics does not feel it), meV/atom
    """

    n_frames: int
    force_mae: float
    force_rmse: float
    force_mae_per_element: dict[str, float]
    energy_mae: float
    energy_mae_shifted: float


@dataclass(frozen=True, eq=False)
class RolloutErrors:
    """Errors of roll-outs from recorded starts against the recording, its kicks applied.

    Every array is [n_times, n_starts] and NaN from the time a start has burst.

    times_fs:      [n_times], 0 first
    force_mae:     mean absolute error over the force components of a start, eV/Å
    force_rmse:    eV/Å
    force_mae_per_element: symbol → eV/Å (starts without the element: NaN)
    position_rmsd: root mean square distance of the atoms from where the recording has them, Å
    energy_error:  absolute error of the potential energy, meV/atom
    starts:        (file, frame in the file) of each start
    horizon_asked_fs: longer than ``times_fs[-1]`` where the runs do not allow it
    kick_share:    rms of the velocity kicks over the rms of F/m·dt: 0 for NVE to rounding
    twin_distance: rms distance of two roll-outs of the model from starts 1e-6 Å apart, Å: how fast a hair's
                   deviation grows by itself; NaN from the time one has burst
    doubling_time_fs: of such deviations while they are small; None where they do not double
    """

    times_fs: FloatArray
    force_mae: FloatArray
    force_rmse: FloatArray
    force_mae_per_element: dict[str, FloatArray]
    position_rmsd: FloatArray
    energy_error: FloatArray
    starts: tuple[tuple[str, int], ...]
    horizon_asked_fs: float
    kick_share: float
    twin_distance: FloatArray
    doubling_time_fs: float | None
    one_step: OneStepErrors

    @property
    def n_starts(self) -> int:
        return len(self.starts)

    @property
    def n_alive(self) -> IntArray:
        """Starts that have not burst, [n_times]."""
        return np.isfinite(self.force_rmse).sum(1)

    @property
    def horizon_fs(self) -> float:
        """The longest time compared."""
        return float(self.times_fs[-1])

    def index_at(self, time_fs: float) -> int | None:
        """The frame nearest to a time, None beyond the horizon."""
        index = int(np.abs(self.times_fs - time_fs).argmin())
        spacing = self.times_fs[1] - self.times_fs[0] if len(self.times_fs) > 1 else 0.0
        return index if abs(self.times_fs[index] - time_fs) <= 0.5 * spacing + 1e-9 else None

    def at_marks(self, errors: FloatArray, marks_fs: Sequence[float] = MARKS_FS) -> dict[float, float | None]:
        """Median over starts at the marked times within the horizon; None where half have burst."""
        median = observables.quantile_over_starts(errors, 0.5)
        places = {mark: self.index_at(mark) for mark in marks_fs}
        return {
            mark: observables.finite_or_none(median[index])
            for mark, index in places.items()
            if index is not None
        }


def rollout_errors(
    potential: Potential,
    trajectories: Sequence[Trajectory],
    *,
    horizon_fs: float = 150.0,
    n_starts: int = 16,
    seed: int = 0,
    guard: BurstGuard | None = None,
    progress: Progress | None = None,
) -> RolloutErrors:
    """Roll a model out from recorded starts and compare it with the recording.

    The recorded run's kicks are applied, so the true potential has no error whatever the ensemble; no
    roll-out crosses a break. If no run is long enough, the longest horizon that leaves six starts is used.

    Args:
        potential: the model, on its device.
        trajectories: held-out runs with one time step.
        horizon_fs: how long to follow, fs.
        n_starts: starts, at equal distances over all possible ones.
        seed: draws the first of them, and of the twin runs' displacements.
        guard: when a start counts as burst; default ``BurstGuard()``.
        progress: called after each step.

    Raises:
        UserError: no run, or different time steps.
    """
    dt_fs = common_dt_fs(trajectories)
    n_steps = longest_horizon(trajectories, max(round(horizon_fs / dt_fs), 0), n_starts)
    chosen = spread(find_segments(trajectories, n_steps + 1, "held-out"), n_starts, seed)
    chunks = [
        chunk for alike in by_small_steps(chosen, trajectories) for chunk in chunks_of(alike, trajectories)
    ]
    segments = [segment for chunk in chunks for segment in chunk]
    elements = sorted({int(z) for run in trajectories for z in run.atomic_numbers})
    guard = guard if guard is not None else BurstGuard()
    steps = _StepCount(progress, 2 * n_steps * len(chunks))
    tables, twins = [], []
    for chunk in chunks:
        batch = collate(chunk, trajectories).to(device_of(potential))
        tables.append(_errors_of(potential, batch, elements, guard, steps))
        twins.append(_twin_deviations(potential, batch, seed, guard, steps))
    table = np.concatenate(tables, axis=1)
    times = np.arange(n_steps + 1, dtype=np.float64) * dt_fs
    twin_distance, doubling = _separation(twins, times)
    per_element = {chemical_symbols[z]: table[..., 4 + n] for n, z in enumerate(elements)}
    return RolloutErrors(
        times_fs=times,
        force_mae=table[..., 0],
        force_rmse=table[..., 1],
        position_rmsd=table[..., 2],
        energy_error=table[..., 3],
        force_mae_per_element=per_element,
        starts=tuple((trajectories[s.run].file, trajectories[s.run].first_frame + s.start) for s in segments),
        horizon_asked_fs=horizon_fs,
        kick_share=_kick_share(trajectories),
        twin_distance=twin_distance,
        doubling_time_fs=doubling,
        one_step=one_step_errors(potential, trajectories),
    )


def _separation(twins: list[FloatArray], times: FloatArray) -> tuple[FloatArray, float | None]:
    """Twin distances of all chunks, [n_times, n_starts] NaN where one has ended; their doubling time."""
    together = min(len(deviations) for deviations in twins)
    distance = np.full((len(times), sum(d.shape[1] for d in twins)), np.nan)
    distance[:together] = np.concatenate([d[:together] for d in twins], axis=1)
    if together < 3:
        return distance, None
    return distance, observables.doubling_time(times[:together], distance[:together], _SMALL)


def one_step_errors(
    potential: Potential, trajectories: Sequence[Trajectory], max_frames: int = 512
) -> OneStepErrors:
    """Errors on recorded structures, evenly spaced over all runs, at most ``max_frames`` of them."""
    every_frame = find_segments(trajectories, 1, "held-out")
    count = min(max_frames, len(every_frame))
    chosen = every_frame.take(np.linspace(0, len(every_frame) - 1, count).round().astype(np.int64))
    differences, energy_errors = [], []
    for chunk in chunks_of(chosen, trajectories):
        batch = collate(chunk, trajectories).to(device_of(potential))
        with torch.no_grad():
            energy, forces = potential(batch.state, neighbor_list(batch.state, potential.cutoff))
        differences.append(as_numpy(forces - batch.targets.forces[0]))
        per_atom = (energy - batch.targets.energies[0]) / batch.state.n_atoms_per_system()
        energy_errors.append(1e3 * as_numpy(per_atom))
    difference, energy_error = np.concatenate(differences), np.concatenate(energy_errors)
    numbers = np.concatenate([trajectories[s.run].atomic_numbers for s in chosen])
    runs = chosen.runs
    shifts = np.bincount(runs, energy_error) / np.maximum(np.bincount(runs), 1)
    elements = sorted(set(numbers.tolist()))
    per_element = {chemical_symbols[z]: float(np.abs(difference[numbers == z]).mean()) for z in elements}
    return OneStepErrors(
        n_frames=count,
        force_mae=float(np.abs(difference).mean()),
        force_rmse=float(np.sqrt((difference**2).mean())),
        force_mae_per_element=per_element,
        energy_mae=float(np.abs(energy_error).mean()),
        energy_mae_shifted=float(np.abs(energy_error - shifts[runs]).mean()),
    )


def _errors_of(
    potential: Potential, batch: Batch, elements: list[int], guard: BurstGuard, steps: _StepCount
) -> FloatArray:
    """[length, n_systems, 4 + n_elements]: force MAE, RMSE, position RMSD, energy, force MAE by element."""
    start, targets, n_systems = batch.state, batch.targets, batch.state.n_systems
    table = np.full((batch.length, n_systems, 4 + len(elements)), np.nan)
    for frame in _unrolled(potential, batch, guard):
        steps.reached(frame.step)
        state, alive = frame.state, as_numpy(frame.systems)
        atoms = start.atoms_of(frame.systems)
        forces = as_numpy(frame.prediction.forces - targets.forces[frame.step, atoms])
        away = as_numpy(state.positions - targets.positions[frame.step, atoms])
        energy = frame.prediction.energy - targets.energies[frame.step, frame.systems]
        system_idx, numbers = as_numpy(state.system_idx), as_numpy(state.atomic_numbers)
        n_alive = state.n_systems
        row = table[frame.step]
        row[alive, 0] = observables.mae_per_system(forces, system_idx, n_alive)
        row[alive, 1] = observables.rmse_per_system(forces, system_idx, n_alive)
        row[alive, 2] = observables.displacement_per_system(away, system_idx, n_alive)
        row[alive, 3] = 1e3 * as_numpy(energy.abs() / state.n_atoms_per_system())
        row[alive, 4:] = observables.mae_per_element(forces, numbers, system_idx, elements, n_alive)
    steps.finish_part(batch.length - 1)
    return table


# Twins start 1e-6 Å apart (rounding of float32 networks moves that by a few percent) and are followed while
# they are closer than 0.1 Å.
_APART, _SMALL = 1e-6, 0.1


def _twin_deviations(
    potential: Potential, batch: Batch, seed: int, guard: BurstGuard, steps: _StepCount
) -> FloatArray:
    """RMS distance of each start from a twin a hair beside it, [n_times, n_systems] Å, until one bursts."""
    state, n_systems = batch.state, batch.state.n_systems
    generator = np.random.default_rng(seed)
    hair = torch.from_numpy(generator.standard_normal(tuple(state.positions.shape)) * _APART)
    twin = state.replace(positions=state.positions + hair.to(state.device))
    pairs = _side_by_side(batch, twin)
    system_idx = as_numpy(state.system_idx)
    deviations = []
    for frame in _unrolled(potential, pairs, guard):
        if frame.state.n_systems < 2 * n_systems:
            break
        steps.reached(frame.step)
        one, other = frame.state.positions.chunk(2)
        deviations.append(observables.displacement_per_system(as_numpy(one - other), system_idx, n_systems))
    steps.finish_part(batch.length - 1)
    return np.array(deviations).reshape(-1, n_systems)


def _side_by_side(batch: Batch, twin: State) -> Batch:
    """The batch's starts and their twins, which the same kicks or friction move along."""
    kicks, friction = batch.kicks, batch.friction
    return replace(
        batch,
        state=concatenate([batch.state, twin]),
        kicks=Kicks(
            torch.cat([kicks.positions] * 2, dim=1),
            torch.cat([kicks.velocities] * 2, dim=1),
            None if kicks.cells is None else torch.cat([kicks.cells] * 2, dim=1),
        ),
        dt=batch.dt.repeat(2),
        friction=None if friction is None else friction.repeat(1, 2),
    )


@torch.no_grad()
def _unrolled(potential: Potential, batch: Batch, guard: BurstGuard) -> Iterator[Frame]:
    neighbors = VerletNeighbors(potential.cutoff)
    yield from unroll(potential, batch, backprop=StopGradient(), neighbors=neighbors, guard=guard)


def _kick_share(trajectories: Sequence[Trajectory]) -> float:
    kicks, pushes = [], []
    for run in trajectories:
        for first, stop in run.stretches:
            if stop - first > 1:
                kicks.append(as_numpy(run.kicks(first, stop).velocities).ravel())
                pushes.append((run.forces[first:stop] / run.masses[:, None] * run.dt).ravel())
    if not kicks:
        return 0.0
    rms_push = math.sqrt(np.mean(np.concatenate(pushes) ** 2))
    return math.sqrt(np.mean(np.concatenate(kicks) ** 2)) / rms_push if rms_push else 0.0


class _StepCount:
    """Adds the steps of several roll-outs up to one progress."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._before = progress, total, 0

    def reached(self, step: int) -> None:
        if self._progress is not None:
            self._progress(self._before + step, self._total)

    def finish_part(self, n_steps: int) -> None:
        self._before += n_steps
        self.reached(0)
