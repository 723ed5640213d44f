"""Paired statistics: they find what is there, and not what chance makes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from dyntrain.compare.arms import DYNAMIC, NOISE, ONE_STEP, STOP_GRADIENT
from dyntrain.compare.held_out import HeldOut
from dyntrain.compare.statistics import (
    FloatArray,
    PairedTest,
    compare_paired,
    corrected,
    difference_band,
    p_over_seeds,
    ratio_interval,
)
from dyntrain.compare.trained import Trained
from dyntrain.compare.verdict import FAILURE, force_deviation, judge, paired_tests

FORCE = force_deviation(50.0)
ARMS = (DYNAMIC, ONE_STEP, NOISE, STOP_GRADIENT)


def drawn(random: np.random.Generator, factor: float = 1.0, seed_noise: float = 0.1) -> dict[str, FloatArray]:
    """[2 seeds, 16 starts] of each arm: starts differ alike for all, dynamic is × ``factor``."""
    starts = np.exp(random.normal(scale=0.3, size=16))
    arms = {}
    for arm in ARMS:
        seeds = np.exp(random.normal(scale=seed_noise, size=(2, 1)))
        arms[arm] = 0.2 * starts * seeds * np.exp(random.normal(scale=0.1, size=(2, 16)))
    arms[DYNAMIC] *= factor
    return arms


def outcome(values: dict[str, FloatArray]) -> list[PairedTest]:
    return corrected(compare_paired(FORCE, values, DYNAMIC, ARMS[1:]), DYNAMIC)


def test_arms_that_differ_by_the_luck_of_their_seeds_are_not_told_apart() -> None:
    """With starts alone, seeds that differ by 10 % would be called a difference most of the time."""
    random = np.random.default_rng(0)
    n_wrong = n_naive = 0
    for _ in range(40):
        tests = outcome(drawn(random))
        n_wrong += any(test.better for test in tests)
        n_naive += any(test.p_starts < 0.05 for test in tests)
    assert n_wrong <= 4 < 20 < n_naive


def test_a_large_difference_is_found_with_its_size() -> None:
    random = np.random.default_rng(1)
    n_found = 0
    for _ in range(20):
        tests = outcome(drawn(random, factor=0.5, seed_noise=0.03))
        n_found += all(test.better == DYNAMIC for test in tests)
        assert all(test.ratio == pytest.approx(0.5, rel=0.25) for test in tests)
    assert n_found >= 18
    assert all(t.better == t.control for t in outcome(drawn(random, factor=2.0, seed_noise=0.02)))


def test_two_arms_over_seeds_are_the_paired_t_test() -> None:
    random = np.random.default_rng(2)
    one, other = np.exp(random.normal(size=(2, 5, 1)))
    found = p_over_seeds(FORCE, {DYNAMIC: one, ONE_STEP: other}, DYNAMIC)
    expected = scipy.stats.ttest_rel(np.log(one[:, 0]), np.log(other[:, 0])).pvalue
    assert found[ONE_STEP] == pytest.approx(expected)


def test_one_seed_gives_no_answer_over_seeds() -> None:
    values = {arm: table[:1] for arm, table in drawn(np.random.default_rng(3), factor=0.2).items()}
    for test in outcome(values):
        assert test.p_seeds is None and test.p is None and test.better is None and test.p_starts < 0.01


def test_a_burst_roll_out_counts_as_infinitely_wrong() -> None:
    values = drawn(np.random.default_rng(4), seed_noise=0.02)
    values[ONE_STEP][:, :12] = np.inf
    first, second, _ = outcome(values)
    assert first.control_value == np.inf and first.ratio is None and first.low is None and first.p is None
    assert second.p is not None
    low, high = ratio_interval(FORCE, values[DYNAMIC], values[ONE_STEP])
    assert low is None and high is None


def test_holm_corrects_for_the_number_of_tests() -> None:
    def test_with(p: float | None) -> PairedTest:
        return PairedTest("q", "eV/Å", False, ONE_STEP, 1.0, 2.0, 0.5, 0.4, 0.6, 9, 2, 0.001, p)

    tests = corrected([test_with(0.03), test_with(0.01), test_with(None), test_with(0.02)], DYNAMIC)
    assert [test.p for test in tests] == [pytest.approx(0.04), pytest.approx(0.03), None, pytest.approx(0.04)]
    assert [test.better for test in tests] == [DYNAMIC, DYNAMIC, None, DYNAMIC]


def test_the_interval_covers_the_ratio() -> None:
    random = np.random.default_rng(5)
    n_covered = 0
    for number in range(40):
        values = drawn(random, factor=0.8, seed_noise=0.0)
        low, high = ratio_interval(FORCE, values[DYNAMIC], values[ONE_STEP], seed=number)
        assert low is not None and high is not None
        n_covered += low < 0.8 < high
    assert n_covered >= 34


def test_the_band_is_that_of_paired_differences() -> None:
    """What start and seed have in common drops out: the band is as narrow as the differences' own spread."""
    random = np.random.default_rng(6)
    common = random.normal(size=(2, 3, 16))
    one = common + 0.5
    other = common + 0.01 * random.normal(size=(2, 3, 16))
    median, low, high = difference_band(one, other)
    np.testing.assert_allclose(median, 0.5, atol=0.01)
    assert np.all(high - low < 0.05) and np.all((low <= median) & (median <= high))


# --- the verdict in words -----------------------------------------------------------------------------------


def held_out(force: FloatArray, failure_fs: float = 1000.0) -> list[HeldOut]:
    """One entry a seed, with these errors [n_seeds, n_starts] at 50 fs."""
    facts = {"free_run_length_fs": 1000.0}
    failures = np.full(8, failure_fs)
    return [
        HeldOut(np.array([0.0, 50.0]), {"force": np.array([row, row])}, failures, failures < 1000, facts)
        for row in force
    ]


def verdict(factor: float, *, failure_fs: float = 1000.0, kept_at: int = 8) -> tuple[str | None, str]:
    values = drawn(np.random.default_rng(7), factor=factor, seed_noise=0.02)
    found = {arm: held_out(table) for arm, table in values.items()}
    found[ONE_STEP] = held_out(values[ONE_STEP], failure_fs)
    one = Trained(__file__, 1.0, 2.0, 3.0, 40, kept_at, "the budget is spent", [])  # type: ignore[arg-type]
    result = judge(paired_tests(found, 50.0), {arm: [one, one] for arm in ARMS}, found, 50.0)
    return result.winner, " ".join([result.headline, *result.reasons])


def test_the_verdict_says_who_is_better() -> None:
    winner, words = verdict(0.5)
    assert winner == DYNAMIC and words.startswith("Dynamic training helps here, at equal labelled frames")
    assert (
        "times that of the best one-step control" in words
        and "matters: stop-gradient training is behind" in words
    )
    winner, words = verdict(2.0)
    assert winner in (ONE_STEP, NOISE) and words.startswith("Dynamic training does not help here")
    winner, words = verdict(1.0)
    assert winner is None and words.startswith("No clear winner here")
    assert "not settled, chance could do that" in words


def test_free_runs_that_all_stay_whole_tell_nothing() -> None:
    values = {arm: held_out(np.full((2, 16), 0.2)) for arm in ARMS}
    assert {test.quantity for test in paired_tests(values, 50.0)} == {FORCE.name}
    assert "they do not tell the arms apart" in verdict(1.0)[1]


def test_a_factor_is_given_only_where_half_of_the_controls_runs_fail() -> None:
    _, words = verdict(1.0, failure_fs=250.0)
    assert "free runs last at least 4 times as long as those of one-step (medians" in words
    assert FAILURE.name in words


def test_a_dynamic_model_that_never_left_one_step_is_told() -> None:
    assert "stems from S = 1" in verdict(1.0, kept_at=1)[1]
    assert "stems from S = 1" not in verdict(1.0)[1]


def test_arms_at_the_ceiling_do_not_make_the_seeds_look_alike() -> None:
    """Runs that are all whole have no spread; pooled, they would make any other difference significant."""
    whole = np.full((2, 8), 1000.0)
    failing = np.array([[300.0] * 8, [900.0] * 8])
    values = {DYNAMIC: whole, ONE_STEP: failing, NOISE: whole, STOP_GRADIENT: whole}
    found = p_over_seeds(FAILURE, values, DYNAMIC)[ONE_STEP]
    expected = scipy.stats.ttest_rel(np.log(whole.mean(1)), np.log(failing.mean(1))).pvalue
    assert found == pytest.approx(expected) and expected > 0.2


def test_failures_of_the_stop_gradient_arm_alone_need_no_size() -> None:
    values = {arm: held_out(np.full((2, 16), 0.2)) for arm in ARMS}
    values[STOP_GRADIENT] = held_out(np.full((2, 16), 0.2), failure_fs=200.0)
    tests = paired_tests(values, None)
    assert [test.control for test in tests] == [STOP_GRADIENT]
    one = Trained(__file__, 1.0, 2.0, 3.0, 40, 8, "the budget is spent", [])  # type: ignore[arg-type]
    words = judge(tests, {arm: [one, one] for arm in ARMS}, values, None)
    assert "too short to test force deviations" in " ".join(words.reasons)
    assert "Beware" not in " ".join(words.reasons)
    longer = replace(one, evaluations=1.2)
    words = judge(tests, {arm: [one, longer] for arm in ARMS}, values, None)
    assert "Beware: trainings spent between 1 and 1 evaluations" in " ".join(words.reasons)
