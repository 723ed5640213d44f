"""The page of `dyntrain compare`: does dynamic training help here, how much, how surely, at what cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dyntrain import __version__
from dyntrain.atomic import write_text
from dyntrain.compare import WHAT_IT_IS, Comparison, HeldOut, PairedTest
from dyntrain.evaluate import MARKS_FS
from dyntrain.evaluate.verdict import duration
from dyntrain.observables import quantile_over_starts
from dyntrain.report import compare_figures
from dyntrain.report.page import require_report_extra

_TEMPLATE = Path(__file__).with_name("compare.html.jinja")

Row = tuple[str, list[str]]


def write_compare_page(path: Path | str, comparison: Comparison) -> None:
    """Write the page; it appears whole or not at all and needs no network.

    Raises:
        UserError: plotly or jinja2 is missing, or the file cannot be written.
    """
    require_report_extra()
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    colours = compare_figures.arm_colours(comparison.arms)
    first = comparison.held_out[comparison.arms[0]][0]
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        verdict=comparison.verdict,
        colours=colours,
        arms=[(arm, WHAT_IT_IS[arm]) for arm in comparison.arms],
        n_seeds=len(comparison.seeds),
        rows=_rows(comparison),
        tests=[_test_cells(test) for test in comparison.tests],
        where=comparison.where,
        mark=comparison.plan.mark_fs,
        horizon=first.facts["horizon_fs"],
        n_starts=first.errors["force"].shape[1],
        kicks=first.facts["kick_share"] > 1e-5,
        criterion=first.facts["criterion"],
        against=_figures_against(comparison),
        free=_figures_free(comparison),
        training=_figures_training(comparison),
        costs=_cost_rows(comparison),
        early=[
            f"{arm}, seed {seed}: {one.ended}"
            for arm in comparison.arms
            for seed, one in zip(comparison.seeds, comparison.trained[arm], strict=True)
            if one.ended != "the budget is spent"
        ],
        provenance=_provenance(comparison),
        plotly_js=get_plotlyjs(),
    )
    write_text(path, page)


def _rows(comparison: Comparison) -> list[Row]:
    """Each arm's numbers over all starts and seeds, and in brackets each seed's own."""
    arms = comparison.arms
    held_out = comparison.held_out
    marks = [mark for mark in MARKS_FS if held_out[arms[0]][0].index_at(mark) is not None]

    def row(label: str, cell: Callable[[list[HeldOut]], str]) -> Row:
        return label, [cell(held_out[arm]) for arm in arms]

    def error_at(mark: float, quantity: str) -> Callable[[list[HeldOut]], str]:
        def cell(found: list[HeldOut]) -> str:
            one_seed = [_median([one], quantity, mark) for one in found]
            return _with_seeds(_median(found, quantity, mark), one_seed)

        return cell

    rows = [row(f"force error after {mark:g} fs (eV/Å)", error_at(mark, "force")) for mark in marks]
    rows += [row(f"position error after {marks[-1]:g} fs (Å)", error_at(marks[-1], "position"))]
    rows += [row(f"energy error after {marks[-1]:g} fs (meV/atom)", error_at(marks[-1], "energy"))]
    rows += [row("roll-outs burst", lambda f: f"{sum(one.facts['rollouts_burst'] for one in f)}")]
    rows += [row("doubling time of small deviations (fs)", _fact("doubling_time_fs", "> horizon"))]
    if held_out[arms[0]][0].failed.size:
        rows += [row("energy drift of free runs (meV/atom/ps)", _fact("drift_meV_atom_ps", "–"))]
        rows += [row("free runs failed", _failed), row("mean time whole", _mean_whole)]
    if held_out[arms[0]][0].facts["audit"] is not None:
        times = held_out[arms[0]][0].facts["audit"]["times_fs"]
        rows += [row(f"audit: force error at {duration(t)} (eV/Å)", _audit_at(t)) for t in times]
    return rows


def _median(found: list[HeldOut], quantity: str, mark: float) -> float:
    place = found[0].index_at(mark)
    together = np.concatenate([one.errors[quantity] for one in found], axis=1)[place]
    return float(quantile_over_starts(together[None], 0.5)[0])


def _word(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "burst"


def _with_seeds(value: float, of_seeds: list[float]) -> str:
    if len(of_seeds) == 1:
        return _word(value)
    return f"{_word(value)} ({', '.join(map(_word, of_seeds))})"


def _fact(key: str, missing: str) -> Callable[[list[HeldOut]], str]:
    def cell(found: list[HeldOut]) -> str:
        values = [one.facts[key] for one in found]
        return ", ".join(missing if value is None else f"{value:.3g}" for value in values)

    return cell


def _audit_at(time_fs: float) -> Callable[[list[HeldOut]], str]:
    """Median over the audited runs of each seed; "–" where no run lasted so long."""

    def cell(found: list[HeldOut]) -> str:
        values = []
        for audit in (one.facts["audit"] for one in found):
            known = dict(zip(audit["times_fs"], audit["force_mae_eV_A"], strict=True))
            value = known.get(time_fs)
            values.append("–" if value is None else f"{value:.3g}")
        return ", ".join(values)

    return cell


def _failed(found: list[HeldOut]) -> str:
    n = sum(one.failed.size for one in found)
    length = duration(found[0].facts["free_run_length_fs"])
    return f"{sum(int(one.failed.sum()) for one in found)} of {n} in {length}"


def _mean_whole(found: list[HeldOut]) -> str:
    return duration(float(np.mean([one.failure_fs for one in found])))


def _test_cells(test: PairedTest) -> list[str]:
    def p_value(p: float | None) -> str:
        return "–" if p is None else f"{p:.2g}"

    interval = "–"
    if test.ratio is not None and test.low is not None and test.high is not None:
        interval = f"{test.ratio:.2f} ({test.low:.2f} to {test.high:.2f})"
    return [
        f"{test.quantity}, against {test.control}",
        interval,
        p_value(test.p_starts),
        p_value(test.p_seeds),
        p_value(test.p),
        test.better or "not settled",
    ]


def _figure(title: str, caption: str, height: int, figure: Any) -> dict[str, Any]:
    # Inside <script> only "</" could end the element early; "<\\/" is the same string to JSON.
    return {
        "title": title,
        "caption": caption,
        "height": height,
        "json": figure.to_json().replace("</", "<\\/"),
    }


def _figures_against(comparison: Comparison) -> list[dict[str, Any]]:
    held_out, mark = comparison.held_out, comparison.plan.mark_fs
    caption = "Line: median over starts and seeds; band: the middle half of them. A burst roll-out counts as "
    caption += "infinitely wrong."
    best = _best_control(comparison)
    figures = [
        _figure(
            "Force error along the roll-outs",
            caption,
            420,
            compare_figures.error_versus_time(held_out, "force", "force MAE (eV/Å)"),
        ),
        _figure(
            f"Dynamic against the best control ({best})",
            "Median of the paired differences in the force error (same start, same seed), band: 95 % "
            "bootstrap interval over starts and seeds. Below zero dynamic training is closer to the AIMD. "
            "The control was chosen after looking; the tests above are made against all of them.",
            340,
            compare_figures.difference(held_out, comparison.arms[0], best, mark),
        ),
    ]
    for quantity, title, label in (
        ("position", "Position error", "RMS distance (Å)"),
        ("energy", "Potential-energy error", "meV/atom"),
    ):
        figures.append(
            _figure(title, caption, 320, compare_figures.error_versus_time(held_out, quantity, label))
        )
    return figures


def _best_control(comparison: Comparison) -> str:
    """The control with the smallest force error at the time of the test, else at the horizon."""
    held_out = comparison.held_out
    mark = comparison.plan.mark_fs or float(held_out[comparison.arms[0]][0].times_fs[-1])
    return min(comparison.arms[1:], key=lambda arm: _median(held_out[arm], "force", mark))


def _figures_free(comparison: Comparison) -> list[dict[str, Any]]:
    if not comparison.held_out[comparison.arms[0]][0].failed.size:
        return []
    caption = "Share of the free runs of all seeds that are whole (Kaplan–Meier)."
    return [_figure("Time to failure", caption, 320, compare_figures.survival(comparison.held_out))]


def _figures_training(comparison: Comparison) -> list[dict[str, Any]]:
    caption = "Force error along roll-outs from validation starts, one line a training; hover for S."
    figure = compare_figures.training_curves(comparison.trained)
    return [_figure("Training curves", caption, 380, figure)]


def _cost_rows(comparison: Comparison) -> list[list[str]]:
    rows = []
    for arm in comparison.arms:
        for seed, one in zip(comparison.seeds, comparison.trained[arm], strict=True):
            noise = comparison.measured.noise[seed] if "noise" in arm else None
            rows.append(
                [
                    arm,
                    str(seed),
                    f"{one.labelled_frames}",
                    f"{one.evaluations:.4g}",
                    f"{one.wall_s:.0f} s",
                    f"{one.cpu_s:.0f} s",
                    str(one.segment_length),
                    "–" if noise is None else f"{noise:g}",
                ]
            )
    return rows


def _provenance(comparison: Comparison) -> dict[str, str]:
    costs = ", ".join(f"{arm} {cost:g}" for arm, cost in comparison.measured.rollout_cost.items())
    return {
        "held-out runs": "; ".join(
            f"{run.file} ({run.formula}, {run.n_frames} frames of {run.dt_fs:g} fs)"
            for run in comparison.runs
        ),
        "budget of each training": f"{comparison.measured.evaluations:g} evaluations at S = 1, or their "
        f"worth; cost of one in a roll-out: {costs}",
        "seeds": ", ".join(map(str, comparison.seeds)),
        "dyntrain": __version__,
        "to repeat": "each training's folder beside this page holds its resolved config.yaml",
    }
