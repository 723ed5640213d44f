"""Free runs (NVE, no kicks) of a model: how its energy drifts, and how long it lasts."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase.data import covalent_radii

from dyntrain import observables
from dyntrain.data.trajectory import Trajectory
from dyntrain.evaluate.starts import Progress, as_numpy
from dyntrain.neighbors import neighbor_list, pair_vectors
from dyntrain.observables import BoolArray, FloatArray
from dyntrain.potential import Potential
from dyntrain.rollout import BurstGuard, Frame
from dyntrain.simulate import Burst, device_of, simulate
from dyntrain.state import State
from dyntrain.units import FS


@dataclass(frozen=True)
class FailureCriterion:
    """When a free run has failed; ``None`` switches a criterion off.

    bond_change:   a bond's length differs from its start by more than this, Å ("Forces are not enough",
                   StABlE: 0.5); bonds are the pairs closer than 1.25 × the sum of covalent radii at the start
    closest:       any pair is closer than this, Å
    energy_change: the total energy differs from the start's by more than this, eV
    A run that bursts (``BurstGuard``) has failed in any case.
    """

    bond_change: float | None = 0.5
    closest: float | None = None
    energy_change: float | None = 1.0

    def __str__(self) -> str:
        parts = [
            self.bond_change is not None and f"a bond length is off by more than {self.bond_change:g} Å",
            self.closest is not None and f"a pair is closer than {self.closest:.2f} Å",
            self.energy_change is not None
            and f"the total energy is off by more than {self.energy_change:g} eV",
        ]
        return " or ".join(part for part in parts if part)


def criterion_for(trajectories: Sequence[Trajectory]) -> FailureCriterion:
    """The criterion that the recorded runs themselves pass.

    Where bonds stay bonds in the recording, bond lengths are watched. Where they do not (reactions,
    diffusion), a pair closer than 0.8 × the smallest recorded distance is a failure instead.
    """
    standard = FailureCriterion()
    assert standard.bond_change is not None
    smallest = math.inf
    reactive = False
    for run in trajectories:
        for first, stop in run.stretches:
            watch = _Bonds(run.state(first))
            changes = [watch.largest_change(run.positions[k]).max() for k in range(first, stop)]
            reactive |= max(changes) > standard.bond_change
    if not reactive:
        return standard
    for run in trajectories:
        for frame in range(0, run.n_frames, max(1, run.n_frames // 200)):
            smallest = min(smallest, _smallest_distance(run.state(frame)))
    return FailureCriterion(bond_change=None, closest=0.8 * smallest)


def _smallest_distance(state: State, reach: float = 3.0) -> float:
    vectors = pair_vectors(state, neighbor_list(state, reach))
    return float(vectors.norm(dim=-1).min()) if vectors.shape[0] else math.inf


class _Bonds:
    """The bonds of a batch at its start, and how much they have changed since."""

    def __init__(self, start: State) -> None:
        radii = covalent_radii[as_numpy(start.atomic_numbers)]
        pairs = neighbor_list(start.detach(), 2.0 * 1.25 * float(radii.max()))
        first, second = as_numpy(pairs.i), as_numpy(pairs.j)
        lengths = as_numpy(pair_vectors(start, pairs).norm(dim=-1))
        bonded = lengths < 1.25 * (radii[first] + radii[second])
        self.first, self.second, self.lengths = first[bonded], second[bonded], lengths[bonded]
        self.system = as_numpy(start.system_idx)[self.first]
        cells = as_numpy(start.cell)[self.system]
        self.offsets = np.einsum("bs,bsx->bx", as_numpy(pairs.shifts)[bonded], cells)
        self.n_systems = start.n_systems

    def largest_change(self, positions: FloatArray) -> FloatArray:
        """Largest |length − length at the start| of each system, [n_systems] Å; 0 where it has no bonds."""
        lengths = observables.bond_lengths(positions, self.first, self.second, self.offsets)
        largest = np.zeros(self.n_systems)
        np.maximum.at(largest, self.system, np.abs(lengths - self.lengths))
        return largest


@dataclass(frozen=True, eq=False)
class FreeRuns:
    """Free NVE runs (no kicks) of a model.

    times_fs:       of the recorded values, [n_times]
    total_energy:   change since the start, eV per atom, [n_times, n_runs]; NaN after failure
    failure_fs:     time of failure, or the run length where the run stayed whole, [n_runs]
    failed:         [n_runs]
    reasons:        what failed, one sentence for each failed run: run number → reason
    drift:          slope of the total energy up to the failure, meV/atom/ps, [n_runs]; NaN for runs that were
                    whole for less than 100 fs
    """

    times_fs: FloatArray
    total_energy: FloatArray
    failure_fs: FloatArray
    failed: BoolArray
    reasons: dict[int, str]
    drift: FloatArray
    run_length_fs: float
    dt_fs: float
    criterion: str
    wall_s: float

    @property
    def n_runs(self) -> int:
        return len(self.failed)

    @property
    def drift_meV_atom_ps(self) -> float | None:
        """Median over the runs of |drift|; None where no run lasted long enough for one."""
        known = self.drift[np.isfinite(self.drift)]
        return float(np.median(np.abs(known))) if known.size else None

    def time_to_failure(self) -> dict[str, float | int | None]:
        """median (None when fewer than half failed), restricted_mean, n_failed, n_runs, run_length_fs."""
        restricted = observables.restricted_mean_time_to_failure(
            self.failure_fs, self.failed, self.run_length_fs
        )
        return {
            "median": observables.median_time_to_failure(self.failure_fs, self.failed),
            "restricted_mean": restricted,
            "n_failed": int(self.failed.sum()),
            "n_runs": self.n_runs,
            "run_length_fs": self.run_length_fs,
        }


# A slope over less than this is the oscillation of the total energy, not its drift.
_SHORTEST_FOR_DRIFT_FS = 100.0
_N_RECORDED = 1000


def free_runs(
    potential: Potential,
    starts: State,
    dt: float,
    run_length_fs: float,
    *,
    criterion: FailureCriterion | None = None,
    guard: BurstGuard | None = None,
    progress: Progress | None = None,
) -> FreeRuns:
    """Let a model run free (NVE, no kicks) from each system of ``starts``, all in one batch, until it fails.

    Args:
        dt: time step in ASE time (``dt_fs * units.FS``).
        run_length_fs: length of each run, fs.
        criterion: default ``FailureCriterion()`` (molecules); checked at every step.
        guard: when a run counts as burst; default ``BurstGuard()``.
        progress: called after each step.
    """
    criterion = criterion if criterion is not None else FailureCriterion()
    starts = starts.detach().to(device_of(potential))
    dt_fs, n_runs, n_atoms = dt / FS, starts.n_systems, as_numpy(starts.n_atoms_per_system())
    n_steps = max(1, round(run_length_fs / dt_fs))
    every = max(1, n_steps // _N_RECORDED)
    watch = _Watch(criterion, starts)
    times, energies = [], []
    begun = time.perf_counter()
    run = simulate(potential, starts, dt, n_steps, guard=guard)
    for frame in run:
        watch.note(run.bursts, dt_fs)
        total = watch.look_at(frame, frame.step * dt_fs)
        if frame.step % every == 0 or frame.step == n_steps:
            times.append(frame.step * dt_fs)
            energies.append(np.where(np.isnan(watch.failure_fs), total, np.nan))
        if progress is not None:
            progress(frame.step, n_steps)
        if not np.isnan(watch.failure_fs).any():
            break
    watch.note(run.bursts, dt_fs)
    if progress is not None:
        progress(n_steps, n_steps)
    recorded = np.array(energies).reshape(-1, n_runs)
    times_fs = np.array(times)
    failed = ~np.isnan(watch.failure_fs)
    return FreeRuns(
        times_fs=times_fs,
        total_energy=(recorded - watch.start_energy) / n_atoms,
        failure_fs=np.where(failed, watch.failure_fs, n_steps * dt_fs),
        failed=failed,
        reasons=dict(sorted(watch.reasons.items())),
        drift=np.array([_drift(times_fs, recorded[:, n], int(n_atoms[n])) for n in range(n_runs)]),
        run_length_fs=n_steps * dt_fs,
        dt_fs=dt_fs,
        criterion=str(criterion),
        wall_s=time.perf_counter() - begun,
    )


def _drift(times_fs: FloatArray, energy: FloatArray, n_atoms: int) -> float:
    known = np.isfinite(energy)
    if known.sum() < 3 or times_fs[known][-1] < _SHORTEST_FOR_DRIFT_FS:
        return math.nan
    return observables.energy_drift(times_fs[known], energy[known], n_atoms)


class _Watch:
    """Looks at every frame of free runs and notes the first failure of each."""

    def __init__(self, criterion: FailureCriterion, starts: State) -> None:
        self.criterion, self.starts = criterion, starts
        self.failure_fs = np.full(starts.n_systems, np.nan)
        self.start_energy = np.full(starts.n_systems, np.nan)
        self.reasons: dict[int, str] = {}
        self._bonds = _Bonds(starts)
        self._positions = as_numpy(starts.positions).copy()

    def fail(self, system: int, time_fs: float, reason: str) -> None:
        if np.isnan(self.failure_fs[system]):
            self.failure_fs[system] = time_fs
            self.reasons[system] = reason

    def note(self, bursts: Sequence[Burst], dt_fs: float) -> None:
        """A burst is a failure at the step that could not be taken."""
        for burst in bursts:
            self.fail(burst.system, (burst.step + 1) * dt_fs, f"burst: {burst.reason}")

    def look_at(self, frame: Frame, time_fs: float) -> FloatArray:
        """Total energy of each run, [n_runs] eV, NaN for burst ones."""
        alive = as_numpy(frame.systems)
        total = np.full(self.starts.n_systems, np.nan)
        total[alive] = as_numpy(frame.prediction.energy + frame.state.kinetic_energy())
        if frame.step == 0:
            self.start_energy = total
        limit = self.criterion
        if limit.bond_change is not None:
            self._positions[as_numpy(self.starts.atoms_of(frame.systems))] = as_numpy(frame.state.positions)
            change = self._bonds.largest_change(self._positions)
            for system in alive[change[alive] > limit.bond_change]:
                self.fail(int(system), time_fs, f"a bond length is off by {change[system]:.2f} Å")
        if limit.closest is not None:
            self._check_closest(frame, limit.closest, time_fs)
        if limit.energy_change is not None:
            change = total - self.start_energy
            for system in alive[~(np.abs(change[alive]) <= limit.energy_change)]:
                self.fail(int(system), time_fs, f"the total energy is off by {change[system]:+.2f} eV")
        return total

    def _check_closest(self, frame: Frame, closest: float, time_fs: float) -> None:
        pairs = neighbor_list(frame.state, closest)
        for system in torch.unique(frame.state.system_idx[pairs.i]).tolist():
            self.fail(int(frame.systems[system]), time_fs, f"a pair is closer than {closest:.2f} Å")
