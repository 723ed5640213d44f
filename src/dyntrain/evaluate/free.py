"""Free runs (NVE, no kicks) of a model: how its energy drifts, how long it lasts, and what it visits."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from dyntrain import observables
from dyntrain.evaluate.criteria import FailureCriterion
from dyntrain.evaluate.starts import Progress, as_numpy
from dyntrain.evaluate.watch import Watch
from dyntrain.observables import BoolArray, FloatArray
from dyntrain.potential import Potential
from dyntrain.rollout import BurstGuard, Frame
from dyntrain.simulate import device_of, draw_velocities, simulate
from dyntrain.state import State, concatenate
from dyntrain.units import FS


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A structure that a free run has visited while it was whole: one system, on the CPU."""

    run: int
    time_fs: float
    state: State


@dataclass(frozen=True, eq=False)
class Motion:
    """What the free runs did, at equal distances in time, as far as it is kept.

    times_fs:   [n_times], 0 first
    positions:  [n_times, n_atoms, 3] Å, float32, of all runs' atoms
    velocities: [n_times, n_atoms, 3] Å/ASE time, float32
    whole:      whether the run had not failed, bool [n_times, n_runs]
    starts:     the batch they started from
    """

    times_fs: FloatArray
    positions: np.ndarray
    velocities: np.ndarray
    whole: BoolArray
    starts: State


@dataclass(frozen=True, eq=False)
class FreeRuns:
    """Free NVE runs (no kicks) of a model.

    times_fs:       of the recorded values, [n_times]
    total_energy:   change since the start, eV per atom, [n_times, n_runs]; NaN after failure
    kinetic_energy: eV per atom, [n_times, n_runs]; NaN after failure
    failure_fs:     time of failure, or the run length where the run stayed whole, [n_runs]
    failed:         [n_runs]
    reasons:        what failed, one sentence for each failed run: run number → reason
    criterion:      when a run has failed, as words
    stability:      MLIPAudit's stability score of each run, [n_runs]; NaN where the runs ended, all having
                    failed otherwise, before this one exploded or lost a hydrogen
    temperature_K:  what the velocities at the start were drawn for; None: those of the recording
    snapshots:      structures for the audit
    motion:         for distributions and spectra; None where it was not kept
    """

    times_fs: FloatArray
    total_energy: FloatArray
    kinetic_energy: FloatArray
    failure_fs: FloatArray
    failed: BoolArray
    reasons: dict[int, str]
    run_length_fs: float
    dt_fs: float
    criterion: FailureCriterion
    wall_s: float
    stability: FloatArray
    temperature_K: float | None = None
    snapshots: tuple[Snapshot, ...] = ()
    motion: Motion | None = None

    @property
    def n_runs(self) -> int:
        return len(self.failed)

    @property
    def drift(self) -> FloatArray:
        """Slope of the total energy up to the failure, meV/atom/ps, [n_runs]; NaN for runs that were whole
        for less than 100 fs."""
        return np.array([self._drift(run) for run in range(self.n_runs)])

    def _drift(self, run: int) -> float:
        known = self._known(run)
        if known is None:
            return math.nan
        return observables.energy_drift(self.times_fs[known], self.total_energy[known, run], 1)

    def _known(self, run: int) -> BoolArray | None:
        """The times at which a run was whole; None where they are too few for a drift."""
        known: BoolArray = np.isfinite(self.total_energy[:, run])
        long_enough = known.sum() >= 3 and self.times_fs[known][-1] >= _SHORTEST_FOR_DRIFT_FS
        return known if long_enough else None

    @property
    def drift_meV_atom_ps(self) -> float | None:
        """Median over the runs of |drift|; None where no run lasted long enough for one."""
        return _median(np.abs(self.drift))

    @property
    def nve_scores(self) -> FloatArray:
        """MLIPAudit's |drift|/σ(kinetic energy) of each run up to its failure, [n_runs]; NaN as for drift."""
        scores = np.full(self.n_runs, np.nan)
        for run in range(self.n_runs):
            known = self._known(run)
            if known is not None and self.kinetic_energy[known, run].std() > 0:
                scores[run] = observables.nve_score(
                    self.times_fs[known], self.total_energy[known, run], self.kinetic_energy[known, run]
                )
        return scores

    @property
    def nve_score(self) -> float | None:
        """Median over the runs of ``nve_scores``; None where no run lasted long enough for one."""
        return _median(self.nve_scores)

    @property
    def stability_score(self) -> float | None:
        """Mean over the runs of MLIPAudit's stability score; None where it is not known of all of them."""
        return float(self.stability.mean()) if np.isfinite(self.stability).all() else None

    def time_to_failure(self) -> dict[str, float | int | None]:
        """median (None when fewer than half failed) and its 95 % interval (median_low, median_high; None:
        no such bound within the runs), restricted_mean, n_failed, n_censored, n_runs, run_length_fs."""
        low, high = observables.median_interval(self.failure_fs, self.failed)
        restricted = observables.restricted_mean_time_to_failure(
            self.failure_fs, self.failed, self.run_length_fs
        )
        return {
            "median": observables.median_time_to_failure(self.failure_fs, self.failed),
            "median_low": low,
            "median_high": high,
            "restricted_mean": restricted,
            "n_failed": int(self.failed.sum()),
            "n_censored": int((~self.failed).sum()),
            "n_runs": self.n_runs,
            "run_length_fs": self.run_length_fs,
        }

    def failing_also(self, failures: Mapping[int, tuple[float, str]]) -> FreeRuns:
        """The same runs, where some have failed earlier than was seen: run → (time in fs, reason)."""
        earlier = {run: found for run, found in failures.items() if found[0] < self._end_of(run)}
        failure_fs, failed = self.failure_fs.copy(), self.failed.copy()
        total, kinetic, reasons = self.total_energy.copy(), self.kinetic_energy.copy(), dict(self.reasons)
        for run, (time_fs, reason) in earlier.items():
            failure_fs[run], failed[run], reasons[run] = time_fs, True, reason
            total[self.times_fs >= time_fs, run] = kinetic[self.times_fs >= time_fs, run] = np.nan
        return dataclasses.replace(
            self,
            failure_fs=failure_fs,
            failed=failed,
            total_energy=total,
            kinetic_energy=kinetic,
            reasons=dict(sorted(reasons.items())),
        )

    def _end_of(self, run: int) -> float:
        return float(self.failure_fs[run]) if self.failed[run] else math.inf


def _median(values: FloatArray) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else None


# A slope over less than this is the oscillation of the total energy, not its drift.
_SHORTEST_FOR_DRIFT_FS = 100.0
_N_RECORDED = 1000

AUDIT_TIMES_FS = (0.0, 50.0, *(digit * 10.0**power for power in range(2, 8) for digit in (1, 2, 5)))
"""Times at which the structures of free runs are kept for an audit: 0, 50, 100, 200, 500 fs, 1 ps …"""

# Motion is kept finely enough for the fastest bond (9 fs), and as long as this many numbers fit (200 MB).
_MOTION_EVERY_FS = 2.0
_MOST_NUMBERS = 25_000_000


def free_runs(
    potential: Potential,
    starts: State,
    dt: float,
    run_length_fs: float,
    *,
    criterion: FailureCriterion | None = None,
    temperature_K: float | None = None,
    guard: BurstGuard | None = None,
    progress: Progress | None = None,
) -> FreeRuns:
    """Let a model run free (NVE, no kicks) from each system of ``starts``, all in one batch, until it fails.

    Args:
        dt: time step in ASE time (``dt_fs * units.FS``).
        run_length_fs: length of each run, fs.
        criterion: default ``FailureCriterion()`` (molecules); checked at every step.
        temperature_K: that the starts' velocities were drawn for, noted in the result.
        guard: when a run counts as burst; default ``BurstGuard()``.
        progress: called after each step.
    """
    criterion = criterion if criterion is not None else FailureCriterion()
    starts = starts.detach().to(device_of(potential))
    dt_fs = dt / FS
    n_steps = max(1, round(run_length_fs / dt_fs))
    record = _Record(starts, n_steps, dt_fs)
    watch = Watch(criterion, starts, dt_fs)
    begun = time.perf_counter()
    run = simulate(potential, starts, dt, n_steps, guard=guard)
    last_step = 0
    for frame in run:
        watch.note(run.bursts)
        total, kinetic = _energies(frame, starts.n_systems)
        watch.look_at(frame, total, kinetic)
        record.add(frame, total, kinetic, watch.whole)
        last_step = frame.step
        if progress is not None:
            progress(frame.step, n_steps)
        if not watch.whole.any():
            break
    watch.note(run.bursts)
    if progress is not None:
        progress(n_steps, n_steps)
    return FreeRuns(
        **record.arrays(),
        failure_fs=np.where(watch.whole, n_steps * dt_fs, watch.failure_fs),
        failed=~watch.whole,
        reasons=dict(sorted(watch.reasons.items())),
        run_length_fs=n_steps * dt_fs,
        dt_fs=dt_fs,
        criterion=criterion,
        wall_s=time.perf_counter() - begun,
        stability=_stability(watch, n_steps, last_step),
        temperature_K=temperature_K,
        snapshots=tuple(record.snapshots),
        motion=record.motion(),
    )


def _energies(frame: Frame, n_runs: int) -> tuple[FloatArray, FloatArray]:
    """Total and kinetic energy of each run, [n_runs] eV, NaN for burst ones."""
    kinetic = frame.state.kinetic_energy()
    energies = np.full((2, n_runs), np.nan)
    energies[:, as_numpy(frame.systems)] = as_numpy(torch.stack([frame.prediction.energy + kinetic, kinetic]))
    return energies[0], energies[1]


def _stability(watch: Watch, n_steps: int, last_step: int) -> FloatArray:
    """MLIPAudit's score of each run; NaN where it was not followed to its end and had not exploded."""

    def score(exploded: int, lost: int) -> float:
        if exploded < 0 and last_step < n_steps:
            return math.nan
        return observables.stability_score(
            n_steps, None if exploded < 0 else exploded, None if lost < 0 else lost
        )

    found = zip(watch.exploded.tolist(), watch.hydrogen_lost.tolist(), strict=True)
    return np.array([score(exploded, lost) for exploded, lost in found])


class _Record:
    """Gathers what is kept of free runs while they go."""

    def __init__(self, starts: State, n_steps: int, dt_fs: float) -> None:
        self._starts, self._n_steps, self._dt_fs = starts, n_steps, dt_fs
        self._n_atoms = as_numpy(starts.n_atoms_per_system())
        self._every = max(1, n_steps // _N_RECORDED)
        self._audit_steps = {round(time_fs / dt_fs): time_fs for time_fs in AUDIT_TIMES_FS}
        self._motion_every = max(1, int(_MOTION_EVERY_FS / dt_fs + 1e-9))
        self._most_motion = max(2, _MOST_NUMBERS // (6 * starts.n_atoms))
        self.snapshots: list[Snapshot] = []
        self._rows: list[tuple[float, FloatArray, FloatArray]] = []
        self._motion: list[tuple[float, np.ndarray, np.ndarray, BoolArray]] = []
        self._positions = as_numpy(starts.positions).astype(np.float32)
        self._velocities = as_numpy(starts.velocities).astype(np.float32)

    def add(self, frame: Frame, total: FloatArray, kinetic: FloatArray, whole: BoolArray) -> None:
        time_fs = frame.step * self._dt_fs
        if frame.step % self._every == 0 or frame.step == self._n_steps:
            self._rows.append(
                (time_fs, *(np.where(whole, e, np.nan) / self._n_atoms for e in (total, kinetic)))
            )
        if frame.step in self._audit_steps:
            state = frame.state.detach().to("cpu")
            for place, run in enumerate(frame.systems.tolist()):
                if whole[run]:
                    self.snapshots.append(Snapshot(run, self._audit_steps[frame.step], state.select([place])))
        if frame.step % self._motion_every == 0 and len(self._motion) < self._most_motion:
            atoms = as_numpy(self._starts.atoms_of(frame.systems))
            self._positions[atoms] = as_numpy(frame.state.positions)
            self._velocities[atoms] = as_numpy(frame.state.velocities)
            self._motion.append((time_fs, self._positions.copy(), self._velocities.copy(), whole.copy()))

    def arrays(self) -> dict[str, FloatArray]:
        times, total, kinetic = zip(*self._rows, strict=True) if self._rows else ((), (), ())
        n_runs = len(self._n_atoms)
        totals = np.array(total).reshape(-1, n_runs)
        return {
            "times_fs": np.array(times, dtype=np.float64),
            "total_energy": totals - totals[:1],
            "kinetic_energy": np.array(kinetic).reshape(-1, n_runs),
        }

    def motion(self) -> Motion | None:
        if not self._motion:
            return None
        times, positions, velocities, whole = (np.array(column) for column in zip(*self._motion, strict=True))
        return Motion(times, positions, velocities, whole, self._starts.to("cpu"))


def draw_starts(starts: State, temperature_K: float, seed: int) -> State:
    """The same structures with Maxwell–Boltzmann velocities of a temperature; fixed atoms stay at rest."""
    drawn = []
    for number in range(starts.n_systems):
        one = draw_velocities(starts.select([number]), temperature_K, seed + number)
        if one.fixed is not None:
            one = one.replace(velocities=one.velocities.masked_fill(one.fixed[:, None], 0.0))
        drawn.append(one)
    return concatenate(drawn)
