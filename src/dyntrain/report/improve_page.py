"""The page of `dyntrain improve`: how the model's errors and its survival moved from round to round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dyntrain import observables
from dyntrain.atomic import write_text
from dyntrain.report.figures import colour_of, styled
from dyntrain.report.page import require_report_extra

_TEMPLATE = Path(__file__).with_name("improve.html.jinja")

Curve = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class ImprovedRound:
    """What the page shows of a round.

    calls:      reference calculations of all new segments so far
    deviation, audit: times_fs, lower, median, upper (eV/Å); the audit may be empty
    failure_fs, failed: of the free runs that judge the model
    found:      of the exploration and the reference: places, dropped, reference_failures …; None in round 0
    """

    number: int
    calls: int
    deviation: Curve
    audit: Curve
    failure_fs: Sequence[float]
    failed: Sequence[bool]
    run_length_fs: float
    median_time_to_failure_fs: float | None
    found: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        return f"round {self.number}" if self.number else "start"


@dataclass(frozen=True)
class _Figure:
    title: str
    caption: str
    json: str


def write_improve_page(
    path: Path | str, rounds: Sequence[ImprovedRound], facts: Mapping[str, str], headline: str
) -> None:
    """Write the page; it appears whole or not at all.

    Args:
        facts: what a reader needs to know beside the rounds, as pairs of plain words.

    Raises:
        UserError: plotly or jinja2 is missing, or the file cannot be written.
    """
    require_report_extra()
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        headline=headline,
        rounds=rounds,
        colours=[colour_of(each.number) for each in rounds],
        table=_table(rounds),
        figures=_figures(rounds),
        facts=facts,
        plotly_js=get_plotlyjs(),
    )
    write_text(path, page)


_WIDE = 50.0
"""Errors that differ by more than this are shown on a logarithmic axis."""

_SHOWN_DEVIATION = (0.0, 50.0, 100.0, 150.0)


def _table(rounds: Sequence[ImprovedRound]) -> list[tuple[str, list[str]]]:
    """Rows of the table: label and a cell for each round."""
    rows = [("reference calculations trained on", [str(each.calls) for each in rounds])]
    for mark in _SHOWN_DEVIATION:
        if any(_at(each.deviation, mark) != "" for each in rounds):
            cells = [_at(each.deviation, mark) for each in rounds]
            rows.append((f"force error beside held-out runs after {mark:g} fs (eV/Å)", cells))
    marks = sorted({t for each in rounds for t in each.audit.get("times_fs", []) if t is not None})
    for mark in marks:
        cells = [_at(each.audit, mark) for each in rounds]
        rows.append((f"force error on its own run after {mark:g} fs (eV/Å)", cells))
    failed = [f"{sum(each.failed)} of {len(each.failed)}" for each in rounds]
    rows.append((f"free runs of {rounds[0].run_length_fs / 1000:g} ps that failed", failed))
    medians = [each.median_time_to_failure_fs for each in rounds]
    rows.append(
        (
            "median time to failure (ps)",
            ["beyond the runs" if m is None else f"{m / 1000:.3g}" for m in medians],
        )
    )
    return rows


def _at(curve: Curve, mark: float) -> str:
    for time_fs, median in zip(curve.get("times_fs", []), curve.get("median", []), strict=True):
        if time_fs is not None and abs(time_fs - mark) < 1e-6:
            return "half failed" if median is None else f"{median:.3g}"
    return ""


def _figures(rounds: Sequence[ImprovedRound]) -> list[_Figure]:
    band = "Line: median over the starts; band: the middle half of them."
    figures = [
        _Figure(
            "Beside held-out runs",
            f"{band} The run's kicks are applied. Part of a late error is phase: two runs of the true "
            "potential from starts a hair apart drift apart, too.",
            _json(_curves(rounds, "deviation", "time (fs)", markers=False)),
        )
    ]
    if any(each.audit for each in rounds):
        figures.append(
            _Figure(
                "On the model's own free runs, against the reference",
                f"{band} Is the model right where it goes? A line ends where half of the runs have failed.",
                _json(_curves(rounds, "audit", "time (fs)", markers=True)),
            )
        )
    figures.append(
        _Figure(
            "Free runs still whole",
            "Kaplan–Meier; all rounds from the same held-out starts.",
            _json(_survival(rounds)),
        )
    )
    return figures


def _curves(rounds: Sequence[ImprovedRound], quantity: str, x_label: str, *, markers: bool) -> Any:
    import plotly.graph_objects as go
    from plotly.colors import hex_to_rgb

    traces: list[Any] = []
    for each in rounds:
        curve, colour = getattr(each, quantity), colour_of(each.number)
        if not curve:
            continue
        common = {"x": curve["times_fs"], "legendgroup": each.name}
        edge = {"mode": "lines", "showlegend": False, "hoverinfo": "skip", "line": {"width": 0}}
        band = {"fill": "tonexty", "fillcolor": f"rgba{(*hex_to_rgb(colour), 0.15)}"}
        # Where more than a quarter have failed the band has no upper edge: it ends.
        lower = [
            low if high is not None else None
            for low, high in zip(curve["lower"], curve["upper"], strict=True)
        ]
        traces.append(go.Scatter(y=lower, **common, **edge))
        traces.append(go.Scatter(y=curve["upper"], **band, **common, **edge))
        traces.append(
            go.Scatter(
                y=curve["median"],
                name=each.name,
                mode="lines+markers" if markers else "lines",
                line={"color": colour, "width": 2.5},
                hovertemplate="%{y:.3g}",
                **common,
            )
        )
    return styled(traces, x_label, "force MAE (eV/Å)", yaxis=_axis([getattr(r, quantity) for r in rounds]))


def _axis(curves: Sequence[Curve]) -> dict[str, str]:
    """From zero; logarithmic where a model that explodes would press all others flat."""
    known = [median for curve in curves for median in curve.get("median", []) if median]
    wide = bool(known) and max(known) > _WIDE * min(known)
    return {"type": "log"} if wide else {"rangemode": "tozero"}


def _survival(rounds: Sequence[ImprovedRound]) -> Any:
    import plotly.graph_objects as go

    traces: list[Any] = []
    for each in rounds:
        times, shares = observables.kaplan_meier(np.array(each.failure_fs), np.array(each.failed))
        last = float(shares[-1]) if len(shares) else 1.0
        dash = ("solid", "dash", "dot")[each.number % 3]  # curves often lie on each other at 100 %
        traces.append(
            go.Scatter(
                x=np.concatenate([[0.0], times, [each.run_length_fs]]) / 1000,
                y=np.concatenate([[1.0], shares, [last]]),
                name=each.name,
                mode="lines",
                line={"color": colour_of(each.number), "width": 2.5, "shape": "hv", "dash": dash},
                hovertemplate="%{y:.0%}",
            )
        )
    return styled(traces, "time (ps)", "runs still whole", yaxis={"range": [0, 1.06], "tickformat": ".0%"})


def _json(figure: Any) -> str:
    # Inside <script> only "</" could end the element early; "<\\/" is the same string to JSON.
    return figure.to_json().replace("</", "<\\/")
