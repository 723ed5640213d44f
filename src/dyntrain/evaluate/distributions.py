"""What free runs look like beside the recording: distances, angles, spectra, diffusion, with error bars."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from ase.data import chemical_symbols

from dyntrain import observables
from dyntrain.data.trajectory import Trajectory
from dyntrain.evaluate.criteria import Bonds, RdfCounts, molecules_of, pair_distances
from dyntrain.evaluate.free import FreeRuns
from dyntrain.evaluate.starts import as_numpy
from dyntrain.observables import Estimate, FloatArray
from dyntrain.state import State

CurveKind = Literal["bond", "angle", "distance", "rdf", "vdos", "msd"]


@dataclass(frozen=True, eq=False)
class MotionCurve:
    """One quantity of the free runs and of the recording.

    kind, label: bond, angle and distance: probability density; rdf: g(r); vdos: density of unit area; msd: Å²
    x:           [n_x] Å, degrees, cm⁻¹ or fs
    recorded:    mean and error over blocks of the recording
    model:       mean and error over the free runs, while they were whole
    difference:  densities: ½∫|Δ|dx (0: the same, 1: nothing in common); rdf: ∫|Δg|dr, Å; msd: ∫|Δ|/∫recorded
    by_chance:   what error bars alone make of it; NaN where one is not known
    """

    kind: CurveKind
    label: str
    x: FloatArray
    recorded: Estimate
    model: Estimate
    difference: float
    by_chance: float


@dataclass(frozen=True)
class MotionComparison:
    """``left_out``: what was not compared → why."""

    curves: tuple[MotionCurve, ...]
    left_out: dict[str, str]


@dataclass(frozen=True, eq=False)
class _Piece:
    """Part of a run: positions and velocities [n_times, n_atoms, 3], ``dt_fs`` apart, from a start."""

    start: State
    positions: FloatArray
    velocities: FloatArray
    dt_fs: float

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def length_fs(self) -> float:
        return len(self) * self.dt_fs


# The recording is cut into so many pieces, whose scatter gives its error bars.
_N_BLOCKS = 5
_SHORTEST_FS = 100.0
_SHORTEST_SPECTRUM_FS, _LONGEST_SPECTRUM_FS = 250.0, 1000.0
_COARSEST_SPECTRUM_FS = 4.0
_SHORTEST_MSD_FS = 1000.0
_MOST_LAGS = 100
_FEWEST_ATOMS_RDF, _FEWEST_MOLECULES = 16, 4
_RDF_REACH, _FRAMES_A_PIECE = 6.0, 40


def compare_motion(free: FreeRuns, trajectories: Sequence[Trajectory]) -> MotionComparison:
    """Bond lengths, angles, distances, VDOS and MSD of free runs against the recording, where they mean
    something; what does not is left out with its reason."""
    names = "distances, angles, VDOS, MSD"
    first = trajectories[0]
    if any(not np.array_equal(run.atomic_numbers, first.atomic_numbers) for run in trajectories):
        return MotionComparison((), {names: "the held-out runs have different atoms"})
    if free.temperature_K is not None:
        return MotionComparison((), {names: "the free runs are hotter or colder than the recording"})
    recorded, own = list(_recorded_pieces(trajectories)), list(_own_pieces(free))
    if not own:
        return MotionComparison((), {names: f"no free run stayed whole for {_SHORTEST_FS:g} fs"})
    if not recorded:
        return MotionComparison((), {names: f"the held-out runs are shorter than {_SHORTEST_FS:g} fs"})
    left_out: dict[str, str] = {}
    curves = [
        *_structure(recorded, own, free, left_out),
        *_spectrum(trajectories, own, left_out),
        *_diffusion(trajectories, own, free, left_out),
    ]
    return MotionComparison(tuple(curves), left_out)


def _recorded_pieces(trajectories: Sequence[Trajectory]) -> Iterator[_Piece]:
    total = sum(run.n_frames * run.dt_fs for run in trajectories)
    length = max(_SHORTEST_FS, total / _N_BLOCKS)
    for run in trajectories:
        for begin, stop in run.stretches:
            n_blocks = max(1, int((stop - begin) * run.dt_fs / length + 1e-6))
            for frames in np.array_split(np.arange(begin, stop), n_blocks):
                if len(frames) * run.dt_fs >= 0.99 * _SHORTEST_FS:
                    yield _piece(run, int(frames[0]), int(frames[-1]) + 1)


def _piece(run: Trajectory, first: int, stop: int) -> _Piece:
    frames = slice(first, stop)
    return _Piece(run.state(first), run.positions[frames], run.velocities[frames], run.dt_fs)


def _own_pieces(free: FreeRuns) -> Iterator[_Piece]:
    motion = free.motion
    if motion is None or len(motion.times_fs) < 2:
        return
    dt_fs = float(motion.times_fs[1])
    for run in range(free.n_runs):
        start = motion.starts.select([run])
        atoms = as_numpy(motion.starts.system_idx) == run
        n_whole = int(motion.whole[:, run].sum())
        if n_whole * dt_fs >= _SHORTEST_FS:
            yield _Piece(
                start,
                motion.positions[:n_whole, atoms].astype(np.float64),
                motion.velocities[:n_whole, atoms].astype(np.float64),
                dt_fs,
            )


# --- structure ----------------------------------------------------------------------------------------


def _structure(
    recorded: list[_Piece], own: list[_Piece], free: FreeRuns, left_out: dict[str, str]
) -> Iterator[MotionCurve]:
    if free.criterion.kind == "reactive":
        left_out["bonds and angles"] = "bonds form and break in the recording"
    else:
        yield from _densities("bond", _bond_values, 0.01, recorded, own)
        yield from _densities("angle", _angle_values, 2.0, recorded, own)
    start = recorded[0].start
    if not bool(start.pbc.all()) or start.n_atoms < _FEWEST_ATOMS_RDF:
        left_out["RDF"] = "not a periodic liquid or solid; distances of all pairs stand in its place"
        yield from _densities("distance", _distance_values, 0.05, recorded, own)
    else:
        yield from _rdfs(recorded, own)


def _densities(
    kind: CurveKind,
    values_of: Callable[[_Piece], dict[str, FloatArray]],
    width: float,
    recorded: list[_Piece],
    own: list[_Piece],
) -> Iterator[MotionCurve]:
    from_recording, from_model = [values_of(p) for p in recorded], [values_of(p) for p in own]
    for label in from_recording[0]:
        pieces = [[found[label] for found in side if label in found] for side in (from_recording, from_model)]
        if not all(pieces):
            continue
        every = np.concatenate([values.ravel() for side in pieces for values in side])
        low, high = np.quantile(every, [0.0005, 0.9995])
        edges = np.arange(np.floor(low / width) - 1, np.ceil(high / width) + 2) * width
        one, other = (
            observables.estimate(np.array([observables.density(v, edges) for v in side])) for side in pieces
        )
        difference, chance = observables.distance_between(one, other, np.diff(edges))
        centres = 0.5 * (edges[1:] + edges[:-1])
        yield MotionCurve(kind, label, centres, one, other, 0.5 * difference, 0.5 * chance)


def _bond_values(piece: _Piece) -> dict[str, FloatArray]:
    bonds = Bonds.of(piece.start)
    numbers = as_numpy(piece.start.atomic_numbers)
    lengths = observables.bond_lengths(piece.positions, bonds.first, bonds.second, bonds.offsets)
    a, b = np.sort([numbers[bonds.first], numbers[bonds.second]], axis=0)
    return {
        f"{chemical_symbols[y]}–{chemical_symbols[x]} bond (Å)": lengths[:, (a == x) & (b == y)]
        for x, y in sorted(set(zip(a.tolist(), b.tolist(), strict=True)))
    }


def _angle_values(piece: _Piece) -> dict[str, FloatArray]:
    bonds, numbers = Bonds.of(piece.start).both_ways(), as_numpy(piece.start.atomic_numbers)
    centres, ends, offsets, labels = [], [], [], []
    for atom in range(piece.start.n_atoms):
        arms = np.flatnonzero(bonds.first == atom)
        for one, other in itertools.combinations(arms.tolist(), 2):
            outer = sorted((one, other), key=lambda arm: (-numbers[bonds.second[arm]], arm))
            centres.append(atom)
            ends.append(bonds.second[outer])
            offsets.append(bonds.offsets[outer])
            x, y = (chemical_symbols[numbers[bonds.second[arm]]] for arm in outer)
            labels.append(f"{x}–{chemical_symbols[numbers[atom]]}–{y} angle (°)")
    if not centres:
        return {}
    found = observables.angles(piece.positions, np.array(centres), np.array(ends), np.array(offsets))
    which = np.array(labels)
    return {label: found[:, which == label] for label in sorted(set(labels))}


def _distance_values(piece: _Piece) -> dict[str, FloatArray]:
    first, second = np.triu_indices(piece.start.n_atoms, 1)
    stride = max(1, len(piece) // 200)
    apart = piece.positions[::stride, second] - piece.positions[::stride, first]
    return {"distance of any two atoms (Å)": np.linalg.norm(apart, axis=-1)}


def _rdfs(recorded: list[_Piece], own: list[_Piece]) -> Iterator[MotionCurve]:
    edges = np.linspace(0.0, _RDF_REACH, 121)
    sides = [[_rdf_of(piece, edges) for piece in side] for side in (recorded, own)]
    for a, b in sides[0][0]:
        one, other = (observables.estimate(np.array([found[a, b] for found in side])) for side in sides)
        difference, chance = observables.distance_between(one, other, np.diff(edges))
        label = f"{chemical_symbols[b]}–{chemical_symbols[a]} distance (Å)"
        yield MotionCurve("rdf", label, 0.5 * (edges[1:] + edges[:-1]), one, other, difference, chance)


def _rdf_of(piece: _Piece, edges: FloatArray) -> dict[tuple[int, int], FloatArray]:
    counts = RdfCounts(as_numpy(piece.start.atomic_numbers), edges)
    volume = abs(float(torch.linalg.det(piece.start.cell[0])))
    for frame in range(0, len(piece), max(1, len(piece) // _FRAMES_A_PIECE)):
        state = piece.start.replace(positions=torch.from_numpy(piece.positions[frame].copy()))
        counts.add(*pair_distances(state, float(edges[-1])), volume)
    return counts.functions()


# --- motion -------------------------------------------------------------------------------------------


def _spectrum(
    trajectories: Sequence[Trajectory], own: list[_Piece], left_out: dict[str, str]
) -> Iterator[MotionCurve]:
    stretches = [_piece(run, *edge) for run in trajectories for edge in run.stretches]
    longest = max(piece.length_fs for piece in stretches), max(piece.length_fs for piece in own)
    length = min(_LONGEST_SPECTRUM_FS, *longest)
    if sum(int(piece.length_fs / length) for piece in stretches) < 2:
        # Two coarser spectra of the recording tell more than one without an error bar.
        length = min(length, max(longest[0] / 2, _SHORTEST_SPECTRUM_FS))
    if length < _SHORTEST_SPECTRUM_FS:
        left_out["VDOS"] = (
            f"the runs are shorter than {_SHORTEST_SPECTRUM_FS:g} fs, too short to tell frequencies apart"
        )
        return
    if max(own[0].dt_fs, stretches[0].dt_fs) > _COARSEST_SPECTRUM_FS:
        left_out["VDOS"] = f"frames more than {_COARSEST_SPECTRUM_FS:g} fs apart miss the fastest bonds"
        return
    grid, model = _spectra(own, length)
    other_grid, recorded = _spectra(stretches, length)
    grid = grid[grid <= min(4500.0, other_grid[-1])]
    one = observables.estimate(np.array([np.interp(grid, other_grid, s) for s in recorded]))
    other = observables.estimate(model[:, : len(grid)])
    difference, chance = observables.distance_between(one, other, np.full(len(grid), grid[1]))
    yield MotionCurve("vdos", "wavenumber (cm⁻¹)", grid, one, other, 0.5 * difference, 0.5 * chance)


def _spectra(pieces: list[_Piece], length_fs: float) -> tuple[FloatArray, FloatArray]:
    """Spectra of all parts of the given length, [n_parts, n_frequencies], and their wavenumbers."""
    n_times = int(length_fs / pieces[0].dt_fs + 1e-6)
    found, grid = [], np.empty(0)
    for piece in pieces:
        masses = as_numpy(piece.start.masses)
        for begin in range(0, len(piece) - n_times + 1, n_times):
            grid, spectrum = observables.vdos(piece.velocities[begin : begin + n_times], masses, piece.dt_fs)
            found.append(spectrum)
    return grid, np.array(found)


def _diffusion(
    trajectories: Sequence[Trajectory], own: list[_Piece], free: FreeRuns, left_out: dict[str, str]
) -> Iterator[MotionCurve]:
    run = trajectories[0]
    start = run.state(0)
    if not run.pbc.all() or len(set(molecules_of(start).tolist())) < _FEWEST_MOLECULES:
        left_out["MSD"] = "fewer than four molecules in a periodic cell: nothing diffuses"
        return
    stretches = [_piece(run, *edge) for run in trajectories for edge in run.stretches]
    longest = min(max(p.length_fs for p in stretches), max(p.length_fs for p in own))
    if longest < _SHORTEST_MSD_FS:
        left_out["MSD"] = f"the runs are shorter than {_SHORTEST_MSD_FS / 1000:g} ps"
        return
    lag_fs = longest / 4
    grid, model = _displacements(own, lag_fs)
    other_grid, recorded = _displacements([*_blocks(stretches, 2 * lag_fs)], lag_fs)
    one = observables.estimate(np.array([np.interp(grid, other_grid, s) for s in recorded]))
    other = observables.estimate(model)
    widths = np.full(len(grid), grid[1])
    total = float((one.mean * widths).sum())
    difference, chance = (d / total for d in observables.distance_between(one, other, widths))
    yield MotionCurve("msd", "time (fs)", grid, one, other, difference, chance)


def _blocks(pieces: list[_Piece], length_fs: float) -> Iterator[_Piece]:
    for piece in pieces:
        n_times = int(length_fs / piece.dt_fs)
        for begin in range(0, len(piece) - n_times + 1, n_times):
            part = slice(begin, begin + n_times)
            yield _Piece(piece.start, piece.positions[part], piece.velocities[part], piece.dt_fs)


def _displacements(pieces: list[_Piece], lag_fs: float) -> tuple[FloatArray, FloatArray]:
    """MSD of each piece that is long enough, [n_pieces, n_lags], and the lags in fs."""
    stride = max(1, int(lag_fs / pieces[0].dt_fs / _MOST_LAGS))
    dt_fs = stride * pieces[0].dt_fs
    n_lags = int(lag_fs / dt_fs) + 1
    found = []
    for piece in pieces:
        positions = piece.positions[::stride]
        if len(positions) > n_lags:
            masses = as_numpy(piece.start.masses)[:, None]
            centre = (masses * positions).sum(1, keepdims=True) / masses.sum()
            found.append(observables.mean_square_displacement(positions - centre, n_lags))
    return np.arange(n_lags, dtype=np.float64) * dt_fs, np.array(found)
