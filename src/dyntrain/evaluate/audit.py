"""The own-trajectory audit: is a model right on the structures that its own free runs visit?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from ase import Atoms

from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.evaluate.free import FreeRuns, Snapshot
from dyntrain.evaluate.starts import Progress, as_numpy
from dyntrain.neighbors import neighbor_list
from dyntrain.observables import FloatArray, IntArray
from dyntrain.potential import Potential
from dyntrain.simulate import device_of
from dyntrain.state import State


class Label(Protocol):
    """energy eV; forces [n_atoms, 3] eV/Å."""

    @property
    def energy(self) -> float: ...

    @property
    def forces(self) -> FloatArray: ...


class Reference(Protocol):
    """What labels structures: ``reference.cache.StoredReference``, or anything alike."""

    @property
    def name(self) -> str: ...

    def label(self, atoms: Atoms) -> Label:
        """Raises RuntimeError where the calculation of this structure fails."""


@dataclass(frozen=True, eq=False)
class AuditCurve:
    """Force error of a model on the structures of its own free runs.

    reference:  name of the method
    agreement:  how far the reference's forces are from the recorded ones, relative (see ``check_reference``)
    times_fs:   [n_times]
    runs:       which free runs were audited, [n_audited]
    force_mae:  mean absolute error over the force components, [n_times, n_audited] eV/Å; infinite from the
                time a run has failed, NaN where the reference failed
    force_rmse: the same as root mean square
    energy_error: of the change of potential energy since the run's first structure, absolute, meV/atom
    failures:   reference calculations that failed, as sentences
    """

    reference: str
    agreement: float
    times_fs: FloatArray
    runs: IntArray
    force_mae: FloatArray
    force_rmse: FloatArray
    energy_error: FloatArray
    failures: tuple[str, ...] = ()

    def quantile(self, q: float) -> FloatArray:
        """Over the runs, [n_times] eV/Å; failed runs count as infinitely wrong, failed calculations not."""
        return np.array([_quantile(row, q) for row in self.force_mae])

    @property
    def n_whole(self) -> IntArray:
        """Audited runs that had not failed, [n_times]."""
        return np.asarray((~np.isposinf(self.force_mae)).sum(1), dtype=np.int64)

    def exceeding(self, ratio: float) -> dict[int, tuple[float, str]]:
        """When each run's force error first was above ``ratio`` × the median of all at the start: run →
        (fs, reason), as ``FreeRuns.failing_also`` takes it."""
        start = self.quantile(0.5)[0]
        found: dict[int, tuple[float, str]] = {}
        for column, run in enumerate(self.runs.tolist()):
            errors = self.force_mae[:, column]
            with np.errstate(invalid="ignore"):
                above = np.flatnonzero(np.isfinite(errors) & (errors > ratio * start))
            if above.size:
                words = f"the force error in the audit is {errors[above[0]] / start:.1f} × its start"
                found[run] = (float(self.times_fs[above[0]]), words)
        return found


def _quantile(values: FloatArray, q: float) -> float:
    known = np.sort(values[~np.isnan(values)])
    if not known.size:
        return float("nan")
    place = q * (known.size - 1)
    low, high = known[int(np.floor(place))], known[int(np.ceil(place))]
    return float(low if low == high else low + (place - np.floor(place)) * (high - low))


def audit(
    potential: Potential,
    free: FreeRuns | Sequence[Snapshot],
    reference: Reference,
    *,
    agreement: float = float("nan"),
    max_runs: int | None = None,
    progress: Progress | None = None,
) -> AuditCurve:
    """Recompute structures of a model's own free runs with the reference.

    Args:
        potential: the model that made the runs.
        free: the runs, or structures of them (``FreeRuns.snapshots``).
        reference: labels structures; a calculation that fails is counted, and nothing is put in its place.
        agreement: of ``check_reference``, for the record.
        max_runs: audit only the first so many runs (each costs one calculation at each time).
        progress: called after each structure.

    Raises:
        UserError: the free runs left no structure to audit.
    """
    snapshots = free.snapshots if isinstance(free, FreeRuns) else tuple(free)
    runs = np.arange(free.n_runs) if isinstance(free, FreeRuns) else np.unique([s.run for s in snapshots])
    runs = runs[:max_runs]
    snapshots = tuple(snapshot for snapshot in snapshots if snapshot.run in runs)
    if not snapshots:
        raise UserError("no free run left a structure to audit: all burst at once, or there were none")
    times = np.unique([snapshot.time_fs for snapshot in snapshots])
    tables = np.full((3, len(times), len(runs)), np.inf)
    start_error: dict[int, float] = {}
    failures: list[str] = []
    for number, snapshot in enumerate(snapshots):
        place = int(np.searchsorted(times, snapshot.time_fs)), int(np.searchsorted(runs, snapshot.run))
        try:
            errors = _errors(potential, snapshot.state, reference)
        except RuntimeError as error:
            failures.append(f"run {snapshot.run} at {snapshot.time_fs:g} fs: {error}")
            tables[(slice(None), *place)] = np.nan
        else:
            first = start_error.setdefault(snapshot.run, errors[2])
            tables[(slice(None), *place)] = (*errors[:2], abs(errors[2] - first))
        if progress is not None:
            progress(number + 1, len(snapshots))
    return AuditCurve(
        reference.name,
        agreement,
        times,
        runs,
        force_mae=tables[0],
        force_rmse=tables[1],
        energy_error=tables[2],
        failures=tuple(failures),
    )


def _errors(potential: Potential, state: State, reference: Reference) -> tuple[float, float, float]:
    """Force MAE, RMSE (eV/Å) and signed energy error (meV/atom) of one structure."""
    label = reference.label(to_atoms(state))
    there = state.to(device_of(potential))
    with torch.no_grad():
        energy, forces = potential(there, neighbor_list(there, potential.cutoff))
    difference = as_numpy(forces) - label.forces
    free = np.ones(state.n_atoms, bool) if state.fixed is None else ~as_numpy(state.fixed)
    shift = 1e3 * (float(energy[0]) - label.energy) / state.n_atoms
    return float(np.abs(difference[free]).mean()), float(np.sqrt((difference[free] ** 2).mean())), shift


def to_atoms(state: State) -> Atoms:
    """One system as ``ase.Atoms`` with masses and velocities."""
    atoms: Any = Atoms(
        numbers=as_numpy(state.atomic_numbers),
        positions=as_numpy(state.positions),
        masses=as_numpy(state.masses),
        cell=as_numpy(state.cell[0]),
        pbc=as_numpy(state.pbc[0]),
    )
    atoms.set_velocities(as_numpy(state.velocities))
    return atoms


# Forces of one method and of its looser or tighter settings agree far better; those of two methods do not.
_SAME_METHOD = 0.05
_N_CHECKED = 3


def check_reference(reference: Reference, trajectories: Sequence[Trajectory]) -> float:
    """Recompute three recorded structures: is the reference the method that the recording was made with?

    Returns:
        rms difference of the forces over their rms in the recording.

    Raises:
        UserError: they differ by more than 5 %, or the reference fails on recorded structures.
    """
    squares = np.zeros(2)
    for number in range(_N_CHECKED):
        run = trajectories[number * len(trajectories) // _N_CHECKED]
        frame = (2 * number + 1) * run.n_frames // (2 * _N_CHECKED)
        try:
            label = reference.label(to_atoms(run.state(frame)))
        except RuntimeError as error:
            raise UserError(
                f"the reference {reference.name} cannot even label a recorded structure ({run.file}, frame "
                f"{run.first_frame + frame}): {error}"
            ) from error
        moving = np.setdiff1d(np.arange(run.n_atoms), run.fixed_atoms)
        squares += [
            ((label.forces - run.forces[frame])[moving] ** 2).sum(), (run.forces[frame][moving] ** 2).sum()
        ]  # fmt: skip
    difference = float(np.sqrt(squares[0] / squares[1])) if squares[1] > 0 else float("inf")
    if not difference <= _SAME_METHOD:
        raise UserError(
            f"the reference {reference.name} is another method than that of the held-out runs: "
            f"on {_N_CHECKED} of their structures its forces differ by {difference:.0%} (allowed: "
            f"{_SAME_METHOD:.0%}); give the method and options of the recording"
        )
    return difference
