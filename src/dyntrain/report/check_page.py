"""The page of `dyntrain check`: what was found of each run, and the run in pictures, in one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dyntrain.atomic import write_text
from dyntrain.data.profile import RunProfile
from dyntrain.data.run_report import RunReport
from dyntrain.report.figures import COLOURS, styled
from dyntrain.report.page import require_report_extra

_TEMPLATE = Path(__file__).with_name("check.html.jinja")
_BLUE, _RED, _GREEN = COLOURS[:3]
# Smaller kicks are rounding; a logarithmic axis would spread them over the whole picture.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class CheckedRun:
    """One run of the page: its table's rows, its report, and its profile where it could be read."""

    rows: Sequence[tuple[str, str]]
    report: RunReport
    profile: RunProfile | None


@dataclass(frozen=True)
class _Figure:
    title: str
    caption: str
    json: str


def write_check_page(path: Path | str, runs: Sequence[CheckedRun]) -> None:
    """Write the page; it appears whole or not at all.

    Raises:
        UserError: plotly or jinja2 is missing, or the file cannot be written.
    """
    require_report_extra()
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        runs=[(run, _figures(run.profile) if run.profile else []) for run in runs],
        n_usable=sum(run.report.usable for run in runs),
        plotly_js=get_plotlyjs(),
    )
    write_text(Path(path), page)


def _figures(profile: RunProfile) -> list[_Figure]:
    found = [
        _Figure("Energy", "Change since the first frame.", _energy(profile)),
        _Figure(
            "Temperature",
            "From the velocities of the atoms that move, 3 N degrees of freedom.",
            _line(profile, profile.temperature, "temperature (K)", _RED),
        ),
        _Figure(
            "Kicks",
            "What each step did beside velocity Verlet with the recorded forces, over the run's rms dt²F/m; "
            f"smaller ones than {_ROUNDING:g} are rounding and drawn there; red lines mark breaks, which no "
            "window crosses.",
            _kicks(profile),
        ),
    ]
    if profile.friction is not None:
        caption = f"One friction a frame, fitted; it explains this run ({profile.report.ensemble})."
        found.append(
            _Figure("Friction", caption, _line(profile, profile.friction, "friction (1/ps)", _GREEN))
        )
    caption = "Distance of the closest two atoms of each frame, nearest images."
    found.append(_Figure("Closest distance", caption, _line(profile, profile.closest, "distance (Å)", _BLUE)))
    found.append(_Figure("Forces", "Sizes of the forces on all atoms in all frames.", _forces(profile)))
    return found


def _energy(profile: RunProfile) -> str:
    import plotly.graph_objects as go

    traces = [
        go.Scatter(
            x=profile.times_fs, y=values, name=name, mode="lines", line={"color": colour, "width": 1.5}
        )
        for name, values, colour in (
            ("potential energy", profile.potential, COLOURS[4]),
            ("total energy", profile.total, _BLUE),
        )
    ]
    return _json(_with_breaks(styled(traces, "time (fs)", "meV/atom"), profile))


def _line(profile: RunProfile, values: Any, label: str, colour: str) -> str:
    import plotly.graph_objects as go

    known = np.isfinite(values)
    line = {"color": colour, "width": 1.5}
    trace = go.Scatter(x=profile.times_fs[known], y=values[known], mode="lines", line=line, showlegend=False)
    return _json(_with_breaks(styled([trace], "time (fs)", label), profile))


def _kicks(profile: RunProfile) -> str:
    import plotly.graph_objects as go

    marker = {"color": _BLUE, "size": 4}
    shown = np.maximum(profile.kicks, _ROUNDING)
    trace = go.Scatter(x=profile.times_fs, y=shown, mode="markers", marker=marker, showlegend=False)
    figure = styled([trace], "time (fs)", "kick / dt²F/m", yaxis={"type": "log"})
    figure.update_yaxes(dtick=_decades(shown))
    return _json(_with_breaks(figure, profile))


def _decades(values: Any) -> int:
    """So many powers of ten between ticks that about five are shown."""
    known = values[np.isfinite(values)]
    span = np.log10(known.max() / known.min()) if known.size else 0.0
    return max(1, round(span / 5))


def _forces(profile: RunProfile) -> str:
    import plotly.graph_objects as go

    centres = 0.5 * (profile.force_edges[1:] + profile.force_edges[:-1])
    trace = go.Bar(x=centres, y=profile.force_counts, marker={"color": _BLUE}, showlegend=False)
    figure = styled([trace], "force (eV/Å)", "forces", yaxis={"type": "log"}, bargap=0.05)
    figure.update_yaxes(dtick=1)
    return _json(figure)


def _with_breaks(figure: Any, profile: RunProfile) -> Any:
    dt = profile.report.dt_fs or 0.0
    for b in profile.report.breaks[:200]:
        line = {"color": _RED, "width": 1, "dash": "dot"}
        figure.add_shape(
            type="line", x0=(b - 0.5) * dt, x1=(b - 0.5) * dt, y0=0, y1=1, yref="paper", line=line
        )
    return figure


def _json(figure: Any) -> str:
    # Inside <script> only "</" could end the element early; "<\\/" is the same string to JSON.
    return figure.to_json().replace("</", "<\\/")
