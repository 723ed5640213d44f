"""When a free run has failed: the field's criteria by name, and which of them suits a system."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from ase.data import chemical_symbols, covalent_radii
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dyntrain import observables
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.evaluate.starts import as_numpy
from dyntrain.neighbors import neighbor_list, pair_vectors
from dyntrain.observables import FloatArray, IntArray
from dyntrain.state import State

Kind = Literal["molecule", "liquid", "reactive"]

# Pairs closer than this times the sum of their covalent radii are bonded.
BONDED = 1.25

# So many molecules in a periodic cell make a liquid (or a molecular crystal).
_FEWEST_MOLECULES = 4


@dataclass(frozen=True)
class RdfReference:
    """What the radial distribution functions of a run are held against.

    edges:  of the distance bins, [n_bins + 1] Å
    of:     element pair → g(r) of the recording, [n_bins]
    """

    edges: FloatArray
    of: Mapping[tuple[int, int], FloatArray]


@dataclass(frozen=True)
class FailureCriterion:
    """When a free run has failed; ``None`` switches a criterion off.

    kind:          what it is made for, and its name
    bond_change:   a bond's length differs from its start by more than this, Å ("Forces are not enough",
                   StABlE: 0.5); bonds are the pairs closer than 1.25 × the sum of covalent radii at the start
    apart:         atoms of different molecules are closer than this, Å (StABlE, water: 1.2)
    rdf:           over a whole ps ∫|g(r) − g_recorded(r)| dr of some element pair is above ``rdf_mae``, Å
                   ("Forces are not enough", water: 3.0)
    closest:       any pair of these elements (smaller number first) is closer than this, Å
    energy_change: the total energy differs from the start's by more than this, eV
    audit_ratio:   the force error on the run's own structures is above this times what it was at the start of
                   the runs (only known where an audit is made)
    A run that bursts (``BurstGuard``) has failed in any case.
    """

    kind: Kind = "molecule"
    bond_change: float | None = 0.5
    apart: float | None = None
    rdf: RdfReference | None = None
    rdf_mae: float = 3.0
    closest: Mapping[tuple[int, int], float] | None = None
    energy_change: float | None = 1.0
    audit_ratio: float | None = None

    def __str__(self) -> str:
        parts = [
            self.bond_change is not None and f"a bond length is off by more than {self.bond_change:g} Å",
            self.apart is not None and f"two molecules come closer than {self.apart:g} Å",
            self.rdf is not None
            and f"a radial distribution function is off by more than {self.rdf_mae:g} Å over a ps",
            self.closest is not None
            and f"a pair is closer than 0.8 × its smallest recorded distance ({_pairs(self.closest)})",
            self.energy_change is not None
            and f"the total energy is off by more than {self.energy_change:g} eV",
            self.audit_ratio is not None
            and f"the force error in the audit, where one is made, is above {self.audit_ratio:g} × its start",
        ]
        return " or ".join(part for part in parts if part)


def _pairs(closest: Mapping[tuple[int, int], float]) -> str:
    return ", ".join(
        f"{chemical_symbols[a]}–{chemical_symbols[b]} {limit:.2f} Å" for (a, b), limit in closest.items()
    )


def criterion_for(trajectories: Sequence[Trajectory], kind: Kind | None = None) -> FailureCriterion:
    """The criterion of a kind of system; without a kind, the one that suits the recorded runs.

    Reactive: somewhere in the recording a bond (of any frame) changes by more than 0.5 Å. Liquid: periodic,
    and at least four molecules. Molecule: everything else, where bonds stay bonds.

    Raises:
        UserError: an unknown kind, one that has no meaning for the system, or a recording that itself fails
            by the criterion asked for.
    """
    if kind is not None and kind not in get_args(Kind):
        raise UserError(f"a failure criterion is one of auto, {', '.join(get_args(Kind))}; got {kind!r}")
    breaking = _largest_bond_change(trajectories)
    if kind is None:
        kind = "reactive" if breaking > 0.5 else "liquid" if _is_liquid(trajectories[0]) else "molecule"
    if kind == "molecule":
        if breaking > 0.5:
            raise UserError(
                f"the recorded runs fail by the criterion 'molecule' themselves (a bond changes by "
                f"{breaking:.2f} Å): use --failure reactive"
            )
        return FailureCriterion()
    if kind == "liquid":
        if len(set(molecules_of(trajectories[0].state(0)).tolist())) < 2:
            raise UserError(
                "the criterion 'liquid' watches the distances between molecules, but the recorded system is "
                "one molecule: leave --failure out, or use molecule or reactive"
            )
        return FailureCriterion("liquid", bond_change=None, apart=1.2, rdf=rdf_reference(trajectories))
    return FailureCriterion(
        "reactive", bond_change=None, closest=closest_limits(trajectories), audit_ratio=3.0
    )


# Bonds are looked for in so many frames of each run: a free run may start at any.
_FRAMES_WITH_BONDS = 16


def _largest_bond_change(trajectories: Sequence[Trajectory]) -> float:
    """How far the recorded runs themselves take any bond from its length at a possible start, Å."""
    largest = 0.0
    for run in trajectories:
        for first, stop in run.stretches:
            count = min(_FRAMES_WITH_BONDS, stop - first)
            for start in np.linspace(first, stop - 1, count).astype(int).tolist():
                bonds = Bonds.of(run.state(start))
                lengths = observables.bond_lengths(
                    run.positions[first:stop], bonds.first, bonds.second, bonds.offsets
                )
                largest = max(largest, float(np.abs(lengths - bonds.lengths).max(initial=0.0)))
    return largest


def _is_liquid(run: Trajectory) -> bool:
    return bool(run.pbc.all()) and len(set(molecules_of(run.state(0)).tolist())) >= _FEWEST_MOLECULES


# --- what a criterion is made of ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Bonds:
    """The bonds of a batch at its start.

    first, second: atoms of each bond, each bond once, [n_bonds]
    lengths:       [n_bonds] Å
    system:        [n_bonds]
    offsets:       lattice vector that belongs to each bond, [n_bonds, 3] Å
    """

    first: IntArray
    second: IntArray
    lengths: FloatArray
    system: IntArray
    offsets: FloatArray
    n_systems: int

    @classmethod
    def of(cls, start: State) -> Bonds:
        radii = covalent_radii[as_numpy(start.atomic_numbers)]
        pairs = neighbor_list(start.detach(), 2.0 * BONDED * float(radii.max()))
        first, second = as_numpy(pairs.i), as_numpy(pairs.j)
        lengths = as_numpy(pair_vectors(start, pairs).norm(dim=-1))
        bonded = lengths < BONDED * (radii[first] + radii[second])
        first, second = first[bonded], second[bonded]
        system = as_numpy(start.system_idx)[first]
        offsets = np.einsum("bs,bsx->bx", as_numpy(pairs.shifts)[bonded], as_numpy(start.cell)[system])
        return cls(first, second, lengths[bonded], system, offsets, start.n_systems)

    def both_ways(self) -> Bonds:
        """The same with each bond twice, once from either atom."""
        return Bonds(
            np.concatenate([self.first, self.second]),
            np.concatenate([self.second, self.first]),
            np.tile(self.lengths, 2),
            np.tile(self.system, 2),
            np.concatenate([self.offsets, -self.offsets]),
            self.n_systems,
        )

    def largest_change(self, positions: FloatArray) -> FloatArray:
        """Largest |length − length at the start| of each system, [n_systems] Å; 0 where it has no bonds."""
        lengths = observables.bond_lengths(positions, self.first, self.second, self.offsets)
        largest = np.zeros(self.n_systems)
        np.maximum.at(largest, self.system, np.abs(lengths - self.lengths))
        return largest


def molecules_of(start: State) -> IntArray:
    """Number of the molecule (atoms connected by bonds) that each atom of a batch is in, [n_atoms]."""
    bonds = Bonds.of(start)
    graph = coo_array((np.ones(len(bonds.first)), (bonds.first, bonds.second)), (start.n_atoms,) * 2)
    _, labels = connected_components(graph, directed=False)
    return labels.astype(np.int64)


def pair_distances(state: State, reach: float) -> tuple[FloatArray, IntArray, IntArray]:
    """Distances of all pairs within ``reach``, each pair once, and the numbers of their atoms."""
    pairs = neighbor_list(state, reach)
    return as_numpy(pair_vectors(state, pairs).norm(dim=-1)), as_numpy(pairs.i), as_numpy(pairs.j)


# Of each run, at most about so many frames are searched for the smallest distances.
_MOST_FRAMES = 400


def closest_limits(trajectories: Sequence[Trajectory]) -> dict[tuple[int, int], float]:
    """0.8 × the smallest recorded distance of each element pair, Å.

    A pair that never comes within bonding distance in the recording (1.25 × the sum of its covalent radii)
    gets 0.8 × the sum of the radii: it may well meet in a free run, and that is no failure.
    """
    elements = sorted({int(z) for run in trajectories for z in run.atomic_numbers})
    smallest = {
        (a, b): float(covalent_radii[a] + covalent_radii[b])
        for n, a in enumerate(elements)
        for b in elements[n:]
    }
    met: dict[tuple[int, int], float] = {}
    reach = BONDED * 2.0 * float(covalent_radii[elements].max())
    for run in trajectories:
        for frame in range(0, run.n_frames, max(1, run.n_frames // _MOST_FRAMES)):
            distances, first, second = pair_distances(run.state(frame), reach)
            a, b = np.sort([run.atomic_numbers[first], run.atomic_numbers[second]], axis=0)
            bonded = distances < BONDED * (covalent_radii[a] + covalent_radii[b])
            for pair in set(zip(a[bonded].tolist(), b[bonded].tolist(), strict=True)):
                here = distances[bonded & (a == pair[0]) & (b == pair[1])].min()
                met[pair] = min(met.get(pair, math.inf), float(here))
    return {pair: 0.8 * distance for pair, distance in (smallest | met).items()}


_RDF_EVERY_FS, _RDF_WINDOW_FS = 10.0, 1000.0
_RDF_REACH, _RDF_BIN = 6.0, 0.05


def rdf_reference(trajectories: Sequence[Trajectory]) -> RdfReference | None:
    """g(r) of the recording; None where the runs are of different composition (there is no one g)."""
    first = trajectories[0]
    if any(not np.array_equal(run.atomic_numbers, first.atomic_numbers) for run in trajectories):
        return None
    counts = RdfCounts(first.atomic_numbers, _edges())
    for run in trajectories:
        stride = max(1, round(_RDF_EVERY_FS / run.dt_fs))
        for frame in range(0, run.n_frames, stride):
            state = run.state(frame)
            volume = abs(float(torch.linalg.det(state.cell[0])))
            counts.add(*pair_distances(state, _RDF_REACH), volume)
    return RdfReference(counts.edges, counts.functions())


def _edges() -> FloatArray:
    return np.linspace(0.0, _RDF_REACH, round(_RDF_REACH / _RDF_BIN) + 1)


class RdfCounts:
    """Gathers distances of one system over frames, and makes radial distribution functions of them."""

    def __init__(self, numbers: IntArray, edges: FloatArray) -> None:
        elements = sorted(set(numbers.tolist()))
        self.edges, self._numbers, self._n_frames = edges, numbers, 0
        self._counts = {(a, b): np.zeros(len(edges) - 1) for a in elements for b in elements if a <= b}
        self._volume = 0.0

    def add(self, distances: FloatArray, first: IntArray, second: IntArray, volume: float) -> None:
        """Distances of one frame, each pair once; volume in Å³."""
        self._n_frames += 1
        self._volume += volume
        a, b = np.sort([self._numbers[first], self._numbers[second]], axis=0)
        for pair, counts in self._counts.items():
            counts += np.histogram(distances[(a == pair[0]) & (b == pair[1])], self.edges)[0]

    def functions(self) -> dict[tuple[int, int], FloatArray]:
        """g(r) of each element pair, [n_bins]."""
        count = {z: int((self._numbers == z).sum()) for z in set(self._numbers.tolist())}
        return {
            (a, b): observables.rdf(
                counts / self._n_frames,
                self.edges,
                count[a] * (count[a] - 1) // 2 if a == b else count[a] * count[b],
                self._volume / self._n_frames,
            )
            for (a, b), counts in self._counts.items()
        }
