"""Small multiples: distributions, spectra and diffusion of the free runs beside the recording's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dyntrain.evaluate import ModelResult
from dyntrain.evaluate.distributions import MotionCurve
from dyntrain.observables import Estimate, FloatArray
from dyntrain.report.figures import colour_of, styled, translucent

_COLUMNS = 3
_ROW_HEIGHT = 210
_RECORDED = "#222222"

Y_LABELS = {
    "bond": "density (1/Å)",
    "angle": "density (1/°)",
    "distance": "density (1/Å)",
    "rdf": "g(r)",
    "vdos": "VDOS (cm)",
    "msd": "MSD (Å²)",
}


def motion_panels(results: Sequence[ModelResult], kinds: Sequence[str]) -> tuple[Any, int] | None:
    """One panel a quantity, the recording dark, each model in its colour, bands one standard error wide.

    Returns:
        The figure and its height in pixels; None where there is nothing of these kinds.
    """
    by_model = {
        number: {curve.label: curve for curve in result.motion.curves if curve.kind in kinds}
        for number, result in enumerate(results)
        if result.motion
    }
    labels = list(dict.fromkeys(label for curves in by_model.values() for label in curves))
    if not labels:
        return None
    columns = min(_COLUMNS, len(labels))
    n_rows = -(-len(labels) // columns)
    height = 70 + n_rows * (_ROW_HEIGHT if columns > 1 else 300)
    figure = styled([], "", "", height=height)
    for place, label in enumerate(labels):
        curves = {number: own[label] for number, own in by_model.items() if label in own}
        _panel(figure, place, n_rows, columns, label, curves, [result.name for result in results])
    return figure, height


def _panel(
    figure: Any,
    place: int,
    n_rows: int,
    columns: int,
    label: str,
    curves: dict[int, MotionCurve],
    names: Sequence[str],
) -> None:
    row, column = divmod(place, columns)
    suffix = str(place + 1) if place else ""
    axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
    # Below each row but the last is room for its labels; the figure's margin has it for the last.
    gap = 0.32
    width, tall = 1.0 / columns, 1.0 / (n_rows - gap)
    style_x, style_y = (figure.layout[f"{a}axis"].to_plotly_json() for a in "xy")
    for name in ("domain", "anchor", "title", "range"):
        style_x.pop(name, None)
        style_y.pop(name, None)
    first = next(iter(curves.values()))
    left, top = column * width, 1.0 - row * tall
    right_gap = 0.055 if columns > 1 else 0.0
    figure.layout[f"xaxis{suffix}"] = {
        **style_x,
        "domain": [left + (0.03 if columns > 1 else 0), min(1.0, left + width - right_gap + 0.03)],
        "anchor": f"y{suffix}",
        "title": {"text": label, "font": {"size": 12}, "standoff": 4},
        "nticks": 6,
    }
    figure.layout[f"yaxis{suffix}"] = {
        **style_y,
        "domain": [max(0.0, top - (1.0 - gap) * tall), top],
        "anchor": f"x{suffix}",
        "title": {"text": Y_LABELS[first.kind] if column == 0 else "", "font": {"size": 12}, "standoff": 4},
        "rangemode": "tozero",
        "nticks": 4,
    }
    # The recording belongs to the data, not to a model: it is drawn once, first.
    _draw(figure, first.x, first.recorded, _RECORDED, "recording", axes, place == 0)
    for number, curve in curves.items():
        _draw(figure, curve.x, curve.model, colour_of(number), names[number], axes, place == 0)


def _draw(
    figure: Any, x: FloatArray, found: Estimate, colour: str, name: str, axes: dict[str, str], legend: bool
) -> None:
    import plotly.graph_objects as go

    common = {"x": x, "mode": "lines", "legendgroup": name, "hoverinfo": "skip", **axes}
    if np.isfinite(found.error).all():
        hidden = {"showlegend": False, "line": {"width": 0}}
        figure.add_trace(go.Scatter(y=found.mean - found.error, **common, **hidden))
        band = translucent(colour, 0.2)
        figure.add_trace(
            go.Scatter(y=found.mean + found.error, fill="tonexty", fillcolor=band, **common, **hidden)
        )
    line = {"color": colour, "width": 1.6}
    figure.add_trace(go.Scatter(y=found.mean, name=name, showlegend=legend, line=line, **common))
