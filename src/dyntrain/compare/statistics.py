"""Paired statistics over starts and seeds: is one arm better, by how much, and could it be chance?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.stats

from dyntrain.evaluate.verdict import sign_test

FloatArray = npt.NDArray[np.float64]

LEVEL = 0.05
"""A difference that chance would make more often than this is called no difference."""

_N_RESAMPLED = 2000


@dataclass(frozen=True)
class Quantity:
    """What arms are compared by: one number for every seed and start, [n_seeds, n_starts].

    name:      in words, as "force deviation after 50 fs"
    unit:      of the values, as "eV/Å"
    summary:   of the last two axes, seeds and starts: their median, or mean
    higher_is_better: as for a time to failure
    """

    name: str
    unit: str
    summary: Callable[[FloatArray], FloatArray]
    higher_is_better: bool


@dataclass(frozen=True)
class PairedTest:
    """One arm against a control in one quantity.

    ratio, low, high: the arm's summary over the control's, and its 95 % bootstrap interval; None where a
                      summary is infinite (half of the roll-outs burst)
    p_starts:  sign test over the starts, each averaged over the seeds
    p_seeds:   of the difference against what the same arms vary by from seed to seed; None with one seed
    p:         the larger of the two, corrected for the number of tests; None where there is no answer
    better:    whose difference chance does not explain; None: nobody's
    """

    quantity: str
    unit: str
    higher_is_better: bool
    control: str
    value: float
    control_value: float
    ratio: float | None
    low: float | None
    high: float | None
    n_starts: int
    n_seeds: int
    p_starts: float
    p_seeds: float | None
    p: float | None = None
    better: str | None = None


def compare_paired(
    quantity: Quantity, values: Mapping[str, FloatArray], arm: str, controls: Sequence[str], seed: int = 0
) -> list[PairedTest]:
    """``arm`` against each control; p and ``better`` are still to be set (``corrected``).

    A difference has to hold twice: over the starts (they are the same for all arms: a sign test of the
    ratio's logarithm, averaged over the seeds) and over the trainings (``p_over_seeds``). Few starts make
    the first weak, few seeds the second.

    Args:
        values: by arm, [n_seeds, n_starts] of starts that are independent of each other; infinite where a
            roll-out has burst.
    """
    p_seeds = p_over_seeds(quantity, values, arm)
    tests = []
    for control in controls:
        one, other = values[arm], values[control]
        n_one, n_other = _wins(one, other)
        low, high = ratio_interval(quantity, one, other, seed)
        tests.append(
            PairedTest(
                quantity=quantity.name,
                unit=quantity.unit,
                higher_is_better=quantity.higher_is_better,
                control=control,
                value=float(quantity.summary(one)),
                control_value=float(quantity.summary(other)),
                ratio=_ratio(float(quantity.summary(one)), float(quantity.summary(other))),
                low=low,
                high=high,
                n_starts=one.shape[1],
                n_seeds=one.shape[0],
                p_starts=sign_test(n_one, n_other),
                p_seeds=p_seeds.get(control),
            )
        )
    return tests


def _wins(one: FloatArray, other: FloatArray) -> tuple[int, int]:
    """Starts in which each has the smaller value, as geometric mean over the seeds; a tie counts for none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.log(one).mean(0) - np.log(other).mean(0)  # inf − inf is NaN: neither is smaller
    return int((apart < 0).sum()), int((apart > 0).sum())


def _ratio(one: float, other: float) -> float | None:
    return one / other if math.isfinite(one) and math.isfinite(other) and other > 0 else None


def p_over_seeds(quantity: Quantity, values: Mapping[str, FloatArray], arm: str) -> dict[str, float | None]:
    """Chance of a difference from each other arm at least as large, if only the seeds made it.

    Two-way analysis of variance of log(summary) by arm and seed: t = difference / sqrt(2 MS / n_seeds) with
    the mean square MS of what arm and seed do not explain together, pooled over all arms, which has
    (n_arms − 1)(n_seeds − 1) degrees of freedom (Box, Hunter, Hunter, Statistics for Experimenters,
    randomised blocks).

    Returns:
        control → two-sided p; None with one seed or where a summary has no finite logarithm.
    """
    found: dict[str, float | None] = {name: None for name in values if name != arm}
    with np.errstate(divide="ignore"):
        logs = {name: np.log(quantity.summary(values[name][:, None, :])) for name in values}
    others = [name for name in found if np.isfinite(logs[name]).all()]
    if not others or len(logs[arm]) < 2 or not np.isfinite(logs[arm]).all():
        return found
    for name in others:
        # Arms whose summary is the same for all seeds (all runs whole to the end) say nothing of the spread.
        rest = [other for other in others if other != name and np.ptp(logs[other]) > 0]
        table = np.array([logs[row] for row in (arm, name, *rest)])
        n_arms, n_seeds = table.shape
        residual = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
        freedom = (n_arms - 1) * (n_seeds - 1)
        scale = math.sqrt(2.0 * float((residual**2).sum()) / freedom / n_seeds)
        difference = abs(float(table[0].mean() - table[1].mean()))
        if scale == 0.0:
            found[name] = 1.0 if difference == 0.0 else 0.0
        else:
            found[name] = float(2.0 * scipy.stats.t.sf(difference / scale, freedom))
    return found


def ratio_interval(
    quantity: Quantity, one: FloatArray, other: FloatArray, seed: int = 0
) -> tuple[float | None, float | None]:
    """95 % interval of the ratio of the summaries: seeds and starts drawn anew, the same for both arms.

    Both factors are resampled (Owen, Ann. Appl. Stat. 1, 386 (2007)); with two seeds it is rough.
    """
    random = np.random.default_rng(seed)
    n_seeds, n_starts = one.shape
    seeds = random.integers(n_seeds, size=(_N_RESAMPLED, n_seeds, 1))
    starts = random.integers(n_starts, size=(_N_RESAMPLED, 1, n_starts))
    above, below = quantity.summary(one[seeds, starts]), quantity.summary(other[seeds, starts])
    if not (np.isfinite(above).all() and np.isfinite(below).all() and (below > 0).all()):
        return None, None
    low, high = np.quantile(above / below, [0.025, 0.975])
    return float(low), float(high)


def difference_band(one: FloatArray, other: FloatArray, seed: int = 0) -> tuple[FloatArray, ...]:
    """Median paired difference versus time with its 95 % bootstrap band (seeds and starts drawn anew).

    Args:
        one, other: [n_seeds, n_times, n_starts], NaN from the time a roll-out has burst.

    Returns:
        (median, low, high), each [n_times]; NaN where a roll-out of either arm has burst.
    """
    random = np.random.default_rng(seed)
    difference = one - other
    n_seeds, _, n_starts = difference.shape
    medians = []
    for _ in range(_N_RESAMPLED // 5):
        seeds, starts = random.integers(n_seeds, size=n_seeds), random.integers(n_starts, size=n_starts)
        medians.append(np.median(difference[seeds][:, :, starts], axis=(0, 2)))
    low, high = np.quantile(medians, [0.025, 0.975], axis=0)
    return np.median(difference, axis=(0, 2)), low, high


def corrected(tests: Sequence[PairedTest], arm: str) -> list[PairedTest]:
    """With p corrected for their number, and who is better at 5 % (Holm, Scand. J. Stat. 6, 65 (1979))."""
    raw = [None if t.p_seeds is None else max(t.p_starts, t.p_seeds) for t in tests]
    known = sorted((p, number) for number, p in enumerate(raw) if p is not None)
    adjusted: dict[int, float] = {}
    largest = 0.0
    for rank, (p, number) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[number] = largest
    found = []
    for number, test in enumerate(tests):
        corrected_p, better = adjusted.get(number), None
        if corrected_p is not None and corrected_p < LEVEL:
            arm_is_higher = test.value > test.control_value
            better = arm if arm_is_higher == test.higher_is_better else test.control
        found.append(replace(test, p=corrected_p, better=better))
    return found
