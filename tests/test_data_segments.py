"""Segments and splits: windows cross no break, batches are slices, no frame is in two splits."""

from __future__ import annotations

import gc
import itertools
import time
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dyntrain.data.segments import Segment, collate, epoch_order, find_segments, windows
from dyntrain.data.splits import automatic_split, explicit_split, split_by_run, split_by_time
from dyntrain.errors import UserError
from dyntrain.integrators import VelocityVerlet
from made_runs import morse_trajectory

RUN = morse_trajectory(40)


@given(st.sets(st.integers(1, 39)), st.integers(1, 40))
def test_windows_are_all_that_cross_no_break(breaks: set[int], length: int) -> None:
    found = set(windows(RUN.replace(breaks=tuple(breaks)), length).tolist())
    edges = [0, *sorted(breaks), 40]
    alone = {b for b, after in itertools.pairwise(edges) if after - b == 1}
    for start in range(40):
        frames = range(start, start + length)
        whole = frames.stop <= 40 and not any({b - 1, b} <= set(frames) for b in breaks)
        assert (start in found) == (whole and not (length == 1 and start in alone))


def test_structures_of_no_run_are_windows_of_one_frame() -> None:
    runs = [RUN, RUN.slice(7, 12).replace(alone=True)]
    assert windows(runs[1], 1).tolist() == [0, 1, 2, 3, 4] and windows(runs[1], 2).tolist() == []
    batch = collate([Segment(0, 9, 1), Segment(1, 2, 1)], runs)
    torch.testing.assert_close(*batch.targets.forces[0].chunk(2), rtol=0, atol=0)
    assert {s.run for s in find_segments(runs, 3)} == {0}
    with pytest.raises(UserError, match="longest stretch without a break has 1 frames"):
        find_segments(runs[1:], 2)


def test_segments_of_several_runs() -> None:
    runs = [morse_trajectory(10), morse_trajectory(12, seed=1).replace(breaks=(5,))]
    found = find_segments(runs, 4)
    assert [(s.run, s.start) for s in found] == [(0, k) for k in range(7)] + [
        (1, k) for k in (0, 1, 5, 6, 7, 8)
    ]
    assert found[7] == Segment(1, 0, 4)
    assert list(found.take([2, 0])) == [Segment(0, 2, 4), Segment(0, 0, 4)]
    assert list(found.shortened(2)[:1]) == [Segment(0, 0, 2)]
    with pytest.raises(ValueError, match="windows of 4 frames cannot be cut to 5"):
        found.shortened(5)


def test_longer_segments_than_the_runs_are_refused_with_numbers() -> None:
    with pytest.raises(UserError, match=r"No validation run holds a segment of 41 frames: .* has 40 frames"):
        find_segments([RUN], 41, "validation")
    with pytest.raises(UserError, match="longest stretch without a break has 25 frames"):
        find_segments([RUN.replace(breaks=(25,))], 30)
    with pytest.raises(UserError, match="There are no training runs"):
        find_segments([], 3, "training")
    with pytest.raises(UserError, match="at least 1 frame, got a length of 0"):
        windows(RUN, 0)


def test_a_batch_holds_systems_of_any_size_composition_cell_and_dt() -> None:
    water = morse_trajectory(20, numbers=(8, 1, 1), dt_fs=0.25, seed=3, cell=np.diag([15.0, 16.0, 17.0]))
    gas = morse_trajectory(20, numbers=(6, 8), seed=4, pbc=np.array([False] * 3), cell=np.zeros((3, 3)))
    runs = [water, RUN, gas]
    segments = [Segment(1, 30, 6), Segment(0, 3, 6), Segment(2, 0, 6), Segment(0, 14, 6)]
    batch = collate(segments, runs)
    assert batch.segments == tuple(segments)
    assert (batch.length, batch.kicks.n_steps, batch.state.n_systems) == (6, 5, 4)
    assert batch.state.n_atoms_per_system().tolist() == [4, 3, 2, 3]
    for number, segment in enumerate(segments):
        run = runs[segment.run]
        alone = collate([segment], runs)
        atoms = batch.state.atoms_of(torch.tensor([number]))
        frames = slice(segment.start, segment.start + 6)
        np.testing.assert_array_equal(batch.targets.positions[:, atoms], run.positions[frames])
        np.testing.assert_array_equal(batch.targets.velocities[:, atoms], run.velocities[frames])
        np.testing.assert_array_equal(batch.targets.forces[:, atoms], run.forces[frames])
        np.testing.assert_array_equal(batch.targets.energies[:, number], run.energies[frames])
        np.testing.assert_array_equal(batch.state.cell[number], run.cell)
        np.testing.assert_array_equal(batch.state.pbc[number], run.pbc)
        np.testing.assert_array_equal(batch.state.masses[atoms], run.masses)
        np.testing.assert_array_equal(batch.state.atomic_numbers[atoms], run.atomic_numbers)
        np.testing.assert_array_equal(batch.state.positions[atoms], run.positions[segment.start])
        np.testing.assert_array_equal(batch.state.velocities[atoms], run.velocities[segment.start])
        assert batch.dt[number] == run.dt
        np.testing.assert_array_equal(batch.kicks.velocities[:, atoms], alone.kicks.velocities)
        expected = run.kicks(segment.start, segment.start + 6)
        np.testing.assert_array_equal(batch.kicks.positions[:, atoms], expected.positions)


def test_the_kicks_of_a_batch_lead_along_its_targets() -> None:
    other = morse_trajectory(20, numbers=(8, 1, 1), dt_fs=0.25, seed=3)
    kicked = other.replace(velocities=other.velocities * 1.3)  # anything but velocity Verlet
    batch = collate([Segment(0, 4, 8), Segment(1, 7, 8)], [RUN, kicked])
    verlet, state, forces = VelocityVerlet(batch.dt), batch.state, batch.targets.forces
    for k in range(batch.length - 1):
        state = verlet.drift(state, forces[k], batch.kicks.positions[k])
        state = verlet.finish(state, forces[k], forces[k + 1], batch.kicks.velocities[k])
        torch.testing.assert_close(state.positions, batch.targets.positions[k + 1], rtol=0, atol=4e-15)
        torch.testing.assert_close(state.velocities, batch.targets.velocities[k + 1], rtol=0, atol=1e-15)


def test_one_frame_segments_have_no_kicks() -> None:
    batch = collate([Segment(0, 0, 1), Segment(0, 39, 1)], [RUN])
    assert (batch.length, batch.kicks.n_steps) == (1, 0)
    assert batch.to("cpu").targets.energies.shape == (1, 2)


def test_a_batch_does_not_alias_the_run() -> None:
    before = RUN.positions.copy()
    batch = collate([Segment(0, 0, 40)], [RUN])
    batch.targets.positions.add_(1.0)
    batch.state.masses.add_(1.0)
    np.testing.assert_array_equal(RUN.positions, before)
    assert RUN.masses[0] == 12.011
    assert not torch.equal(batch.state.positions, batch.targets.positions[0])


def test_wrong_windows_are_refused() -> None:
    broken = RUN.replace(breaks=(10,))
    with pytest.raises(UserError, match=r"frames 8:12 are no window of this run of 40 frames with breaks"):
        collate([Segment(0, 8, 4)], [broken])
    with pytest.raises(UserError, match="frames 38:42 are no window"):
        collate([Segment(0, 38, 4)], [broken])
    with pytest.raises(ValueError, match="segments of 4 and 5 frames cannot share a batch"):
        collate([Segment(0, 0, 4), Segment(0, 0, 5)], [broken])


def test_a_batch_carries_the_recorded_cells_where_one_changes() -> None:
    growing = RUN.replace(cell=RUN.cell * np.linspace(1, 1.1, 40)[:, None, None])
    assert collate([Segment(0, 0, 4)], [RUN]).kicks.cells is None
    batch = collate([Segment(0, 3, 4), Segment(1, 5, 4)], [RUN, growing])
    assert batch.kicks.cells is not None
    np.testing.assert_array_equal(batch.state.cell[1], growing.cell[5])
    np.testing.assert_array_equal(batch.kicks.cells[:, 1], growing.cell[6:9])
    np.testing.assert_array_equal(batch.kicks.cells[:, 0], np.broadcast_to(RUN.cell, (3, 3, 3)))
    np.testing.assert_array_equal(growing.kicks(5, 9).cells[:, 0], growing.cell[6:9])


def test_coarse_steps_carry_their_own_kicks() -> None:
    """Windows of each third frame: the recording's own forces and the kicks lead from one to the next."""
    found = find_segments([RUN.replace(breaks=(20,))], 4, stride=3)
    assert [s.start for s in found] == [*range(0, 11), *range(20, 31)]
    batch = collate([Segment(0, 5, 4, 3)], [RUN])
    assert batch.dt.tolist() == [3 * RUN.dt]
    np.testing.assert_array_equal(batch.targets.positions, RUN.positions[5:15:3])
    verlet, state = VelocityVerlet(batch.dt), batch.state
    for k in range(3):
        force, following = batch.targets.forces[k], batch.targets.forces[k + 1]
        state = verlet.drift(state, force, batch.kicks.positions[k])
        state = verlet.finish(state, force, following, batch.kicks.velocities[k])
        torch.testing.assert_close(state.positions, batch.targets.positions[k + 1], rtol=0, atol=1e-13)
        torch.testing.assert_close(state.velocities, batch.targets.velocities[k + 1], rtol=0, atol=1e-13)
    with pytest.raises(UserError, match=r"segment of 20 frames, each 3 frames after the last: .* at most 14"):
        find_segments([RUN], 20, stride=3)


def test_a_batch_knows_the_fixed_atoms() -> None:
    held = RUN.replace(fixed_atoms=(1, 3))
    assert collate([Segment(0, 0, 2)], [RUN]).state.fixed is None
    fixed = collate([Segment(0, 0, 2), Segment(1, 0, 2)], [RUN, held]).state.fixed
    assert fixed is not None
    assert fixed.tolist() == [False] * 4 + [False, True, False, True]


def test_collating_is_quick() -> None:
    rng = np.random.default_rng(0)
    big = morse_trajectory(2).replace(
        positions=rng.normal(size=(100, 57, 3)),
        velocities=rng.normal(size=(100, 57, 3)),
        forces=rng.normal(size=(100, 57, 3)),
        energies=rng.normal(size=100),
        masses=np.full(57, 12.0),
        atomic_numbers=np.full(57, 6),
    )
    segments = find_segments([big], 8).take(epoch_order(93, 0, 0)[:32])
    best = np.inf
    for _ in range(20):
        start = time.perf_counter()
        collate(segments, [big])
        best = min(best, time.perf_counter() - start)
    assert best < 0.02  # about 1 to 3 ms on one idle core; the rest is room for a busy one


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone() -> None:
    first = epoch_order(100, seed=3, epoch=5)
    np.testing.assert_array_equal(np.sort(first), np.arange(100))
    np.testing.assert_array_equal(first, epoch_order(100, seed=3, epoch=5))
    assert not np.array_equal(first, epoch_order(100, seed=3, epoch=6))
    assert not np.array_equal(first, epoch_order(100, seed=4, epoch=5))


@given(st.integers(2, 200), st.integers(1, 60), st.floats(0.05, 0.95))
def test_training_and_validation_share_no_frame(n_frames: int, max_length: int, fraction: float) -> None:
    run = morse_trajectory(2)
    index = np.zeros((n_frames, 4, 3))
    index[:, 0, 0] = np.arange(n_frames)  # a frame is known by where its first atom is
    run = run.replace(
        positions=index, velocities=index, forces=index, energies=np.arange(n_frames, dtype=float)
    )
    try:
        split = split_by_time(run, max_length, fraction)
    except UserError as refusal:
        assert "too few to train and validate" in str(refusal)
        return
    seen = {}
    for name in ("train", "validation"):
        (part,) = getattr(split, name)
        starts = windows(part, max_length)
        assert starts.size
        seen[name] = {int(part.positions[s + k, 0, 0]) for s in starts for k in range(max_length)}
    assert min(seen["validation"]) - max(seen["train"]) > max_length


def test_two_or_more_runs_are_split_by_run() -> None:
    runs = [morse_trajectory(5, seed=k) for k in range(10)]
    for n, held_out in ((2, 1), (3, 1), (5, 1), (8, 2), (10, 2)):
        split = automatic_split(runs[:n], max_length=3)
        assert [run.file for run in split.validation] == [run.file for run in runs[n - held_out : n]]
        assert [run.file for run in split.train] == [run.file for run in runs[: n - held_out]]
        assert split.how == f"By run: the last {held_out} of {n} runs validate."


def test_a_single_run_is_split_by_time() -> None:
    split = automatic_split([RUN.replace(breaks=(5, 35))], max_length=4)
    assert split.how == "By time: of one run of 40 frames, frames 0-27 train and 32-39 validate."
    assert (split.train[0].breaks, split.validation[0].breaks) == ((5,), (3,))
    assert split.validation[0].first_frame == 32
    assert split.validation[0].dt == RUN.dt


def test_splits_that_cannot_be_are_refused() -> None:
    first, second = morse_trajectory(5, seed=1), morse_trajectory(5, seed=2)
    with pytest.raises(UserError, match=r"has 40 frames, too few .* segments of 20 frames"):
        automatic_split([RUN], max_length=20)
    with pytest.raises(UserError, match="There are no runs to split"):
        automatic_split([], max_length=3)
    with pytest.raises(UserError, match="The validation split is empty"):
        explicit_split([first], [])
    with pytest.raises(UserError, match="The train split is empty"):
        explicit_split([], [first])
    with pytest.raises(UserError, match="is in both train and test"):
        explicit_split([first], [second], [first])
    with pytest.raises(UserError, match="needs at least 2 runs, got 1"):
        split_by_run([first])
    with pytest.raises(UserError, match=r"fraction must lie between 0 and 1, got 1\.5"):
        split_by_run([first, second], 1.5)
    with pytest.raises(UserError, match="made_4, held out, has O, which no training run has"):
        explicit_split([morse_trajectory(5, numbers=(6, 1))], [morse_trajectory(5, numbers=(8, 1), seed=4)])


def test_zero_forces_of_fixed_atoms_are_marked_as_not_recorded() -> None:
    free, held = morse_trajectory(10), morse_trajectory(10, seed=1)
    forces = held.forces.copy()
    forces[:, 1:3] = 0.0
    held = held.replace(fixed_atoms=(1, 3), forces=forces)
    assert (free.unlabelled_atoms, held.unlabelled_atoms) == ((), (1,))
    targets = collate([Segment(0, 0, 2), Segment(1, 0, 2)], [free, held]).targets
    assert targets.unlabelled is not None
    assert targets.unlabelled.tolist() == [False] * 5 + [True, False, False]
    assert collate([Segment(0, 0, 2)], [free]).targets.unlabelled is None


def test_what_is_kept_of_runs_is_that_of_these_runs_and_strides_and_keeps_none_in_memory() -> None:
    one, other = morse_trajectory(10), morse_trajectory(10, seed=1, numbers=(8, 1))
    first, again = (collate([Segment(0, start, 1)] * 2, [one]).state for start in (0, 3))
    assert again.masses is first.masses
    assert not torch.equal(again.positions, first.positions)
    mixed = collate([Segment(0, 0, 1), Segment(1, 0, 1, stride=3)], [one, other])
    numbers = np.concatenate([one.atomic_numbers, other.atomic_numbers])
    assert mixed.state.atomic_numbers.tolist() == numbers.tolist()
    assert mixed.state.n_atoms_per_system().tolist() == [one.n_atoms, other.n_atoms]
    assert mixed.dt.tolist() == [one.dt, 3 * other.dt]
    kept = weakref.ref(other)
    del other
    gc.collect()
    assert kept() is None


def test_a_copy_of_a_run_in_another_file_is_found() -> None:
    train, other = morse_trajectory(40, seed=1), morse_trajectory(40, seed=2)
    copy = train.replace(positions=train.positions.round(8), file="copy.extxyz")
    restarted = copy.slice(30, 40).replace(file="restarted.extxyz", first_frame=0)
    for found in (copy, restarted):
        with pytest.raises(
            UserError, match=rf"\(train\) and {found.file} \(validation\) hold the same frames"
        ):
            explicit_split([train], [other, found])
    one_in_common = {
        name: np.concatenate([getattr(train, name)[-1:], getattr(other, name)[1:]])
        for name in ("positions", "energies")
    }
    explicit_split([train], [other.replace(file="goes_on.extxyz", **one_in_common)])
