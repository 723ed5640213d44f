"""The verdict in words, made from the numbers: usable for how long, at what error, and which model wins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dyntrain import observables
from dyntrain.evaluate.audit import AuditCurve
from dyntrain.evaluate.free import FreeRuns
from dyntrain.evaluate.result import ModelResult
from dyntrain.evaluate.rollouts import MARKS_FS, RolloutErrors
from dyntrain.observables import FloatArray

# A difference that chance would make more often than this is called no difference.
_LEVEL = 0.05

# Fewer starts cannot pass a two-sided sign test at 5 %, even if all agree (2 / 2⁶ = 0.03).
_FEWEST_STARTS = 6

# A model is called usable while at least this share of its free runs is whole …
_SHARE_WHOLE = 0.9
# … and the median force error on its own way is at most so many times what it was at the start.
_AUDIT_GROWTH = 2.0

# MLIPAudit calls an NVE run good below this.
_NVE_THRESHOLD = 1.0


@dataclass(frozen=True)
class Usable:
    """For how long a model is usable, and what ends it (None: nothing within the runs)."""

    time_fs: float
    ended_by: str | None


@dataclass(frozen=True)
class Verdict:
    """``winner``: the name of the model that is better, None if none is; then a line and its reasons."""

    winner: str | None
    headline: str
    reasons: tuple[str, ...]


def usable_words(result: ModelResult) -> str:
    """For how long a model is usable, as a cell of a table."""
    found = usable(result)
    if found is None:
        return "–"
    return f"> {duration(found.time_fs)}" if found.ended_by is None else duration(found.time_fs)


def usable(result: ModelResult) -> Usable | None:
    """Until when at least 90 % of the free runs are whole and the audit's median error is at most twice its
    start; None without free runs."""
    free, audit = result.free, result.audit
    if free is None:
        return None
    ends = [Usable(free.run_length_fs, None)]
    times, shares = observables.kaplan_meier(free.failure_fs, free.failed)
    below = np.flatnonzero(shares < _SHARE_WHOLE)
    if below.size:
        time_fs = float(times[below[0]])
        run = int(np.flatnonzero(free.failed & (free.failure_fs == time_fs))[0])
        ends.append(Usable(time_fs, free.reasons[run]))
    if audit is not None:
        median = audit.quantile(0.5)
        # Where half of the runs have failed the median is infinite; their failure is counted above.
        above = np.flatnonzero(np.isfinite(median) & (median > _AUDIT_GROWTH * median[0]))
        if above.size:
            growth = median[above[0]] / median[0]
            words = f"the force error on its own way is {growth:.1f} × its start"
            # Between two audited times nothing is known: usable up to the last one that was fine.
            before = float(audit.times_fs[above[0] - 1])
            ends.append(Usable(before, f"by {duration(audit.times_fs[above[0]])} {words}"))
    return min(ends, key=lambda end: end.time_fs)


def judge(results: Sequence[ModelResult]) -> Verdict:
    """Say in words how good one model is, or which of several wins; the first is the control.

    A model is called closer to the recording when its force error is lower than the other's in so many of
    the common starts that chance does not explain it (sign test, 5 %); only starts whose roll-outs do not
    overlap in time count, at the longest time in the tables that leaves six of them. It is called more
    stable when its free runs last longer than chance explains (log-rank test by permutation, 5 %). It wins
    over another if it is ahead in one of these and behind in neither, and altogether if it wins over all.
    """
    if not results:
        raise ValueError("there is no result to judge")
    reasons = [_of_one(result) for result in results]
    if len(results) == 1:
        return Verdict(None, usable_sentence(results[0]), tuple(reasons))
    reasons = [usable_sentence(result) for result in results] + reasons
    wins = {result.name: 0 for result in results}
    for number, one in enumerate(results):
        for other in results[number + 1 :]:
            better, words = _compare(one, other)
            reasons += words
            if better is not None:
                wins[better.name] += 1
    reasons += [sentence for other in results[1:] if (sentence := factor_sentence(results[0], other))]
    best = [name for name, count in wins.items() if count == len(results) - 1]
    if best:
        others = " and ".join(result.name for result in results if result.name != best[0])
        return Verdict(best[0], f"{best[0]} is better than {others} here.", tuple(reasons))
    names = " and ".join(result.name for result in results)
    return Verdict(None, f"No clear winner here among {names}.", tuple(reasons))


# --- one model ----------------------------------------------------------------------------------------


def usable_sentence(result: ModelResult) -> str:
    """For how long a model is usable, at what error, and what breaks first."""
    mark, error = _last_mark(result)
    if error is None:
        return f"{result.name}: half of the roll-outs burst within {mark:g} fs; not usable for dynamics here."
    found = usable(result)
    if found is None:
        return f"{result.name}: after {mark:g} fs its forces differ from the recording's by {error:.3g} eV/Å."
    at_error = _error_at(result, found.time_fs)
    if result.free is not None and result.free.temperature_K is not None:
        at_error += f", in runs started at {result.free.temperature_K:g} K"
    if found.ended_by is None:
        return (
            f"{result.name} is usable for at least {duration(found.time_fs)} here, {at_error}: nothing broke."
        )
    if found.time_fs <= 0:
        return f"{result.name} is not usable for dynamics here: {found.ended_by}."
    return (
        f"{result.name} is usable for about {duration(found.time_fs)} here, {at_error}; what breaks first: "
        f"{found.ended_by}."
    )


def _error_at(result: ModelResult, time_fs: float) -> str:
    """The force error that a run of this length is made with."""
    audit = result.audit
    if audit is None:
        return (
            f"with a force error of {result.rollout.one_step.force_mae:.3g} eV/Å on recorded structures (on "
            "its own: unknown, no audit was made)"
        )
    median = audit.quantile(0.5)
    known = np.flatnonzero((audit.times_fs <= time_fs) & np.isfinite(median))
    if not known.size:
        return "with an unknown force error (every reference calculation failed)"
    at = known[-1]
    return (
        f"with a force error of {median[at]:.3g} eV/Å on its own structures at {duration(audit.times_fs[at])}"
    )


def _of_one(result: ModelResult) -> str:
    rollout, one, free = result.rollout, result.rollout.one_step, result.free
    mark, error = _last_mark(result)
    parts = [f"{result.name}: force error {one.force_mae:.3g} eV/Å on single structures"]
    if mark > 0:
        parts.append(
            f"{error:.3g} after {mark:g} fs of its own dynamics"
            if error is not None
            else f"half of its roll-outs burst within {mark:g} fs"
        )
    lost = rollout.n_starts - int(rollout.n_alive[-1])
    if lost:
        parts.append(f"{lost} of {rollout.n_starts} roll-outs burst")
    if result.audit is not None:
        parts.append(_audited(result.audit))
    if free is not None:
        parts.append(_failures(free))
        parts += _conservation(free)
    return ", ".join(parts) + "."


def _audited(audit: AuditCurve) -> str:
    median = audit.quantile(0.5)
    known = np.flatnonzero(np.isfinite(median))
    failed = f" ({len(audit.failures)} reference calculations failed)" if audit.failures else ""
    if not known.size:
        return f"audit: no result{failed}"
    last = known[-1]
    if last == 0:
        return f"audit: {median[0]:.3g} eV/Å at the start{failed}"
    return (
        f"audit: {median[known[0]]:.3g} eV/Å at the start and {median[last]:.3g} at "
        f"{duration(audit.times_fs[last])}{failed}"
    )


def _failures(free: FreeRuns) -> str:
    numbers = free.time_to_failure()
    length = duration(free.run_length_fs)
    if not numbers["n_failed"]:
        return f"none of {free.n_runs} free runs failed within {length}"
    failed = f"{numbers['n_failed']} of {free.n_runs} free runs failed within {length}"
    return failed + median_words(free, ", half by ")


def median_words(free: FreeRuns, before: str = "") -> str:
    """The median time to failure and its 95 % interval; empty where fewer than half failed."""
    numbers = free.time_to_failure()
    median, low, high = numbers["median"], numbers["median_low"], numbers["median_high"]
    if median is None:
        return ""
    upper = "beyond the runs" if high is None else duration(high)
    return f"{before}{duration(median)} (95 %: {duration(low or 0.0)} to {upper})"


def _conservation(free: FreeRuns) -> list[str]:
    parts = []
    if free.drift_meV_atom_ps is not None:
        parts.append(f"energy drift {free.drift_meV_atom_ps:.3g} meV/atom/ps")
    if free.nve_score is not None and free.nve_score > _NVE_THRESHOLD:
        parts.append(f"NVE score {free.nve_score:.2g}, above MLIPAudit's threshold of {_NVE_THRESHOLD:g}")
    return parts


def _last_mark(result: ModelResult) -> tuple[float, float | None]:
    return list(result.rollout.at_marks(result.rollout.force_mae).items())[-1]


# --- two models ---------------------------------------------------------------------------------------


def _compare(one: ModelResult, other: ModelResult) -> tuple[ModelResult | None, list[str]]:
    closer, closer_words = _closer(one, other)
    steadier, steadier_words = _steadier(one, other)
    ahead = {result.name for result in (closer, steadier) if result is not None}
    better = None
    if len(ahead) == 1:
        better = one if one.name in ahead else other
    return better, [closer_words, *steadier_words]


def factor_sentence(control: ModelResult, other: ModelResult) -> str | None:
    """How many times longer the other model's free runs last than the control's, or why this cannot be said;
    None where no run of either failed, or there were none."""
    one, two = control.free, other.free
    if one is None or two is None or not (one.failed.any() or two.failed.any()):
        return None
    found = observables.failure_factor(
        one.failure_fs, one.failed, two.failure_fs, two.failed, one.run_length_fs
    )
    if found is None:
        failed = f"{int(one.failed.sum())} of {one.n_runs}"
        return (
            f"How many times longer {other.name} lasts than {control.name} cannot be stated: {failed} free "
            f"runs of {control.name} failed, and half of them must (after the start). Make them harder: a "
            "higher --free-temperature, a longer --free-length, or models trained on fewer frames."
        )
    upper = "no upper bound" if found.high is None else f"{found.high:.2g}"
    least = "at least " if found.is_bound else ""
    return (
        f"{other.name} lasts {least}{found.value:.2g} times as long as {control.name} (ratio of the median "
        f"times to failure; 95 % of the bootstrap: {found.low:.2g} to {upper})."
    )


def _closer(one: ModelResult, other: ModelResult) -> tuple[ModelResult | None, str]:
    """Which follows the recording more closely, by one sign test at one time, chosen before looking."""
    if one.rollout.starts != other.rollout.starts:
        raise ValueError(f"{one.name} and {other.name} were rolled out from different starts")
    tested = [
        (mark, apart)
        for mark in MARKS_FS[1:]
        if one.rollout.index_at(mark) is not None
        and len(apart := _not_overlapping(one.rollout, mark)) >= _FEWEST_STARTS
    ]
    if not tested:
        return None, (
            f"The held-out runs are too short to say whether {one.name} or {other.name} follows them "
            f"more closely: that needs {_FEWEST_STARTS} roll-outs that do not overlap in time."
        )
    mark, apart = tested[-1]
    index = one.rollout.index_at(mark)
    n_one, n_other = _wins(one.rollout.force_mae[index, apart], other.rollout.force_mae[index, apart])
    leader, trailer = (one, other) if n_one >= n_other else (other, one)
    errors = [r.rollout.at_marks(r.rollout.force_mae, (mark,))[mark] for r in (leader, trailer)]
    sizes = f"force error {_number(errors[0])} against {_number(errors[1])} eV/Å"
    count = (
        f"closer in {max(n_one, n_other)} of the {len(apart)} roll-outs that do not overlap in time "
        f"(sign test, p = {sign_test(n_one, n_other):.2g})"
    )
    if sign_test(n_one, n_other) < _LEVEL:
        return leader, (
            f"{leader.name} follows the recording more closely than {trailer.name}: after {mark:g} fs "
            f"{sizes}; {count}."
        )
    return None, (
        f"Whether {one.name} or {other.name} follows the recording more closely is not settled: after "
        f"{mark:g} fs {leader.name} has {sizes}, but it is {count}: chance explains that."
    )


def _not_overlapping(rollout: RolloutErrors, length_fs: float) -> list[int]:
    """Starts at least ``length_fs`` apart: only these are independent enough to be counted in a test."""
    chosen: list[int] = []
    last: dict[str, float] = {}
    spacing = rollout.times_fs[1] - rollout.times_fs[0]
    for number in sorted(range(rollout.n_starts), key=lambda n: rollout.starts[n]):
        file, frame = rollout.starts[number]
        if frame * spacing - last.get(file, -np.inf) >= length_fs - 1e-9:
            chosen.append(number)
            last[file] = frame * spacing
    return chosen


def _wins(one: FloatArray, other: FloatArray) -> tuple[int, int]:
    """Starts in which each has the lower error; burst counts as infinite."""
    one, other = (np.where(np.isnan(e), np.inf, e) for e in (one, other))
    return int((one < other).sum()), int((other < one).sum())


def _steadier(one: ModelResult, other: ModelResult) -> tuple[ModelResult | None, list[str]]:
    first, second = one.free, other.free
    if first is None or second is None:
        return None, []
    n_one, n_other = int(first.failed.sum()), int(second.failed.sum())
    if n_one == n_other == 0:
        length = duration(first.run_length_fs)
        return None, [f"All free runs stayed whole for {length}: they do not tell the models apart."]
    p = observables.log_rank_test(first.failure_fs, first.failed, second.failure_fs, second.failed)
    words = (
        f"{n_one} of {first.n_runs} free runs of {one.name} failed, {n_other} of {second.n_runs} of "
        f"{other.name}"
    )
    if p >= _LEVEL:
        return None, [f"{words}: chance explains that (log-rank test, p = {p:.2g})."]
    lasting = [
        observables.restricted_mean_time_to_failure(free.failure_fs, free.failed, free.run_length_fs)
        for free in (first, second)
    ]
    better = one if lasting[0] > lasting[1] else other
    return better, [f"{words}: {better.name} is more stable (log-rank test, p = {p:.2g})."]


def sign_test(n_one: int, n_other: int) -> float:
    """Two-sided probability that a fair coin falls at least so unevenly as n_one : n_other."""
    n, least = n_one + n_other, min(n_one, n_other)
    return min(1.0, 2.0 * sum(math.comb(n, k) for k in range(least + 1)) / 2.0**n)


def duration(fs: float) -> str:
    """A time as words, to three or four digits: 303 fs, 5 ps."""
    return f"{fs:.3g} fs" if fs < 999.5 else f"{fs / 1000:.4g} ps"


def _number(value: float | None) -> str:
    return "burst" if value is None else f"{value:.3g}"
