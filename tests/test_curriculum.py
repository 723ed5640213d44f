"""Curricula: the published sequence on made scores, shares of the schedule, and that they are pure."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyntrain.curriculum import (
    Curriculum,
    CurriculumState,
    Plan,
    PlateauCurriculum,
    ScheduleCurriculum,
    Score,
    Stage,
)

STAGES = [Stage(1, 6), Stage(2, 1), Stage(4, 1), Stage(8, 2)]

scores = st.lists(
    st.tuples(st.integers(0, 3), st.floats(0, 1e6) | st.just(math.inf)), min_size=1, max_size=200
)


def run(curriculum: Curriculum, found: list[Score]) -> list[CurriculumState]:
    """States after each validation, until finished."""
    states = [curriculum.start()]
    for score in found:
        if states[-1].finished:
            break
        states.append(curriculum.after_validation(states[-1], score, 1.0))
    return states


def test_the_published_sequence() -> None:
    """1e-3 × 0.33 down to the floor of 2e-6 at S = 1, from 1e-4 afterwards, 15 epochs each."""
    curriculum = PlateauCurriculum(max_length=3)
    states = run(curriculum, [(0, 1.0)] * 1000)
    rates: dict[int, list[float]] = {}
    for state in states:
        known = rates.setdefault(state.segment_length, [])
        if not known or known[-1] != state.lr:
            known.append(state.lr)
    falling = [0.33**n for n in range(6)]
    assert rates[1] == pytest.approx([1e-3 * f for f in falling])
    assert rates[2] == rates[3] == pytest.approx([1e-4 * f for f in falling[:4]])
    # The first score of each S is its best; then 15 epochs for each rate.
    assert [sum(s.segment_length == n for s in states) for n in (1, 2, 3)] == [
        2 + 6 * 15 - 1,
        2 + 4 * 15 - 1,
        2 + 4 * 15,
    ]
    assert states[-1].finished and not states[-2].finished


def test_growth_forgets_the_best_score() -> None:
    curriculum = PlateauCurriculum(max_length=2, patience=1, lr=1e-5, factor=0.1)
    states = run(curriculum, [(0, 1.0), (0, 2.0), (0, 3.0)])
    assert [s.segment_length for s in states] == [1, 1, 2, 2]
    assert states[2].best is None
    assert states[3].best == (0, 3.0)


def test_improvement_resets_the_patience() -> None:
    curriculum = PlateauCurriculum(max_length=1, patience=3)
    found = [(0, 5.0), (0, 5.0), (0, 5.0), (0, 4.9), (0, 4.9), (0, 4.9)]
    assert [s.epochs_since_best for s in run(curriculum, found)] == [0, 0, 1, 2, 0, 1, 2]
    assert {s.lr for s in run(curriculum, found)} == {1e-3}


def test_lost_frames_count_before_the_loss() -> None:
    curriculum = PlateauCurriculum(max_length=1)
    states = run(curriculum, [(3, 0.1), (2, 9.0), (2, math.inf), (0, 50.0)])
    assert [s.best for s in states[1:]] == [(3, 0.1), (2, 9.0), (2, 9.0), (0, 50.0)]


@given(
    found=scores,
    patience=st.integers(1, 5),
    max_length=st.integers(1, 4),
    factor=st.floats(0.05, 0.9),
)
def test_plateau_properties(found: list[Score], patience: int, max_length: int, factor: float) -> None:
    curriculum = PlateauCurriculum(max_length=max_length, patience=patience, factor=factor, floor=1e-4)
    states = run(curriculum, found)
    assert states == run(curriculum, found)
    for before, after in itertools.pairwise(states):
        assert after.segment_length - before.segment_length in (0, 1)
        assert 1 <= after.segment_length <= max_length
        assert after.lr >= curriculum.floor
        assert 0 <= after.epochs_since_best <= patience
        if after.segment_length > before.segment_length:
            assert after == CurriculumState(after.segment_length, curriculum.restart_lr)
        else:
            assert after.lr <= before.lr
            assert after.best is not None
            assert before.best is None or after.best <= before.best
        assert curriculum.plan(after, 0.3) == Plan(after.segment_length, after.lr)
        assert not before.finished


@pytest.mark.parametrize(
    ("progress", "length"),
    [(0.0, 1), (0.599, 1), (0.6, 2), (0.699, 2), (0.701, 4), (0.799, 4), (0.801, 8), (1.0, 8), (1.2, 8)],
)
def test_the_schedule_gives_each_length_its_share(progress: float, length: int) -> None:
    curriculum = ScheduleCurriculum(STAGES)
    assert curriculum.plan(curriculum.start(), progress).segment_length == length
    assert curriculum.max_length == 8


@given(
    stages=st.lists(st.builds(Stage, st.integers(1, 9), st.floats(0.01, 10)), min_size=1, max_size=6),
    warmup=st.floats(0, 0.5),
    points=st.lists(st.floats(0, 1), min_size=2, max_size=20),
)
def test_schedule_properties(stages: list[Stage], warmup: float, points: list[float]) -> None:
    curriculum = ScheduleCurriculum(stages, lr=1e-2, floor=1e-5, warmup=warmup)
    state = curriculum.start()
    points = sorted(points)
    plans = [curriculum.plan(state, p) for p in points]
    order = [stage.segment_length for stage in stages]
    visited = [plan.segment_length for plan in plans]
    # Stages come in their order: what is visited is a subsequence of them, with repetitions.
    remaining = iter(range(len(order)))
    at = next(remaining)
    for length in visited:
        while order[at] != length:
            at = next(remaining)
    for point, plan in zip(points, plans, strict=True):
        assert 0 < plan.lr <= curriculum.lr * (1 + 1e-12)
        half_cosine = 1e-5 + (1e-2 - 1e-5) * 0.5 * (1 + math.cos(math.pi * point))
        if point >= warmup:
            assert plan.lr == pytest.approx(half_cosine, rel=1e-9)
        else:
            assert plan.lr <= half_cosine


def test_the_schedule_ends_at_the_floor() -> None:
    curriculum = ScheduleCurriculum(STAGES, lr=1e-2, floor=1e-5)
    assert curriculum.plan(curriculum.start(), 1.0).lr == pytest.approx(1e-5)
    assert curriculum.plan(curriculum.start(), 7.0).lr == pytest.approx(1e-5)


def test_the_schedule_stops_early_only_in_its_last_stage() -> None:
    curriculum = ScheduleCurriculum(STAGES, stop_after=2)
    state = curriculum.start()
    for progress in (0.1, 0.3, 0.5, 0.65, 0.75):
        state = curriculum.after_validation(state, (0, 1.0), progress)
    assert (state.epochs_since_best, state.finished) == (0, False)
    state = curriculum.after_validation(state, (0, 1.0), 0.85)
    assert (state.epochs_since_best, state.finished) == (1, False)
    better = curriculum.after_validation(state, (0, 0.9), 0.9)
    assert (better.epochs_since_best, better.finished, better.best) == (0, False, (0, 0.9))
    assert curriculum.after_validation(state, (0, 1.1), 0.9).finished
    patient = ScheduleCurriculum(STAGES)
    state = patient.start()
    for _ in range(50):
        state = patient.after_validation(state, (0, 1.0), 0.9)
    assert not state.finished
