"""Tables and figure of levers.py: means over seeds with their standard errors, ratios to the control."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

_SHOWN_OWN = ("0", "100", "200", "500")

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""arm → seed → what was measured."""


def tables(results: Results, control: str) -> str:
    """Two Markdown tables: the errors of each arm, and their ratios to the control's."""
    seeds = len(next(iter(results.values())))
    first = next(iter(results[control].values()))
    marks = list(first["deviation_eV_A"])
    own = [mark for mark in _SHOWN_OWN if mark in first["audit_eV_A"]]
    head = [*(f"{mark} fs" for mark in marks), *(f"own {mark} fs" for mark in own)]
    of = "1 seed" if seeds == 1 else f"{seeds} seeds"
    lines = [f"Force error in eV/Å, medians; mean ± standard error of {of}", ""]
    lines += _head("arm", *head, "failed", "updates", "CPU s")
    for arm, by_seed in results.items():
        cells = [_mean(by_seed, "deviation_eV_A", mark) for mark in marks]
        cells += [_mean(by_seed, "audit_eV_A", mark) for mark in own]
        failed, n_free = (sum(s[key] for s in by_seed.values()) for key in ("n_failed", "n_free"))
        cells += [f"{failed} of {n_free}"]
        cells += [f"{np.mean([s[key] for s in by_seed.values()]):.0f}" for key in ("updates", "cpu_s")]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines += ["", f"Ratio to {control}: geometric mean over starts and seeds (95 % over seeds)", ""]
    lines += _head("arm", *head)
    for arm, by_seed in results.items():
        if arm not in (control, "start"):
            cells = [_ratio(by_seed, results[control], "deviation_eV_A", mark) for mark in marks]
            cells += [_ratio(by_seed, results[control], "audit_eV_A", mark) for mark in own]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _medians(by_seed: Mapping[str, Mapping[str, Any]], key: str, mark: str) -> list[float]:
    """Of each seed, over its starts; a start that has burst counts as infinitely wrong."""
    return [
        float(np.median([math.inf if value is None else value for value in measured[key].get(mark, [None])]))
        for measured in by_seed.values()
    ]


def _mean(by_seed: Mapping[str, Mapping[str, Any]], key: str, mark: str) -> str:
    values = _medians(by_seed, key, mark)
    if not np.isfinite(values).all():
        return "burst"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.3f}"


def log_ratios(
    one: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]], key: str, mark: str
) -> list[float]:
    """Of each seed, the mean over starts of log(one / other): the starts are the same, so they pair."""
    found = []
    for seed, measured in one.items():
        pairs = zip(measured[key].get(mark, []), other[seed][key].get(mark, []), strict=False)
        logs = [math.log(a / b) for a, b in pairs if a is not None and b is not None]
        found.append(float(np.mean(logs)) if logs else math.nan)
    return found


def interval(logs: list[float]) -> tuple[float, float]:
    """Mean of logarithms and half of its 95 % interval over the seeds (Student's t; NaN for one seed)."""
    if len(logs) < 2:
        return logs[0], math.nan
    t = float(scipy.stats.t.ppf(0.975, len(logs) - 1))
    return float(np.mean(logs)), t * float(np.std(logs, ddof=1)) / math.sqrt(len(logs))


def _ratio(
    one: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]], key: str, mark: str
) -> str:
    middle, half = interval(log_ratios(one, other, key, mark))
    if not math.isfinite(middle):
        return "–"
    if math.isnan(half):
        return f"{math.exp(middle):.3f}"
    return f"{math.exp(middle):.3f} ({math.exp(middle - half):.2f}–{math.exp(middle + half):.2f})"


def draw(results: Results, control: str, file: Path) -> None:
    """Error over the control's versus time, one line an arm, with 95 % intervals over the seeds."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.2), layout="constrained")
    arms = [arm for arm in results if arm not in (control, "start")]
    marks = list(next(iter(results[control].values()))["deviation_eV_A"])
    for number, arm in enumerate(arms):
        found = [interval(log_ratios(results[arm], results[control], "deviation_eV_A", m)) for m in marks]
        ratio = np.exp([middle for middle, _ in found])
        bars = np.array([[1 - math.exp(-half), math.exp(half) - 1] for _, half in found]).T * ratio
        times = [float(mark) + 0.8 * (number - len(arms) / 2) for mark in marks]
        axes.errorbar(
            times, ratio, None if np.isnan(bars).any() else bars, marker="o", ms=3, capsize=2, label=arm
        )
    axes.axhline(1.0, color="black", lw=0.8)
    axes.set_xlabel("time along the roll-out, fs")
    axes.set_ylabel(f"force error / that of {control}")
    axes.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(file)
