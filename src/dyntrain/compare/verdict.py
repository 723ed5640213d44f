"""The verdict in words, made from the tests: does dynamic training help here, by how much, how sure is it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dyntrain.compare.arms import DYNAMIC, NOISE, ONE_STEP, STOP_GRADIENT
from dyntrain.compare.held_out import HeldOut
from dyntrain.compare.statistics import PairedTest, Quantity, compare_paired, corrected
from dyntrain.compare.trained import Trained
from dyntrain.evaluate import Verdict
from dyntrain.evaluate.verdict import duration
from dyntrain.observables import FloatArray, failure_factor

FAILURE = Quantity(
    "time to failure", "fs", lambda values: np.mean(values, axis=(-2, -1)), higher_is_better=True
)
"""Mean time whole within the length of the free runs (restricted mean)."""


def force_deviation(mark_fs: float) -> Quantity:
    """Median over starts and seeds; a burst roll-out is infinitely wrong."""
    return Quantity(
        f"force deviation after {mark_fs:g} fs",
        "eV/Å",
        lambda values: np.median(values, axis=(-2, -1)),
        higher_is_better=False,
    )


def paired_tests(held_out: Mapping[str, Sequence[HeldOut]], mark_fs: float | None) -> list[PairedTest]:
    """Dynamic training against each control in what was stated beforehand, corrected for the number of tests.

    Args:
        held_out: by arm, one entry a seed.
        mark_fs: time of the force deviation; None: not tested.
    """
    tests: list[PairedTest] = []
    controls = [arm for arm in held_out if arm != DYNAMIC]
    if mark_fs is not None:
        values = {arm: _forces_at(found, mark_fs) for arm, found in held_out.items()}
        tests += compare_paired(force_deviation(mark_fs), values, DYNAMIC, controls)
    failed = {arm: any(one.failed.any() for one in found) for arm, found in held_out.items()}
    told_apart = [arm for arm in controls if failed[arm] or failed[DYNAMIC]]
    if told_apart:
        times = {arm: np.array([one.failure_fs for one in found]) for arm, found in held_out.items()}
        tests += compare_paired(FAILURE, times, DYNAMIC, told_apart)
    return corrected(tests, DYNAMIC)


def _forces_at(found: Sequence[HeldOut], mark_fs: float) -> FloatArray:
    """[n_seeds, n_starts] eV/Å, infinite where burst."""
    rows = [one.errors["force"][one.index_at(mark_fs)] for one in found]
    return np.where(np.isnan(rows), np.inf, rows)


def judge(
    tests: Sequence[PairedTest],
    trained: Mapping[str, Sequence[Trained]],
    held_out: Mapping[str, Sequence[HeldOut]],
    mark_fs: float | None,
) -> Verdict:
    """Dynamic training helps if it is ahead of both one-step controls in a test and behind in none."""
    one_step = [arm for arm in (ONE_STEP, NOISE) if arm in held_out]
    ahead = {arm: _leader(tests, arm) == DYNAMIC for arm in held_out if arm != DYNAMIC}
    behind = [arm for arm in one_step if _leader(tests, arm) == arm]
    equal = "at equal labelled frames and equal budget"
    if behind:
        winner, headline = behind[0], f"Dynamic training does not help here: {behind[0]} does better {equal}."
    elif all(ahead[arm] for arm in one_step):
        winner, headline = DYNAMIC, f"Dynamic training helps here, {equal}."
    elif any(ahead[arm] for arm in one_step):
        beaten = next(arm for arm in one_step if ahead[arm])
        other = next(arm for arm in one_step if not ahead[arm])
        winner = None
        headline = (
            f"No clear winner here: dynamic training is better than {beaten}, but not shown to be better "
            f"than {other} {equal}."
        )
    else:
        winner = None
        headline = (
            "No clear winner here: dynamic training is not shown to be better than ordinary training "
            f"{equal}."
        )
    headline += _size(tests, one_step)
    reasons = [_of_test(test) for test in tests]
    if len(held_out[DYNAMIC]) == 1:
        reasons.append("One seed cannot tell a better method from luckier initial weights: give more seeds.")
    if mark_fs is None:
        reasons.append("The held-out runs are too short to test force deviations.")
    reasons += _of_failures(held_out)
    if STOP_GRADIENT in ahead:
        reasons.append(_of_gradient(tests))
    reasons += [_cost(trained), *_unequal(trained), *_kept(trained)]
    return Verdict(winner, headline, tuple(reasons))


def _leader(tests: Sequence[PairedTest], control: str) -> str | None:
    """Who is ahead of the other in some test and behind in none."""
    leaders = {test.better for test in tests if test.control == control and test.better is not None}
    return leaders.pop() if len(leaders) == 1 else None


def _size(tests: Sequence[PairedTest], controls: Sequence[str]) -> str:
    """By how much, against the best of the controls, in the quantity that was stated first."""
    known = [test for test in tests if test.control in controls]
    if not known:
        return ""
    first = [test for test in known if test.quantity == known[0].quantity]
    best = min(first, key=lambda test: -test.control_value if test.higher_is_better else test.control_value)
    if best.ratio is None or best.low is None or best.high is None:
        return f" {_sizes(best)}."
    return (
        f" Its {best.quantity} is {best.ratio:.2f} times that of the best one-step control, {best.control} "
        f"(95 % interval {best.low:.2f} to {best.high:.2f})."
    )


def _number(value: float, unit: str) -> str:
    if not np.isfinite(value):
        return "burst"
    return duration(value) if unit == "fs" else f"{value:.3g}"


def _sizes(test: PairedTest) -> str:
    one, other = _number(test.value, test.unit), _number(test.control_value, test.unit)
    return f"{test.quantity} {one} against {other}" + (" eV/Å" if test.unit == "eV/Å" else "")


def _of_test(test: PairedTest) -> str:
    words = f"Dynamic against {test.control}: {_sizes(test)}"
    if test.low is not None and test.high is not None:
        words += f", ratio {test.ratio:.2f} (95 % interval {test.low:.2f} to {test.high:.2f})"
    if test.p is None:
        return f"{words}: not tested."
    outcome = "not settled, chance could do that" if test.better is None else f"{test.better} is better"
    return f"{words}: {outcome} (p = {test.p:.2g})."


def _of_failures(held_out: Mapping[str, Sequence[HeldOut]]) -> list[str]:
    length = held_out[DYNAMIC][0].facts["free_run_length_fs"]
    if length is None:
        return []
    counts = {
        arm: (sum(int(o.failed.sum()) for o in f), sum(o.failed.size for o in f))
        for arm, f in held_out.items()
    }
    if not any(failed for failed, _ in counts.values()):
        return [f"All free runs stayed whole for {duration(length)}: they do not tell the arms apart."]
    told = ", ".join(f"{failed} of {n} of {arm}" for arm, (failed, n) in counts.items())
    return [f"Free runs that failed within {duration(length)}: {told}.", *_factors(held_out, length)]


def _factors(held_out: Mapping[str, Sequence[HeldOut]], length: float) -> list[str]:
    """How many times longer dynamic training's runs last, where at least half of a control's fail."""
    pooled = {
        arm: (np.concatenate([o.failure_fs for o in f]), np.concatenate([o.failed for o in f]))
        for arm, f in held_out.items()
    }
    found = []
    for arm in held_out:
        factor = None if arm == DYNAMIC else failure_factor(*pooled[arm], *pooled[DYNAMIC], length)
        if factor is not None:
            least = "at least " if factor.is_bound else ""
            high = "without bound" if factor.high is None else f"{factor.high:.2g}"
            found.append(
                f"Dynamic's free runs last {least}{factor.value:.2g} times as long as those of {arm} "
                f"(medians, 95 % interval over the runs {factor.low:.2g} to {high})."
            )
    return found


def _of_gradient(tests: Sequence[PairedTest]) -> str:
    leader = _leader(tests, STOP_GRADIENT)
    if leader == DYNAMIC:
        return "The gradient through the roll-out matters: stop-gradient training is behind."
    if leader == STOP_GRADIENT:
        return "The gradient through the roll-out does harm here: stop-gradient training is ahead."
    return "That the gradient through the roll-out matters is not shown: stop-gradient is not clearly behind."


def _cost(trained: Mapping[str, Sequence[Trained]]) -> str:
    seconds = ", ".join(
        f"{arm} {np.mean([one.wall_s for one in found]):.0f} s" for arm, found in trained.items()
    )
    return f"Cost of one training (mean over the seeds): {seconds}."


def _unequal(trained: Mapping[str, Sequence[Trained]]) -> list[str]:
    """A warning where the last optimiser step, which may overshoot, is no small part of the budget."""
    spent = [one.evaluations for found in trained.values() for one in found]
    if max(spent) <= 1.05 * min(spent):
        return []
    return [
        f"Beware: trainings spent between {min(spent):.0f} and {max(spent):.0f} evaluations, not as many "
        "each: one has converged early, or they are too short; then give more max_time."
    ]


def _kept(trained: Mapping[str, Sequence[Trained]]) -> list[str]:
    short = [one for one in trained[DYNAMIC] if one.segment_length == 1]
    if not short:
        return []
    return [
        f"In {len(short)} of {len(trained[DYNAMIC])} dynamic trainings the kept model (best validation) stems"
        " from S = 1: nothing learnt on longer segments was better, so it is a one-step model of a part of "
        "the budget."
    ]
