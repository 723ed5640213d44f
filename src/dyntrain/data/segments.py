"""Segments: windows of consecutive frames, and their collation to one batch of systems."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from dyntrain.data.trajectory import IntArray, Trajectory
from dyntrain.errors import UserError
from dyntrain.integrators import Kicks, VelocityVerlet
from dyntrain.state import State


class Segment(NamedTuple):
    """`length` frames of run number `run`: frame `start` and every `stride`-th after it.

    With stride n one step of the roll-out is n·dt long and carries its own kick: the true potential still
    follows the run exactly, and n times more time is unrolled for the same cost (METHOD: idea 2).
    """

    run: int
    start: int
    length: int
    stride: int = 1

    @property
    def frames(self) -> slice:
        """The frames as a slice of the run."""
        return slice(self.start, self.start + (self.length - 1) * self.stride + 1, self.stride)


class Segments(Sequence[Segment]):
    """Many windows of one length as two arrays: millions of them stay small.

    Args:
        runs, starts: run number and first frame of each window, int64 [n].
        length: frames of each window (the paper's S).
        stride: see ``Segment``.
    """

    def __init__(self, runs: IntArray, starts: IntArray, length: int, stride: int = 1) -> None:
        self.runs, self.starts, self.length, self.stride = runs, starts, length, stride

    def __len__(self) -> int:
        return int(self.starts.shape[0])

    @overload
    def __getitem__(self, index: int) -> Segment: ...
    @overload
    def __getitem__(self, index: slice) -> Segments: ...
    def __getitem__(self, index: int | slice) -> Segment | Segments:
        if isinstance(index, slice):
            return Segments(self.runs[index], self.starts[index], self.length, self.stride)
        return Segment(int(self.runs[index]), int(self.starts[index]), self.length, self.stride)

    def take(self, indices: Sequence[int] | IntArray) -> Segments:
        """The windows with the given numbers, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Segments(self.runs[chosen], self.starts[chosen], self.length, self.stride)

    def shortened(self, length: int) -> Segments:
        """The first `length` frames of each window: the same starts at an earlier stage of the curriculum."""
        if not 1 <= length <= self.length:
            raise ValueError(f"windows of {self.length} frames cannot be cut to {length}")
        return Segments(self.runs, self.starts, length, self.stride)

    def within(self, length: int) -> Segments:
        """Every window of `length` frames that lies in one of these, each once, by run and first frame."""
        if not 1 <= length <= self.length:
            raise ValueError(f"windows of {self.length} frames hold none of {length}")
        offsets = np.arange(self.length - length + 1, dtype=np.int64) * self.stride
        starts = (self.starts[:, None] + offsets).ravel()
        found = np.unique(np.stack([np.repeat(self.runs, len(offsets)), starts], axis=1), axis=0)
        return Segments(found[:, 0].copy(), found[:, 1].copy(), length, self.stride)


@dataclass(frozen=True, eq=False)
class Targets:
    """The reference along the windows of a batch.

    positions, velocities, forces: [length, n_atoms, 3] Å, Å/ASE time, eV/Å
    energies:                      [length, n_systems] eV
    stress:                        [length, n_systems, 6] eV/Å³; None where not all runs have it
    unlabelled:                    fixed atoms whose forces were not recorded, bool [n_atoms]; None: all were
    """

    positions: Tensor
    velocities: Tensor
    forces: Tensor
    energies: Tensor
    stress: Tensor | None = None
    unlabelled: Tensor | None = None

    def to(self, device: torch.device | str) -> Targets:
        return Targets(
            self.positions.to(device),
            self.velocities.to(device),
            self.forces.to(device),
            self.energies.to(device),
            None if self.stress is None else self.stress.to(device),
            None if self.unlabelled is None else self.unlabelled.to(device),
        )


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows of equal length from any runs, one system each.

    state:    the first frames.
    targets:  all frames.
    kicks:    what the runs did beside velocity Verlet, ``length − 1`` steps.
    dt:       time between the windows' frames of each system, [n_systems] ASE time.
    segments: which windows these are.
    small_steps: steps from frame to frame.
    friction: between the frames, [length − 1, n_systems] 1/ASE time; None where one step with its kick does.
    """

    state: State
    targets: Targets
    kicks: Kicks
    dt: Tensor
    segments: tuple[Segment, ...]
    small_steps: int = 1
    friction: Tensor | None = None

    @property
    def length(self) -> int:
        return int(self.targets.energies.shape[0])

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self,
            state=self.state.to(device),
            targets=self.targets.to(device),
            kicks=self.kicks.to(device),
            dt=self.dt.to(device),
            friction=None if self.friction is None else self.friction.to(device),
        )


def windows(trajectory: Trajectory, length: int, stride: int = 1) -> IntArray:
    """First frames of all windows of `length` frames that cross no break, int64 [n_windows] (maybe none).

    A frame alone between two breaks fits neither neighbour, so it is not trusted and is in no window, unless
    all frames are structures of no run.
    """
    if length < 1:
        raise UserError(f"A segment needs at least 1 frame, got a length of {length}.")
    span = (length - 1) * stride + 1
    starts = [
        np.arange(first, stop - span + 1, dtype=np.int64)
        for first, stop in trajectory.stretches
        if stop - first > 1 or trajectory.alone
    ]
    return np.concatenate([*starts, np.empty(0, np.int64)])


def find_segments(
    trajectories: Sequence[Trajectory], length: int, what: str = "data", stride: int = 1
) -> Segments:
    """All windows of `length` frames (each `stride`-th) of all runs.

    Args:
        what: the part of the data these runs are ("training", "validation"), named in the error.

    Raises:
        UserError: no run holds such a window; the sentence gives the longest one possible.
    """
    starts = [windows(trajectory, length, stride) for trajectory in trajectories]
    found = Segments(
        np.repeat(np.arange(len(starts), dtype=np.int64), [s.shape[0] for s in starts]),
        np.concatenate(starts) if starts else np.empty(0, np.int64),
        length,
        stride,
    )
    if not trajectories:
        raise UserError(f"There are no {what} runs.")
    if not found:
        longest = max(stop - first for run in trajectories for first, stop in run.stretches)
        most = (longest - 1) // stride + 1
        each = "" if stride == 1 else f", each {stride} frames after the last"
        raise UserError(
            f"No {what} run holds a segment of {length} frames{each}: the longest stretch without a break "
            f"has {longest} frames; use a segment length of at most {most} or give longer runs."
        )
    return found


def collate(segments: Sequence[Segment], trajectories: Sequence[Trajectory]) -> Batch:
    """One batch of the given windows (equal lengths; any sizes, compositions, cells and time steps).

    Raises:
        UserError: a window that leaves its run or crosses a break.
    """
    if not segments:
        raise ValueError("collate needs at least one segment")
    length = segments[0].length
    runs = [trajectories[segment.run] for segment in segments]
    frames = [segment.frames for segment in segments]
    for segment, chosen, run in zip(segments, frames, runs, strict=True):
        if segment.length != length:
            raise ValueError(f"segments of {length} and {segment.length} frames cannot share a batch")
        _check_window(chosen, run)
    positions, velocities, forces, energies = (
        # Frame by frame, the systems side by side: [length, n_atoms, 3] and [length, n_systems].
        np.concatenate([array[chosen] for array, chosen in zip(arrays, frames, strict=True)], axis=1)
        for arrays in (
            [run.positions for run in runs],
            [run.velocities for run in runs],
            [run.forces for run in runs],
            [run.energies[:, None] for run in runs],
        )
    )
    alike, unlabelled, dt = _alike(tuple(map(weakref.ref, runs)), tuple(s.stride for s in segments))
    targets = Targets(
        torch.from_numpy(positions),
        torch.from_numpy(velocities),
        torch.from_numpy(forces),
        torch.from_numpy(energies),
        _stress(segments, runs),
        unlabelled,
    )
    cells = np.concatenate([run.cell_at(segment.start) for segment, run in zip(segments, runs, strict=True)])
    state = alike.replace(
        positions=torch.from_numpy(positions[0].copy()),
        velocities=torch.from_numpy(velocities[0].copy()),
        cell=torch.from_numpy(cells.reshape(-1, 3, 3)),
    )
    if length > 1:
        kicks = VelocityVerlet(dt).record_kicks(targets.positions, targets.velocities, targets.forces, state)
    else:  # single frames, often: of no step
        none = targets.positions[1:]
        kicks = Kicks(none, none)
    if not all(run.fixed_cell for run in runs):
        later_cells = torch.from_numpy(_cells(segments, runs, length)[1:])
        kicks = Kicks(kicks.positions, kicks.velocities, later_cells)
    small_steps = {run.small_steps for run in runs} if length > 1 else {1}
    if len(small_steps) > 1:
        raise ValueError(f"windows of {sorted(small_steps)} small steps a frame cannot share a batch")
    friction = None
    if small_steps != {1}:
        columns = [run.friction(segment.frames) for segment, run in zip(segments, runs, strict=True)]
        friction = torch.from_numpy(np.stack(columns, axis=1))
    return Batch(state, targets, kicks, dt, tuple(segments), small_steps.pop(), friction)


@lru_cache(maxsize=16)
def _alike(
    references: tuple[weakref.ref[Trajectory], ...], strides: tuple[int, ...]
) -> tuple[State, Tensor | None, Tensor]:
    """What all batches of these runs have alike: a state but for motion and cells, unlabelled atoms, dt.

    Kept, since many trainings have one run; by weak references, which keep no run in memory.
    """
    runs = [run for run in (reference() for reference in references) if run is not None]
    n_atoms = [run.n_atoms for run in runs]
    nowhere = torch.zeros(sum(n_atoms), 3, dtype=torch.float64)
    state = State(
        positions=nowhere,
        velocities=nowhere,
        masses=torch.from_numpy(np.concatenate([run.masses for run in runs])),
        atomic_numbers=torch.from_numpy(np.concatenate([run.atomic_numbers for run in runs])),
        system_idx=torch.from_numpy(np.repeat(np.arange(len(runs), dtype=np.int64), n_atoms)),
        cell=torch.zeros(len(runs), 3, 3, dtype=torch.float64),
        pbc=torch.from_numpy(np.stack([run.pbc for run in runs])),
        fixed=_marked(runs, [run.fixed_atoms for run in runs]),
    )
    state.n_atoms_per_system()  # counted once, and passed on by ``replace``
    dt = torch.tensor([n * run.dt for n, run in zip(strides, runs, strict=True)], dtype=torch.float64)
    return state, _marked(runs, [run.unlabelled_atoms for run in runs]), dt


def _stress(segments: Sequence[Segment], runs: Sequence[Trajectory]) -> Tensor | None:
    """Stress along the windows, [length, n_systems, 6] eV/Å³; None where a run has none."""
    found = [run.stress[s.frames] for s, run in zip(segments, runs, strict=True) if run.stress is not None]
    return torch.from_numpy(np.stack(found, axis=1)) if len(found) == len(runs) else None


def _marked(runs: Sequence[Trajectory], atoms: Sequence[Sequence[int]]) -> Tensor | None:
    """Which atoms of the batch are among those given for each run, bool [n_atoms]; None where none are."""
    if not any(atoms):
        return None
    marks = [np.isin(np.arange(run.n_atoms), chosen) for run, chosen in zip(runs, atoms, strict=True)]
    return torch.from_numpy(np.concatenate(marks))


def _cells(segments: Sequence[Segment], runs: Sequence[Trajectory], length: int) -> np.ndarray:
    """Cells along the windows, [length, n_systems, 3, 3] Å."""
    cells = np.empty((length, len(runs), 3, 3))
    for number, (segment, run) in enumerate(zip(segments, runs, strict=True)):
        cells[:, number] = run.cell if run.cell.ndim == 2 else run.cell[segment.frames]
    return cells


def _check_window(frames: slice, run: Trajectory) -> None:
    start, stop = frames.start, frames.stop
    if not 0 <= start < stop <= run.n_frames or run.crosses_break(start, stop):
        raise UserError(
            f"{run.file}: frames {start}:{stop} are no window of this run of {run.n_frames} frames with "
            f"breaks at {list(run.breaks)}."
        )


def epoch_order(n: int, seed: int, epoch: int) -> IntArray:
    """The order of n samples in one epoch: a permutation that depends on (seed, epoch) alone.

    Nothing is carried over between epochs, so training resumes anywhere by skipping what was done.
    """
    return np.random.default_rng([seed, epoch]).permutation(n)
