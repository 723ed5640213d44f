"""The few numbers one compares models by, as rows of words: for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dyntrain.evaluate.result import ModelResult
from dyntrain.evaluate.rollouts import MARKS_FS
from dyntrain.evaluate.verdict import duration

Row = tuple[str, list[str]]
"""A label with its unit, and one cell for each model."""


def summary_rows(results: Sequence[ModelResult]) -> list[Row]:
    """Force error at the marked times, position and energy error at the last, drift, failures.

    All errors are medians over the starts; "burst" stands where half of the starts or more have burst.
    """
    marks = [mark for mark in MARKS_FS if any(r.rollout.index_at(mark) is not None for r in results)]
    last = marks[-1]

    def row(label: str, cell: Callable[[ModelResult], str]) -> Row:
        return label, [cell(result) for result in results]

    def error_at(mark: float, name: str) -> Callable[[ModelResult], str]:
        def cell(result: ModelResult) -> str:
            found = result.rollout.at_marks(getattr(result.rollout, name), (mark,))
            if mark not in found:
                return "–"
            value = found[mark]
            return "burst" if value is None else f"{value:.3g}"

        return cell

    rows = [row(f"force error at {mark:g} fs (eV/Å)", error_at(mark, "force_mae")) for mark in marks]
    if last > 0:
        rows.append(row(f"position error at {last:g} fs (Å)", error_at(last, "position_rmsd")))
        rows.append(row(f"energy error at {last:g} fs (meV/atom)", error_at(last, "energy_error")))
        rows.append(row("roll-outs burst", _burst))
        rows.append(row("doubling time of small deviations (fs)", _doubling))
    if any(result.free is not None for result in results):
        rows.append(row("energy drift, free runs (meV/atom/ps)", _drift))
        rows.append(row("free runs failed", _failed))
        rows.append(row("median time to failure", _median))
        rows.append(row("restricted mean time to failure", _restricted_mean))
    return rows


def _burst(result: ModelResult) -> str:
    rollout = result.rollout
    return f"{rollout.n_starts - int(rollout.n_alive[-1])} of {rollout.n_starts}"


def _doubling(result: ModelResult) -> str:
    doubling = result.rollout.doubling_time_fs
    return f"> {result.rollout.horizon_fs:g}" if doubling is None else f"{doubling:.3g}"


def _drift(result: ModelResult) -> str:
    drift = result.free.drift_meV_atom_ps if result.free is not None else None
    return "–" if drift is None else f"{drift:.3g}"


def _failed(result: ModelResult) -> str:
    free = result.free
    return (
        "–"
        if free is None
        else f"{int(free.failed.sum())} of {free.n_runs} in {duration(free.run_length_fs)}"
    )


def _median(result: ModelResult) -> str:
    if result.free is None:
        return "–"
    median = result.free.time_to_failure()["median"]
    return f"> {duration(result.free.run_length_fs)}" if median is None else duration(median)


def _restricted_mean(result: ModelResult) -> str:
    if result.free is None:
        return "–"
    return duration(result.free.time_to_failure()["restricted_mean"] or 0.0)
