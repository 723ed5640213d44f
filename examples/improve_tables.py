"""What examples/improve_*.py measure of a model, and their tables: mean ± standard error of seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dyntrain.data.trajectory import Trajectory
from dyntrain.evaluate import MARKS_FS
from dyntrain.evaluate.audit import Reference as Labels
from dyntrain.improve.rounds import at_marks, audited, beside_recorded, own_runs
from dyntrain.observables import median_time_to_failure
from dyntrain.potential import Potential

Results = dict[str, dict[str, dict[str, Any]]]
"""Figures by seed and arm."""

COLUMNS = [
    *(("deviation_eV_A", mark) for mark in ("0", "50", "100", "150")),
    *(("audit_eV_A", mark) for mark in ("0", "100", "200", "500", "1000")),
]


def measured(
    potential: Potential,
    test: Sequence[Trajectory],
    labels: Labels,
    *,
    n_audited: int,
    audit_fs: float,
    drawn_K: float | None,
    n_runs: int,
    run_length_fs: float,
    seed: int,
) -> dict[str, Any]:
    """Force error beside the test runs and on the model's own free runs (eV/Å), and the runs that fail.

    Args:
        n_audited, audit_fs: free runs from recorded positions and velocities, and how long they are.
        drawn_K, n_runs, run_length_fs: free runs with velocities drawn at a temperature, which may fail;
            None: the audited ones are looked at.
    """
    free = own_runs(potential, test, horizon_fs=audit_fs, temperature=None, n_runs=n_audited, seed=seed)
    curve, _, failures = audited(potential, free, labels)
    if drawn_K is not None:
        free = own_runs(
            potential, test, horizon_fs=run_length_fs, temperature=drawn_K, n_runs=n_runs, seed=seed
        )
    return {
        "deviation_eV_A": at_marks(beside_recorded(potential, test, seed), MARKS_FS),
        "audit_eV_A": at_marks(curve, curve["times_fs"]),
        "audit_failures": failures,
        "n_failed": int(free.failed.sum()),
        "n_runs": free.n_runs,
        "run_length_fs": free.run_length_fs,
        "failure_fs": free.failure_fs.tolist(),
        "failed": free.failed.tolist(),
        "median_time_to_failure_fs": median_time_to_failure(free.failure_fs, free.failed),
    }


def tables(results: Results, control: str = "ordinary AIMD") -> str:
    """The figures of each arm, and its errors in shares of those of the control, in Markdown.

    A dash: most runs had failed by then. Times that nothing was measured at are left out.
    """
    arms = list(dict.fromkeys(arm for by_arm in results.values() for arm in by_arm))
    said = {("deviation_eV_A", "0"): "beside: 0 fs", ("audit_eV_A", "0"): "own: 0 fs"}
    every = [found for by_arm in results.values() for found in by_arm.values()]
    columns = [(key, mark) for key, mark in COLUMNS if any(f[key].get(mark) is not None for f in every)]
    names = [said.get(column, column[1]) for column in columns]
    lines = [_row(["arm", *names, "failed", "median ps"]), "|---" * (len(names) + 3) + "|"]
    for arm in arms:
        seeds = [by_arm[arm] for by_arm in results.values() if arm in by_arm]
        cells = [_mean([s[key].get(mark) for s in seeds]) for key, mark in columns]
        lines.append(_row([arm, *cells, *_survival(seeds)]))
    others = [arm for arm in arms if arm != control and any(control in found for found in results.values())]
    if others:
        lines += ["", _row([f"as a share of {control}", *names]), "|---" * (len(names) + 1) + "|"]
    for arm in others:
        pairs = [(found[arm], found[control]) for found in results.values() if {arm, control} <= set(found)]
        ratios = [[_ratio(a[key].get(mark), b[key].get(mark)) for a, b in pairs] for key, mark in columns]
        lines.append(_row([arm, *(_mean(each, 2) for each in ratios)]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ratio(value: float | None, control: float | None) -> float | None:
    return None if value is None or control is None else value / control


def _mean(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean ± standard error over seeds; one that is missing (most of its runs had failed) leaves none."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "–"
    mean = f"{np.mean(known):.{digits}f}"
    if len(known) == 1:
        return mean
    return f"{mean} ± {np.std(known, ddof=1) / np.sqrt(len(known)):.{digits}f}"


def _survival(seeds: Sequence[dict[str, Any]]) -> list[str]:
    """Failed runs of all seeds within the time that all of them ran, and the median time to failure."""
    length = min(each["run_length_fs"] for each in seeds)
    times = np.concatenate([each["failure_fs"] for each in seeds])
    failed = np.concatenate([each["failed"] for each in seeds]).astype(bool) & (times <= length)
    median = median_time_to_failure(np.minimum(times, length), failed)
    told = f"beyond {length / 1000:g}" if median is None else f"{median / 1000:.2f}"
    return [f"{failed.sum()} of {len(failed)} in {length / 1000:g} ps", told]
