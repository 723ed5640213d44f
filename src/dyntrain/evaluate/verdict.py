"""The verdict in words, made from the numbers: which model wins, or that none does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dyntrain.evaluate.free import FreeRuns
from dyntrain.evaluate.result import ModelResult
from dyntrain.evaluate.rollouts import MARKS_FS, RolloutErrors
from dyntrain.observables import FloatArray

# A difference that chance would make more often than this is called no difference.
_LEVEL = 0.05

# Fewer starts cannot pass a two-sided sign test at 5 %, even if all agree (2 / 2⁶ = 0.03).
_FEWEST_STARTS = 6


@dataclass(frozen=True)
class Verdict:
    """``winner``: the name of the model that is better, None if none is; then a line and its reasons."""

    winner: str | None
    headline: str
    reasons: tuple[str, ...]


def judge(results: Sequence[ModelResult]) -> Verdict:
    """Say in words how good one model is, or which of several wins.

    A model is called closer to the recording when its force error is lower than the other's in so many of
    the common starts that chance does not explain it (sign test, 5 %); only starts whose roll-outs do not
    overlap in time count, at the longest time in the tables that leaves six of them. It is called more
    stable when its free runs fail less often than chance explains (Fisher's exact test, 5 %). It wins over
    another if it is ahead in one of these and behind in neither, and altogether if it wins over all others.
    """
    if not results:
        raise ValueError("there is no result to judge")
    reasons = [_of_one(result) for result in results]
    if len(results) == 1:
        return Verdict(None, _usable(results[0]), tuple(reasons))
    wins = {result.name: 0 for result in results}
    for number, one in enumerate(results):
        for other in results[number + 1 :]:
            better, words = _compare(one, other)
            reasons += words
            if better is not None:
                wins[better.name] += 1
    best = [name for name, count in wins.items() if count == len(results) - 1]
    if best:
        others = " and ".join(result.name for result in results if result.name != best[0])
        return Verdict(best[0], f"{best[0]} is better than {others} here.", tuple(reasons))
    names = " and ".join(result.name for result in results)
    return Verdict(None, f"No clear winner here among {names}.", tuple(reasons))


def _usable(result: ModelResult) -> str:
    mark, error = _last_mark(result)
    if error is None:
        return f"{result.name}: half of the roll-outs burst within {mark:g} fs; not usable for dynamics here."
    headline = f"{result.name}: after {mark:g} fs its forces differ from the recording's by {error:.3g} eV/Å"
    if result.free is not None:
        failed, runs = int(result.free.failed.sum()), result.free.n_runs
        length = duration(result.free.run_length_fs)
        headline += (
            f", and all {runs} free runs stayed whole for {length}"
            if not failed
            else f", and {failed} of {runs} free runs failed within {length}"
        )
    return headline + "."


def _of_one(result: ModelResult) -> str:
    rollout, one = result.rollout, result.rollout.one_step
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
    free = result.free
    if free is not None:
        parts.append(_failures(free))
        if free.drift_meV_atom_ps is not None:
            parts.append(f"energy drift {free.drift_meV_atom_ps:.3g} meV/atom/ps")
    return ", ".join(parts) + "."


def _failures(free: FreeRuns) -> str:
    numbers = free.time_to_failure()
    length = duration(free.run_length_fs)
    if not numbers["n_failed"]:
        return f"none of {free.n_runs} free runs failed within {length}"
    median = numbers["median"]
    half = f", half of them by {duration(median)}" if median is not None else ""
    return f"{numbers['n_failed']} of {free.n_runs} free runs failed within {length}{half}"


def _last_mark(result: ModelResult) -> tuple[float, float | None]:
    return list(result.rollout.at_marks(result.rollout.force_mae).items())[-1]


def _compare(one: ModelResult, other: ModelResult) -> tuple[ModelResult | None, list[str]]:
    closer, closer_words = _closer(one, other)
    steadier, steadier_words = _steadier(one, other)
    ahead = {result.name for result in (closer, steadier) if result is not None}
    better = None
    if len(ahead) == 1:
        better = one if one.name in ahead else other
    return better, [closer_words, *steadier_words]


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
    if one.free is None or other.free is None:
        return None, []
    n_one, n_other = int(one.free.failed.sum()), int(other.free.failed.sum())
    if n_one == n_other == 0:
        length = duration(one.free.run_length_fs)
        return None, [f"All free runs stayed whole for {length}: they do not tell the models apart."]
    p = fisher_test(n_one, one.free.n_runs, n_other, other.free.n_runs)
    words = (
        f"{n_one} of {one.free.n_runs} free runs of {one.name} failed, {n_other} of {other.free.n_runs} of "
        f"{other.name}"
    )
    if p >= _LEVEL:
        return None, [f"{words}: chance explains that (Fisher's test, p = {p:.2g})."]
    better = one if n_one < n_other else other
    return better, [f"{words}: {better.name} is more stable (Fisher's test, p = {p:.2g})."]


def sign_test(n_one: int, n_other: int) -> float:
    """Two-sided probability that a fair coin falls at least so unevenly as n_one : n_other."""
    n, least = n_one + n_other, min(n_one, n_other)
    return min(1.0, 2.0 * sum(math.comb(n, k) for k in range(least + 1)) / 2.0**n)


def fisher_test(failed_one: int, n_one: int, failed_other: int, n_other: int) -> float:
    """Fisher's exact test, two-sided: chance of a split of the failures that is no likelier than this one."""
    failed, total = failed_one + failed_other, math.comb(n_one + n_other, failed_one + failed_other)
    chances = {
        k: math.comb(n_one, k) * math.comb(n_other, failed - k) / total
        for k in range(max(0, failed - n_other), min(failed, n_one) + 1)
    }
    return sum(p for p in chances.values() if p <= chances[failed_one] * (1 + 1e-9))


def duration(fs: float) -> str:
    """A time as words, to three or four digits: 303 fs, 5 ps."""
    return f"{fs:.3g} fs" if fs < 999.5 else f"{fs / 1000:.4g} ps"


def _number(value: float | None) -> str:
    return "burst" if value is None else f"{value:.3g}"
