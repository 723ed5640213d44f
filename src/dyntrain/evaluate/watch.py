"""Looks at every frame of free runs and notes what each run fails by first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from dyntrain.evaluate.criteria import (
    Bonds,
    FailureCriterion,
    RdfCounts,
    RdfReference,
    molecules_of,
    pair_distances,
)
from dyntrain.evaluate.starts import as_numpy
from dyntrain.observables import FloatArray, IntArray
from dyntrain.rollout import Frame
from dyntrain.simulate import Burst
from dyntrain.state import State
from dyntrain.units import KB

Finding = tuple[int, str]
"""A run that has failed, and why."""

# MLIPAudit: a run has exploded when it is so much hotter than it should be, K, or when its temperature rises
# by such a factor from one frame to the next; a hydrogen is lost when it is so far from its heavy atom, Å.
_HOTTER, _JUMP, _HYDROGEN_LOST = 10_000.0, 100.0, 2.5

_RDF_EVERY_FS, _RDF_WINDOW_FS = 10.0, 1000.0


class Watch:
    """Applies a criterion to every frame of a batch of free runs.

    Attributes (arrays are [n_runs]):
        failure_fs:      time of the first failure, NaN while a run is whole
        reasons:         run → why it failed
        exploded:        step at which it exploded by MLIPAudit's definition, −1 if it has not
        hydrogen_lost:   step at which it first lost a hydrogen, −1 if it has not
    """

    def __init__(self, criterion: FailureCriterion, starts: State, dt_fs: float) -> None:
        n_runs = starts.n_systems
        self.failure_fs = np.full(n_runs, np.nan)
        self.reasons: dict[int, str] = {}
        self.exploded, self.hydrogen_lost = np.full(n_runs, -1), np.full(n_runs, -1)
        self._criterion, self._starts, self._dt_fs = criterion, starts, dt_fs
        self._bonds, self._hydrogens = Bonds.of(starts), _bonds_to_hydrogen(starts)
        self._molecules = molecules_of(starts) if criterion.apart is not None else None
        self._rdf = _RdfWatch(criterion.rdf, criterion.rdf_mae, starts, dt_fs) if criterion.rdf else None
        self._closest = _limit_table(criterion)
        self._positions = as_numpy(starts.positions).copy()
        self._start_energy = np.full(n_runs, np.nan)
        self._start_kelvin = as_numpy(starts.temperature())
        self._kelvin = self._start_kelvin

    @property
    def whole(self) -> np.ndarray:
        """Which runs have not failed, bool [n_runs]."""
        return np.isnan(self.failure_fs)

    def note(self, bursts: Sequence[Burst]) -> None:
        """A burst is a failure (and an explosion) at the step that could not be taken."""
        for burst in bursts:
            self._fail(burst.system, (burst.step + 1) * self._dt_fs, f"burst: {burst.reason}")
            if self.exploded[burst.system] < 0:
                self.exploded[burst.system] = burst.step + 1

    def look_at(self, frame: Frame, total: FloatArray, kinetic: FloatArray) -> None:
        """Note what fails in a frame.

        Args:
            total, kinetic: energies of each run, [n_runs] eV; NaN for burst ones.
        """
        if frame.step == 0:
            self._start_energy = total
        self._positions[as_numpy(self._starts.atoms_of(frame.systems))] = as_numpy(frame.state.positions)
        for system, reason in self._findings(frame, total):
            self._fail(system, frame.step * self._dt_fs, reason)
        self._audit_stability(frame.step, kinetic)

    def _fail(self, system: int, time_fs: float, reason: str) -> None:
        if np.isnan(self.failure_fs[system]):
            self.failure_fs[system] = time_fs
            self.reasons[system] = reason

    def _findings(self, frame: Frame, total: FloatArray) -> Iterator[Finding]:
        limit, alive = self._criterion, as_numpy(frame.systems)
        if limit.bond_change is not None:
            change = self._bonds.largest_change(self._positions)
            for system in alive[change[alive] > limit.bond_change]:
                yield int(system), f"a bond length is off by {change[system]:.2f} Å"
        if limit.energy_change is not None:
            change = total - self._start_energy
            for system in alive[~(np.abs(change[alive]) <= limit.energy_change)]:
                yield int(system), f"the total energy is off by {change[system]:+.2f} eV"
        if self._closest is not None:
            yield from _too_close(frame, self._closest)
        if self._molecules is not None and limit.apart is not None:
            yield from self._touching(frame, limit.apart, self._molecules)
        if self._rdf is not None:
            yield from self._rdf.look_at(frame)

    def _touching(self, frame: Frame, apart: float, molecules: IntArray) -> Iterator[Finding]:
        _, first, second = pair_distances(frame.state, apart)
        molecule = molecules[as_numpy(self._starts.atoms_of(frame.systems))]
        bad = molecule[first] != molecule[second]
        for system in np.unique(as_numpy(frame.state.system_idx)[first[bad]]):
            yield int(frame.systems[system]), f"two molecules are closer than {apart:g} Å"

    def _audit_stability(self, step: int, kinetic: FloatArray) -> None:
        with np.errstate(invalid="ignore"):
            kelvin = 2.0 * kinetic / (3.0 * KB) / as_numpy(self._starts.n_atoms_per_system())
            hot = (kelvin > self._start_kelvin + _HOTTER) | (kelvin > _JUMP * self._kelvin) & (
                self._kelvin > 0
            )
        self.exploded[hot & (self.exploded < 0)] = step
        self._kelvin = kelvin
        if self._hydrogens is not None:
            far = self._hydrogens.largest_change(self._positions) > _HYDROGEN_LOST
            self.hydrogen_lost[far & (self.hydrogen_lost < 0)] = step


def _limit_table(criterion: FailureCriterion) -> FloatArray | None:
    """The smallest distances allowed, by the two atomic numbers, [119, 119] Å."""
    if criterion.closest is None:
        return None
    table = np.zeros((119, 119))
    for (a, b), limit in criterion.closest.items():
        table[a, b] = table[b, a] = limit
    return table


def _too_close(frame: Frame, limits: FloatArray) -> Iterator[Finding]:
    distances, first, second = pair_distances(frame.state, float(limits.max()))
    numbers = as_numpy(frame.state.atomic_numbers)
    bad = distances < limits[numbers[first], numbers[second]]
    for pair in np.flatnonzero(bad):
        system = int(frame.systems[frame.state.system_idx[int(first[pair])]])
        limit = limits[numbers[first[pair]], numbers[second[pair]]]
        yield system, f"a pair is closer than {limit:.2f} Å"


def _bonds_to_hydrogen(starts: State) -> Bonds | None:
    """The bonds of each hydrogen to a heavy atom, with length 0, so that the "change" is the distance."""
    bonds = Bonds.of(starts).both_ways()
    numbers = as_numpy(starts.atomic_numbers)
    chosen = (numbers[bonds.first] == 1) & (numbers[bonds.second] > 1)
    if not chosen.any():
        return None
    # A hydrogen beside several heavy atoms belongs to the nearest.
    order = np.lexsort((bonds.lengths[chosen], bonds.first[chosen]))
    _, nearest = np.unique(bonds.first[chosen][order], return_index=True)
    kept = np.flatnonzero(chosen)[order[nearest]]
    return Bonds(
        bonds.first[kept],
        bonds.second[kept],
        np.zeros(len(kept)),
        bonds.system[kept],
        bonds.offsets[kept],
        bonds.n_systems,
    )


class _RdfWatch:
    """Gathers the radial distribution functions of each run over windows of a ps, and compares them."""

    def __init__(self, reference: RdfReference, limit: float, starts: State, dt_fs: float) -> None:
        self._reference, self._limit = reference, limit
        self._every = max(1, round(_RDF_EVERY_FS / dt_fs))
        self._window = max(self._every, round(_RDF_WINDOW_FS / dt_fs))
        self._numbers = [as_numpy(starts.select([n]).atomic_numbers) for n in range(starts.n_systems)]
        self._counts = self._empty()

    def _empty(self) -> list[RdfCounts]:
        return [RdfCounts(numbers, self._reference.edges) for numbers in self._numbers]

    def look_at(self, frame: Frame) -> Iterator[Finding]:
        if frame.step % self._every == 0:
            self._add(frame)
        if frame.step and frame.step % self._window == 0:
            for system in frame.systems.tolist():
                worst = self._worst(self._counts[system])
                if worst > self._limit:
                    yield system, f"a radial distribution function is off by {worst:.1f} Å over a ps"
            self._counts = self._empty()

    def _add(self, frame: Frame) -> None:
        state = frame.state
        distances, first, second = pair_distances(state, float(self._reference.edges[-1]))
        system_idx = as_numpy(state.system_idx)
        begins = np.searchsorted(system_idx, np.arange(state.n_systems))
        volumes = as_numpy(torch.linalg.det(state.cell)).__abs__()
        for place, system in enumerate(frame.systems.tolist()):
            own = system_idx[first] == place
            self._counts[system].add(
                distances[own], first[own] - begins[place], second[own] - begins[place], volumes[place]
            )

    def _worst(self, counts: RdfCounts) -> float:
        width = np.diff(self._reference.edges)
        return max(
            float((np.abs(found - self._reference.of[pair]) * width).sum())
            for pair, found in counts.functions().items()
        )
