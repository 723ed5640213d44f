"""The verdict in words, made from the numbers: which model wins, or that none does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dyntrain.evaluate.free import FreeRuns
from dyntrain.evaluate.result import ModelResult
from dyntrain.evaluate.rollouts import MARKS_FS
from dyntrain.observables import FloatArray

# A difference that chance would make more often than this is called no difference.
_LEVEL = 0.05


@dataclass(frozen=True)
class Verdict:
    """``winner``: the name of the model that is better, None if none is; then a line and its reasons."""

    winner: str | None
    headline: str
    reasons: tuple[str, ...]


def judge(results: Sequence[ModelResult]) -> Verdict:
    """Say in words how good one model is, or which of several wins.

    A model is called closer to the recording at a time when its force error is lower than the other's in
    so many of the common starts that chance (sign test, 5 %) does not explain it, and more stable when its
    free runs fail less often than chance (Fisher's exact test, 5 %) explains. It wins over another if it is
    ahead in one of these and behind in neither; it wins altogether if it wins over all others.
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
    return Verdict(None, "No model is clearly better than the others here.", tuple(reasons))


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
    """Which follows the recording more closely, by sign tests at the marks after the start."""
    if one.rollout.starts != other.rollout.starts:
        raise ValueError(f"{one.name} and {other.name} were rolled out from different starts")
    ahead: dict[str, list[float]] = {one.name: [], other.name: []}
    tested: list[tuple[float, int, int]] = []
    for mark in MARKS_FS[1:]:
        index = one.rollout.index_at(mark)
        if index is None:
            continue
        n_one, n_other = _wins(one.rollout.force_mae[index], other.rollout.force_mae[index])
        tested.append((mark, n_one, n_other))
        if sign_test(n_one, n_other) < _LEVEL:
            ahead[one.name if n_one > n_other else other.name].append(mark)
    if not tested:
        return None, "The roll-outs are too short to compare."
    leaders = [result for result in (one, other) if ahead[result.name]]
    if len(leaders) == 1:
        leader = leaders[0]
        trailer = other if leader is one else one
        marks = ahead[leader.name]
        mark, n_one, n_other = next(row for row in tested if row[0] == marks[-1])
        errors = [r.rollout.at_marks(r.rollout.force_mae, (mark,))[mark] for r in (leader, trailer)]
        return leader, (
            f"{leader.name} follows the recording more closely than {trailer.name} at "
            f"{_list(marks)} fs: at {mark:g} fs {_number(errors[0])} against "
            f"{_number(errors[1])} eV/Å, closer in {max(n_one, n_other)} of {n_one + n_other} starts."
        )
    if leaders:
        early = "; ".join(f"{name} at {_list(marks)} fs" for name, marks in ahead.items())
        return None, f"Which one follows the recording more closely depends on the time: {early}."
    mark, n_one, n_other = tested[-1]
    return None, (
        f"Roll-outs do not tell {one.name} and {other.name} apart: at {mark:g} fs {one.name} is closer in "
        f"{n_one}, {other.name} in {n_other} of {one.rollout.n_starts} starts (sign test, 5 %)."
    )


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


def _list(marks: Sequence[float]) -> str:
    return ", ".join(f"{mark:g}" for mark in marks)


def _number(value: float | None) -> str:
    return "burst" if value is None else f"{value:.3g}"
