"""The few numbers one compares models by, as rows of words: for the terminal and for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from dyntrain.evaluate.result import ModelResult
from dyntrain.evaluate.rollouts import MARKS_FS
from dyntrain.evaluate.verdict import duration, median_words, usable_words

Row = tuple[str, list[str]]
"""A label with its unit, and one cell for each model."""


def summary_rows(results: Sequence[ModelResult]) -> list[Row]:
    """Force error at the marked times, position and energy error at the last, audit, drift, failures, speed.

    All errors are medians over the starts (audit: over the runs); "burst" stands where half of the starts or
    more have burst.
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

    rows = []
    if not all(result.conservative for result in results):
        rows.append(row("forces", lambda r: "of the energy" if r.conservative else "given, not conservative"))
    rows += [row(f"force error at {mark:g} fs (eV/Å)", error_at(mark, "force_mae")) for mark in marks]
    if last > 0:
        rows.append(row(f"position error at {last:g} fs (Å)", error_at(last, "position_rmsd")))
        rows.append(row(f"energy error at {last:g} fs (meV/atom)", error_at(last, "energy_error")))
        rows.append(row("roll-outs burst", _burst))
        rows.append(row("doubling time of small deviations (fs)", _doubling))
    audited = [r for r in results if r.audit is not None]
    if audited:
        times = sorted({float(t) for r in audited if r.audit for t in r.audit.times_fs})
        rows += [row(f"audit: force error at {duration(t)} (eV/Å)", _audit_at(t)) for t in times]
    if any(result.free is not None for result in results):
        rows.append(row("energy drift, free runs (meV/atom/ps)", _drift))
        rows.append(row("NVE score (good below 1)", _nve_score))
        rows.append(row("MLIPAudit stability score", _stability))
        rows.append(row("usable for", usable_words))
        rows.append(row("free runs failed", _failed))
        rows.append(row("median time to failure", _median))
        rows.append(row("restricted mean time to failure", _restricted_mean))
    if any(result.speed is not None for result in results):
        rows.append(row("speed (ns/day of each system)", _speed))
        rows.append(row("time for a step of the batch (ms)", _step))
    return rows


def _audit_at(time_fs: float) -> Callable[[ModelResult], str]:
    def cell(result: ModelResult) -> str:
        if result.audit is None or time_fs not in result.audit.times_fs:
            return "–"
        value = float(result.audit.quantile(0.5)[list(result.audit.times_fs).index(time_fs)])
        return "failed" if math.isinf(value) else "no result" if math.isnan(value) else f"{value:.3g}"

    return cell


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


def _nve_score(result: ModelResult) -> str:
    score = result.free.nve_score if result.free is not None else None
    return "–" if score is None else f"{score:.2g}"


def _stability(result: ModelResult) -> str:
    # A reaction takes hydrogens away from their atoms, too.
    if result.free is None or result.free.criterion.kind == "reactive":
        return "–"
    score = result.free.stability_score
    return "–" if score is None else f"{score:.3f}"


def _median(result: ModelResult) -> str:
    if result.free is None:
        return "–"
    return median_words(result.free) or f"> {duration(result.free.run_length_fs)}"


def _restricted_mean(result: ModelResult) -> str:
    if result.free is None:
        return "–"
    return duration(result.free.time_to_failure()["restricted_mean"] or 0.0)


def _speed(result: ModelResult) -> str:
    return "–" if result.speed is None else f"{result.speed.ns_per_day:.3g}"


def _step(result: ModelResult) -> str:
    return "–" if result.speed is None else f"{result.speed.ms_per_step:.3g}"
