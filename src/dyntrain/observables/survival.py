"""Time to failure of many runs, some of which end whole: curves, intervals, tests and factors."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from dyntrain.observables.arrays import BoolArray, FloatArray


def kaplan_meier(times: FloatArray, failed: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Share of runs still whole after each failure (Kaplan & Meier, J. Am. Stat. Assoc. 53, 457 (1958)).

    Args:
        times: time of failure, or of the end of the run, [n_runs].
        failed: False where the run ended whole (censored), [n_runs].

    Returns:
        (times of failures, ascending [n_events]; share still whole just after each [n_events]).
    """
    event_times = np.unique(times[failed])
    at_risk = (times[None, :] >= event_times[:, None]).sum(1)
    events = ((times[None, :] == event_times[:, None]) & failed[None, :]).sum(1)
    return event_times, np.cumprod(1.0 - events / np.maximum(at_risk, 1))


def median_time_to_failure(times: FloatArray, failed: BoolArray) -> float | None:
    """First time at which at most half of the runs are whole (Kaplan–Meier); None if there is none."""
    event_times, survival = kaplan_meier(times, failed)
    # A survival of one half made of rounded factors may lie a hair above it.
    below = np.flatnonzero(survival <= 0.5 + 1e-12)
    return float(event_times[below[0]]) if below.size else None


def restricted_mean_time_to_failure(times: FloatArray, failed: BoolArray, run_length: float) -> float:
    """Mean time whole within ``run_length``: the area under the Kaplan–Meier curve up to it.

    Unlike a mean over the failed runs it uses the whole ones, too, and it needs no assumption about what
    happens after the end of the runs.
    """
    event_times, survival = kaplan_meier(times, failed)
    within = event_times < run_length
    edges = np.concatenate([[0.0], event_times[within], [run_length]])
    heights = np.concatenate([[1.0], survival[within]])
    return float((np.diff(edges) * heights).sum())


# Half-width of the two-sided 95 % interval of a normal distribution.
_Z95 = 1.959963984540054


@dataclass(frozen=True, eq=False)
class SurvivalCurve:
    """Share of runs still whole after each failure, with its 95 % band; arrays are [n_events], ascending.

    ``low`` and ``high`` are NaN where the share has reached zero (no variance is left to tell).
    """

    times: FloatArray
    share: FloatArray
    low: FloatArray
    high: FloatArray


def survival_curve(times: FloatArray, failed: BoolArray) -> SurvivalCurve:
    """Kaplan–Meier with Greenwood's variance on the scale ln(−ln S), which keeps the band within 0 … 1.

    Kalbfleisch & Prentice, The Statistical Analysis of Failure Time Data (1980); arguments as in
    ``kaplan_meier``.
    """
    event_times, share = kaplan_meier(times, failed)
    at_risk = (times[None, :] >= event_times[:, None]).sum(1)
    events = ((times[None, :] == event_times[:, None]) & failed[None, :]).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        greenwood = np.cumsum(events / (at_risk * (at_risk - events)))
        width = _Z95 * np.sqrt(greenwood) / np.abs(np.log(share))
        low, high = share ** np.exp(width), share ** np.exp(-width)
    none_left = share <= 0.0
    return SurvivalCurve(
        event_times, share, np.where(none_left, np.nan, low), np.where(none_left, np.nan, high)
    )


def median_interval(times: FloatArray, failed: BoolArray) -> tuple[float | None, float | None]:
    """95 % interval of the median time to failure (R. Brookmeyer & J. Crowley, Biometrics 38, 29 (1982)).

    All times at which the log-log band of the curve holds one half; None: no such bound within the runs.
    """
    curve = survival_curve(times, failed)

    def first(bound: FloatArray) -> float | None:
        below = np.flatnonzero(bound <= 0.5 + 1e-12)  # NaN compares False
        return float(curve.times[below[0]]) if below.size else None

    return first(curve.low), first(curve.high)


def log_rank_test(
    one: FloatArray, one_failed: BoolArray, other: FloatArray, other_failed: BoolArray
) -> float:
    """Two-sided chance that runs of one kind, labelled at random, differ at least so much in their failures.

    The log-rank statistic of N. Mantel (Cancer Chemother. Rep. 50, 163 (1966)) as a sum of scores over the
    runs of one label (R. Peto & J. Peto, J. R. Stat. Soc. A 135, 185 (1972)), over all ways to give the
    labels, or 20 000 of them: exact for few runs, where the usual χ² is not.

    Args:
        one, one_failed, other, other_failed: as ``times`` and ``failed`` of ``kaplan_meier``, of each kind.
    """
    times, failed = np.concatenate([one, other]), np.concatenate([one_failed, other_failed])
    event_times = np.unique(times[failed])
    at_risk = (times[None, :] >= event_times[:, None]).sum(1)
    events = ((times[None, :] == event_times[:, None]) & failed[None, :]).sum(1)
    hazard = np.where(times[:, None] >= event_times[None, :], events / np.maximum(at_risk, 1), 0.0).sum(1)
    scores = failed - hazard
    found = abs(scores[: len(one)].sum()) - 1e-9
    return float((np.abs(_sums_of_labellings(scores, len(one))) >= found).mean())


_MOST_LABELLINGS = 20_000


def _sums_of_labellings(scores: FloatArray, n_chosen: int) -> FloatArray:
    """Sums of ``n_chosen`` of the scores (they add up to zero): of every choice, or of many drawn ones."""
    n = len(scores)
    if math.comb(n, n_chosen) <= _MOST_LABELLINGS:
        chosen = np.array(list(itertools.combinations(range(n), n_chosen)), dtype=np.int64)
        return scores[chosen.reshape(-1, n_chosen)].sum(1)
    random = np.random.default_rng(0)
    shuffled = random.permuted(np.tile(scores, (_MOST_LABELLINGS, 1)), axis=1)
    # The labelling that was found is one of them: a chance is never reported as zero.
    return np.append(shuffled[:, :n_chosen].sum(1), scores[:n_chosen].sum())


@dataclass(frozen=True)
class Factor:
    """How many times longer one kind of runs lasts than the control: ratio of the median times to failure.

    value:     a lower bound where ``is_bound`` (fewer than half of the runs failed)
    low, high: 95 % interval; high is None where it has no bound
    """

    value: float
    is_bound: bool
    low: float
    high: float | None


def failure_factor(
    control: FloatArray,
    control_failed: BoolArray,
    times: FloatArray,
    failed: BoolArray,
    run_length: float,
    n_resamples: int = 2000,
) -> Factor | None:
    """How many times longer the runs last than the control's; None where fewer than half of those failed.

    The interval is that of the bootstrap over runs (B. Efron, J. Am. Stat. Assoc. 76, 312 (1981)). A resample
    whose median lies beyond the end of the runs counts with both its bounds, the run length and infinity.

    Args:
        control, control_failed, times, failed: as in ``kaplan_meier``, from runs of the same length.
        run_length: in the unit of the times.
    """
    control_median = median_time_to_failure(control, control_failed)
    if not control_median:  # none, or at once: no ratio to it
        return None
    median = median_time_to_failure(times, failed)
    random = np.random.default_rng(0)
    bounds = np.array(
        [
            _ratio_bounds(
                _median_bounds(times, failed, run_length, random),
                _median_bounds(control, control_failed, run_length, random),
            )
            for _ in range(n_resamples)
        ]
    )
    lows, highs = np.sort(bounds, axis=0).T
    low, high = lows[int(0.025 * n_resamples)], highs[int(np.ceil(0.975 * n_resamples)) - 1]
    return Factor(
        value=(run_length if median is None else median) / control_median,
        is_bound=median is None,
        low=float(low),
        high=float(high) if np.isfinite(high) else None,
    )


def _median_bounds(
    times: FloatArray, failed: BoolArray, run_length: float, random: np.random.Generator
) -> tuple[float, float]:
    """Bounds of the median of one resample: equal unless it lies beyond the end of the runs."""
    drawn = random.integers(len(times), size=len(times))
    median = median_time_to_failure(times[drawn], failed[drawn])
    return (run_length, math.inf) if median is None else (median, median)


def _ratio_bounds(median: tuple[float, float], control: tuple[float, float]) -> tuple[float, float]:
    least = median[0] / control[1] if control[1] > 0 else math.inf
    most = median[1] / control[0] if control[0] > 0 else math.inf
    return least, most
