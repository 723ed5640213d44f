"""Figures of the comparison page: one colour an arm, all seeds of an arm together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dyntrain.compare import HeldOut, Trained, difference_band
from dyntrain.observables import FloatArray, kaplan_meier, quantile_over_starts
from dyntrain.report.figures import COLOURS, styled


def arm_colours(arms: Sequence[str]) -> dict[str, str]:
    """The colour of each arm, the same in all figures and tables."""
    return {arm: COLOURS[number % len(COLOURS)] for number, arm in enumerate(arms)}


def translucent(colour: str, share: float) -> str:
    """A colour ``#rrggbb`` as CSS with this opacity."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{share})"


def _gaps(values: FloatArray) -> FloatArray:
    return np.where(np.isfinite(values), values, np.nan)


def _band(times: FloatArray, low: FloatArray, high: FloatArray, colour: str, group: str) -> list[Any]:
    import plotly.graph_objects as go

    common = {"x": times, "mode": "lines", "legendgroup": group, "showlegend": False, "hoverinfo": "skip"}
    edge, fill = {"width": 0}, translucent(colour, 0.12)
    return [
        go.Scatter(y=_gaps(low), line=edge, **common),
        go.Scatter(y=_gaps(high), line=edge, fill="tonexty", fillcolor=fill, **common),
    ]


def error_versus_time(held_out: Mapping[str, Sequence[HeldOut]], quantity: str, label: str) -> Any:
    """Median over starts and seeds with the middle half as a band; burst ones count as infinitely wrong.

    Args:
        quantity: force, position or energy (``HeldOut.errors``).
    """
    import plotly.graph_objects as go

    bands: list[Any] = []
    lines: list[Any] = []
    for arm, colour in arm_colours(list(held_out)).items():
        times = held_out[arm][0].times_fs
        together = np.concatenate([one.errors[quantity] for one in held_out[arm]], axis=1)
        low, median, high = (quantile_over_starts(together, q) for q in (0.25, 0.5, 0.75))
        bands += _band(times, low, high, colour, arm)
        lines.append(
            go.Scatter(
                x=times,
                y=_gaps(median),
                name=arm,
                mode="lines",
                legendgroup=arm,
                line={"color": colour, "width": 2.5},
                hovertemplate="%{y:.3g}",
            )
        )
    return styled([*bands, *lines], "time (fs)", label, yaxis={"rangemode": "tozero"})


def difference(held_out: Mapping[str, Sequence[HeldOut]], arm: str, control: str, mark: float | None) -> Any:
    """Median paired difference of the force error, arm − control, with its 95 % band; below zero: arm better.

    Args:
        mark: time of the test, fs, shown as a line.
    """
    import plotly.graph_objects as go

    times, colour = held_out[arm][0].times_fs, arm_colours(list(held_out))[arm]
    one, other = (np.array([found.errors["force"] for found in held_out[name]]) for name in (arm, control))
    median, low, high = difference_band(one, other)
    line = go.Scatter(
        x=times,
        y=_gaps(median),
        name=f"{arm} − {control}",
        mode="lines",
        line={"color": colour, "width": 2.5},
        hovertemplate="%{y:+.3g}",
    )
    figure = styled([*_band(times, low, high, colour, arm), line], "time (fs)", "difference (eV/Å)")
    figure.add_hline(y=0, line={"color": "#222", "width": 1})
    if mark is not None:
        figure.add_vline(
            x=mark, line={"color": "#888", "width": 1, "dash": "dot"}, annotation_text="tested here"
        )
    return figure


def survival(held_out: Mapping[str, Sequence[HeldOut]]) -> Any:
    """Share of the free runs of all seeds that are whole versus time (Kaplan–Meier)."""
    import plotly.graph_objects as go

    traces: list[Any] = []
    for number, (arm, colour) in enumerate(arm_colours(list(held_out)).items()):
        length = held_out[arm][0].facts["free_run_length_fs"]
        failed = np.concatenate([one.failed for one in held_out[arm]])
        times, shares = kaplan_meier(np.concatenate([one.failure_fs for one in held_out[arm]]), failed)
        traces.append(
            go.Scatter(
                x=np.concatenate([[0.0], times, [length]]) / 1000,
                y=np.concatenate([[1.0], shares, shares[-1:] if len(shares) else [1.0]]),
                name=arm,
                mode="lines",
                # Curves often lie on each other at 100 %.
                line={
                    "color": colour,
                    "width": 2.5,
                    "shape": "hv",
                    "dash": ("solid", "dash", "dot", "dashdot")[number % 4],
                },
                hovertemplate="%{y:.0%}",
            )
        )
    return styled(traces, "time (ps)", "runs still whole", yaxis={"range": [0, 1.06], "tickformat": ".0%"})


def training_curves(trained: Mapping[str, Sequence[Trained]]) -> Any:
    """Validation force error along roll-outs versus what was spent, one line a training."""
    import plotly.graph_objects as go

    traces: list[Any] = []
    for arm, colour in arm_colours(list(trained)).items():
        for number, one in enumerate(trained[arm]):
            rows = [row for row in one.log if row["validation_force_mae"] is not None]
            traces.append(
                go.Scatter(
                    x=[row["evaluations"] for row in rows],
                    y=[row["validation_force_mae"] for row in rows],
                    customdata=[row["segment_length"] for row in rows],
                    name=arm,
                    mode="lines",
                    legendgroup=arm,
                    showlegend=number == 0,
                    line={"color": colour, "width": 1.8},
                    hovertemplate="%{y:.3g} (S = %{customdata})",
                )
            )
    figure = styled(traces, "evaluations, weighted by cost", "force error (eV/Å)", yaxis={"type": "log"})
    # plotly's own labels of a logarithmic axis leave out the powers of ten between 1 and 10.
    ticks = [digit * 10.0**power for power in range(-6, 4) for digit in (1, 2, 3, 5)]
    figure.update_yaxes(tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    return figure
