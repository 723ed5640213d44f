"""The verdict follows the numbers, in words."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dyntrain.evaluate import ModelResult, Usable, factor_sentence, judge, usable
from dyntrain.evaluate.audit import AuditCurve
from dyntrain.evaluate.verdict import sign_test
from evaluations import made_up

RANDOM = np.random.default_rng(0)
LOW = RANDOM.uniform(0.1, 0.2, size=(4, 16))


def test_tests_of_significance_against_tables() -> None:
    assert sign_test(16, 0) == pytest.approx(2 / 2**16)
    assert sign_test(13, 3) == pytest.approx(0.0213, abs=1e-4)
    assert sign_test(8, 8) == 1.0


@pytest.mark.parametrize(
    ("one", "other", "winner", "words"),
    [
        (made_up("A", LOW), made_up("B", 2 * LOW), "A", "A follows the recording more closely than B"),
        (made_up("A", 2 * LOW), made_up("B", LOW), "B", "closer in 16 of the 16 roll-outs"),
        (
            made_up("A", LOW),
            made_up("B", LOW[:, ::-1]),
            None,
            "follows the recording more closely is not settled",
        ),
        (made_up("A", LOW, 8), made_up("B", LOW[:, ::-1], 1), "B", "B is more stable"),
        (made_up("A", LOW, 3), made_up("B", LOW[:, ::-1], 1), None, "chance explains that"),
        (made_up("A", LOW, 8), made_up("B", 2 * LOW, 0), None, "B is more stable"),
        (
            made_up("A", np.where(np.arange(16) < 14, np.nan, LOW)),
            made_up("B", 2 * LOW),
            "B",
            "against burst eV/Å",
        ),
    ],
    ids=["A", "B", "equal", "stable", "too few", "mixed", "burst"],
)
def test_the_verdict_follows_the_numbers(
    one: ModelResult, other: ModelResult, winner: str | None, words: str
) -> None:
    verdict = judge([one, other])
    assert verdict.winner == winner
    assert (winner or "No clear winner") in verdict.headline
    assert words in " ".join(verdict.reasons)


def test_roll_outs_that_overlap_are_not_counted_as_independent() -> None:
    def spaced(name: str, errors: np.ndarray, spacing: int) -> ModelResult:
        result = made_up(name, errors)
        starts = tuple(("run", spacing * k) for k in range(errors.shape[1]))
        return dataclasses.replace(result, rollout=dataclasses.replace(result.rollout, starts=starts))

    # Frames are 10 fs apart. At 50 fs starts 2 frames apart leave every third one: 6 of 16.
    verdict = judge([spaced("A", LOW, 2), spaced("B", 2 * LOW, 2)])
    assert verdict.winner == "A" and "closer in 6 of the 6 roll-outs" in verdict.reasons[4]
    assert "after 50 fs" in verdict.reasons[4]
    # One frame apart leaves 4 at 50 fs, but 6 at 25 fs.
    assert "after 25 fs" in judge([spaced("A", LOW, 1), spaced("B", 2 * LOW, 1)]).reasons[4]
    near = judge([spaced("A", LOW[:, :5], 1), spaced("B", 2 * LOW[:, :5], 1)])
    assert near.winner is None and "too short to say" in near.reasons[4]


def test_one_model_is_judged_by_itself_and_three_by_pairs() -> None:
    alone = judge([made_up("A", LOW, 2)])
    assert alone.winner is None and "usable for about 500 fs" in alone.headline
    assert "what breaks first: burst" in alone.headline
    assert "2 of 8 free runs failed within 1 ps" in alone.reasons[0]
    three = judge([made_up("A", 3 * LOW), made_up("B", LOW), made_up("C", 2 * LOW)])
    assert three.winner == "B" and three.headline == "B is better than A and C here."


def with_audit(result: ModelResult, medians: list[float]) -> ModelResult:
    errors = np.array(medians)[:, None] * np.ones(4)
    times = np.array([0.0, 50.0, 100.0, 200.0])[: len(medians)]
    curve = AuditCurve("xTB", 0.0, times, np.arange(4), errors, errors, errors)
    return dataclasses.replace(result, audit=curve)


def test_a_model_is_usable_until_it_breaks_or_is_wrong_where_it_goes() -> None:
    whole = made_up("A", LOW)
    assert usable(whole) == Usable(1000.0, None)
    assert "usable for at least 1 ps here" in judge([whole]).headline
    assert "unknown, no audit was made" in judge([whole]).headline
    found = usable(with_audit(whole, [0.03, 0.05, 0.07, 0.01]))
    assert found is not None and found.time_fs == 50.0
    assert found.ended_by == "by 100 fs the force error on its own way is 2.3 × its start"
    right = judge([with_audit(whole, [0.03, 0.05, 0.04, 0.05])]).headline
    assert "with a force error of 0.05 eV/Å on its own structures at 200 fs: nothing broke" in right
    broken = made_up("A", LOW, 1, n_runs=11)
    assert usable(broken) == Usable(1000.0, None)  # 10 of 11 are whole
    assert usable(made_up("A", LOW, 2, n_runs=11)) == Usable(500.0, "burst")
    never = judge([with_audit(whole, [0.03, 0.09])]).headline
    assert "not usable for dynamics here: by 50 fs the force error on its own way is 3.0 ×" in never
    assert usable(dataclasses.replace(whole, free=None)) is None


def test_a_factor_is_stated_only_where_half_of_the_control_failed() -> None:
    control, longer = made_up("A", LOW, 8, failure_fs=100.0), made_up("B", LOW, 8, failure_fs=500.0)
    assert factor_sentence(control, longer) == (
        "B lasts 5 times as long as A (ratio of the median times to failure; 95 % of the bootstrap: 5 to 5)."
    )
    never = factor_sentence(control, made_up("B", LOW, 0))
    assert never is not None and "B lasts at least 10 times as long as A" in never
    few = factor_sentence(made_up("A", LOW, 3), longer)
    assert few is not None and "cannot be stated: 3 of 8 free runs of A failed" in few
    assert "--free-temperature" in few and "fewer frames" in few
    assert factor_sentence(made_up("A", LOW), made_up("B", LOW)) is None
    assert few in judge([made_up("A", LOW, 3), longer]).reasons


def test_when_all_fail_the_one_that_lasts_longer_is_more_stable() -> None:
    one, other = made_up("A", LOW, 8, failure_fs=100.0), made_up("B", LOW[:, ::-1], 8, failure_fs=500.0)
    assert judge([one, other]).winner == "B"
