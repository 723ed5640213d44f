"""The figures of the page, as plotly's JSON: the same model has the same colour in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dyntrain import observables
from dyntrain.evaluate import FreeRuns, ModelResult
from dyntrain.evaluate.verdict import duration
from dyntrain.observables import FloatArray

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5b5b5b")
"""Okabe and Ito's colours, which colour-blind readers can tell apart."""


@dataclass(frozen=True)
class LearningCurve:
    """How a training went: one entry of ``cost``, ``error`` and ``segment_length`` for each validation.

    name:           the model's, as in its ``ModelResult``
    cost:           what had been spent by then (``cost_label`` says in what), ascending
    error:          validation error, ``error_label``
    segment_length: S in use at that time
    """

    name: str
    cost: Sequence[float]
    error: Sequence[float]
    segment_length: Sequence[int]
    cost_label: str = "model evaluations"
    error_label: str = "validation error"


def colour_of(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def translucent(colour: str, share: float) -> str:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{share})"


def styled(traces: list[Any], x: str, y: str, **layout: Any) -> Any:
    """A figure of these traces with the axes, fonts and margins that all figures share."""
    import plotly.graph_objects as go

    axis = {
        "showline": True,
        "linecolor": "#888",
        "ticks": "outside",
        "gridcolor": "#eee",
        "zeroline": False,
        "exponentformat": "power",  # plotly would write µ and k, on top of our units
    }
    figure = go.Figure(traces)
    figure.update_layout(
        template="none",
        font={"family": "system-ui, sans-serif", "size": 14, "color": "#222"},
        margin={"l": 68, "r": 16, "t": 36, "b": 52},
        # Filled bands would turn the order of the legend round.
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        hovermode="x unified",
        hoverlabel={"namelength": -1},
        **layout,
    )
    figure.update_xaxes(title={"text": x, "font": {"size": 13}, "standoff": 8}, **axis)
    # The margin grows with the ticks: 10⁻¹² is wider than 0.1 and would reach into the title.
    figure.update_yaxes(title={"text": y, "font": {"size": 13}, "standoff": 8}, automargin=True, **axis)
    return figure


def error_versus_time(results: Sequence[ModelResult], quantity: str, label: str) -> Any:
    """Median over starts and the middle half as a band; burst starts count as infinitely wrong.

    Args:
        quantity: a field of ``RolloutErrors``: force_mae, position_rmsd, energy_error.
    """
    import plotly.graph_objects as go

    traces: list[Any] = []
    for number, result in enumerate(results):
        times, errors = result.rollout.times_fs, getattr(result.rollout, quantity)
        low, median, high = (_gaps(observables.quantile_over_starts(errors, q)) for q in (0.25, 0.5, 0.75))
        common = {"x": times, "mode": "lines", "legendgroup": result.name}
        hidden = {"showlegend": False, "hoverinfo": "skip", "line": {"width": 0}}
        band = translucent(colour_of(number), 0.18)
        traces.append(go.Scatter(y=low, **common, **hidden))
        traces.append(go.Scatter(y=high, fill="tonexty", fillcolor=band, **common, **hidden))
        line = {"color": colour_of(number), "width": 2.5}
        traces.append(go.Scatter(y=median, name=result.name, line=line, hovertemplate="%{y:.3g}", **common))
    return styled(traces, "time (fs)", label, yaxis={"rangemode": "tozero"})


def deviations(results: Sequence[ModelResult]) -> Any:
    """Position error beside the distance of twin roll-outs of the model, medians over the starts, both as
    growth on a logarithmic scale: chaos is what the dotted line does."""
    import plotly.graph_objects as go

    traces: list[Any] = []
    for number, result in enumerate(results):
        rollout, colour = result.rollout, colour_of(number)
        for errors, words, dash in (
            (rollout.position_rmsd, "from the recording", "solid"),
            (rollout.twin_distance, "from its twin", "dot"),
        ):
            median = _gaps(observables.quantile_over_starts(errors, 0.5))
            traces.append(
                go.Scatter(
                    x=rollout.times_fs,
                    y=np.where(median > 0, median, np.nan),
                    name=f"{result.name}, {words}",
                    mode="lines",
                    line={"color": colour, "width": 2, "dash": dash},
                    hovertemplate="%{y:.2g}",
                )
            )
    figure = styled(traces, "time (fs)", "RMS distance (Å)", yaxis={"type": "log"})
    figure.update_yaxes(dtick=1)
    return figure


def audit_curves(results: Sequence[ModelResult]) -> Any:
    """Force error on the free runs' own structures: median over the runs, bars over the middle half."""
    import plotly.graph_objects as go

    traces: list[Any] = []
    times = sorted({float(t) for r in results if r.audit for t in r.audit.times_fs})
    shown = [number for number, result in enumerate(results) if result.audit]
    for place, number in enumerate(shown):
        audit = results[number].audit
        assert audit is not None
        low, median, high = (_gaps(audit.quantile(q)) for q in (0.25, 0.5, 0.75))
        # Times are categories, 0 among them; models stand beside each other.
        x = [times.index(float(t)) + 0.12 * (place - 0.5 * (len(shown) - 1)) for t in audit.times_fs]
        bars = {"array": high - median, "arrayminus": median - low, "width": 4, "thickness": 1.5}
        traces.append(
            go.Scatter(
                x=x,
                y=median,
                error_y=bars,
                name=results[number].name,
                mode="lines+markers",
                line={"color": colour_of(number), "width": 2},
                marker={"size": 8},
                hovertemplate="%{y:.3g}",
            )
        )
    figure = styled(traces, "time of the free run", "force MAE (eV/Å)", yaxis={"rangemode": "tozero"})
    ticks = [duration(time) if time else "start" for time in times]
    figure.update_xaxes(tickvals=list(range(len(times))), ticktext=ticks, range=[-0.4, len(times) - 0.6])
    return figure


def _gaps(values: FloatArray) -> FloatArray:
    return np.where(np.isfinite(values), values, np.nan)


def learning_curves(curves: Sequence[LearningCurve], names: Sequence[str]) -> Any:
    """Validation error versus cost; a triangle wherever the segment length S has grown.

    Args:
        names: of all models of the page, so that each keeps its colour.
    """
    import plotly.graph_objects as go

    traces: list[Any] = []
    for number, curve in enumerate(curves):
        colour = colour_of(names.index(curve.name) if curve.name in names else len(names) + number)
        lengths = list(curve.segment_length)
        grown = [k for k in range(1, len(lengths)) if lengths[k] > lengths[k - 1]]
        traces.append(
            go.Scatter(
                x=list(curve.cost),
                y=list(curve.error),
                customdata=lengths,
                name=curve.name,
                mode="lines",
                line={"color": colour, "width": 2},
                legendgroup=curve.name,
                hovertemplate="%{y:.3g} (S = %{customdata})",
            )
        )
        if grown:
            traces.append(
                go.Scatter(
                    x=[curve.cost[k] for k in grown],
                    y=[curve.error[k] for k in grown],
                    text=[f"S={lengths[k]}" for k in grown],
                    mode="markers+text",
                    textposition="top center",
                    textfont={"size": 12, "color": colour},
                    marker={"symbol": "triangle-down", "size": 9, "color": colour},
                    legendgroup=curve.name,
                    showlegend=False,
                    hoverinfo="skip",
                    cliponaxis=False,
                )
            )
    figure = styled(traces, curves[0].cost_label, curves[0].error_label, yaxis={"type": "log"})
    # plotly's own labels of a logarithmic axis leave out the powers of ten between 1 and 10.
    shown = [error for curve in curves for error in curve.error if error and error > 0]
    narrow = not shown or max(shown) < 4 * min(shown)
    digits = (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9) if narrow else (1, 2, 5)
    ticks = [digit * 10.0**power for power in range(-9, 10) for digit in digits]
    figure.update_yaxes(tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    return figure


def energy_traces(results: Sequence[ModelResult]) -> Any:
    """Change of the total energy along every free run, one panel a model, all with the same scale."""
    import plotly.graph_objects as go

    shown = [(number, result.name, result.free) for number, result in enumerate(results) if result.free]
    n_panels = len(shown)
    traces: list[Any] = []
    for panel, (number, name, free) in enumerate(shown):
        for run in range(free.n_runs):
            traces.append(
                go.Scatter(
                    x=free.times_fs / 1000,
                    y=1000 * free.total_energy[:, run],
                    name=name,
                    mode="lines",
                    line={"color": translucent(colour_of(number), 0.65), "width": 1},
                    showlegend=False,
                    hoverinfo="skip",
                    yaxis=f"y{panel + 1}" if panel else "y",
                )
            )
    figure = styled(traces, "time (ps)", "")
    reach = 1.3 * max(_reach(free) for _, _, free in shown)
    gap = 0.12 if n_panels > 1 else 0.0
    height = (1 - gap * (n_panels - 1)) / n_panels
    for panel in range(n_panels):
        top = 1 - panel * (height + gap)
        place = {"domain": [max(0.0, top - height), top], "range": [-reach, reach]}
        figure.layout[f"yaxis{panel + 1}" if panel else "yaxis"] = {
            **figure.layout.yaxis.to_plotly_json(),
            **place,
        }
        _, name, free = shown[panel]
        figure.add_annotation(
            text=f"{name} ({free.n_runs} runs)",
            x=0,
            y=top,
            xref="paper",
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            showarrow=False,
            font={"color": colour_of(shown[panel][0]), "size": 14},
        )
    figure.layout.xaxis.anchor = f"y{n_panels}" if n_panels > 1 else "y"
    figure.update_yaxes(title={"text": "ΔE (meV/atom)"}, nticks=5)
    return figure


def _reach(free: FreeRuns) -> float:
    """The scale that shows the runs and not the spike of one that is about to fail."""
    changes = 1000 * np.abs(free.total_energy[np.isfinite(free.total_energy)])
    return max(float(np.quantile(changes, 0.99)) if changes.size else 0.0, 1e-6)


def survival(results: Sequence[ModelResult]) -> Any:
    """Share of the free runs that are whole versus time (Kaplan–Meier) with its 95 % band; a cross: runs that
    ended whole."""
    import plotly.graph_objects as go

    traces: list[Any] = []
    for number, result in enumerate(results):
        free = result.free
        if free is None:
            continue
        curve = observables.survival_curve(free.failure_fs, free.failed)
        x = np.concatenate([[0.0], curve.times, [free.run_length_fs]]) / 1000
        y, low, high = (_carried(shares) for shares in (curve.share, curve.low, curve.high))
        dash = ("solid", "dash", "dot")[number % 3]  # curves often lie on each other at 100 %
        line = {"color": colour_of(number), "width": 2.5, "shape": "hv", "dash": dash}
        if len(curve.times):
            hidden = {
                "x": x, "mode": "lines", "line": {"width": 0, "shape": "hv"}, "showlegend": False,
                "hoverinfo": "skip",
            }  # fmt: skip
            band = translucent(colour_of(number), 0.12)
            traces.append(go.Scatter(y=low, **hidden))
            traces.append(go.Scatter(y=high, fill="tonexty", fillcolor=band, **hidden))
        traces.append(
            go.Scatter(x=x, y=y, name=result.name, mode="lines", line=line, hovertemplate="%{y:.0%}")
        )
        if not free.failed.all():
            marker = {"symbol": "cross-thin", "size": 11, "line": {"width": 2, "color": colour_of(number)}}
            traces.append(
                go.Scatter(
                    x=x[-1:], y=y[-1:], mode="markers", marker=marker, showlegend=False, hoverinfo="skip",
                    cliponaxis=False,
                )
            )  # fmt: skip
    longest = max(result.free.run_length_fs for result in results if result.free) / 1000
    figure = styled(traces, "time (ps)", "runs still whole", yaxis={"range": [0, 1.06], "tickformat": ".0%"})
    figure.update_xaxes(range=[0, 1.02 * longest])
    return figure


def _carried(shares: FloatArray) -> FloatArray:
    """The steps of a survival curve from the start to the end of the runs; an unknown bound stays."""
    steps = [1.0]
    for share in shares.tolist():
        steps.append(share if np.isfinite(share) else steps[-1])
    return np.array([*steps, steps[-1]])
