"""The page: whole, self-contained, safe against odd names, and true to the numbers it is given."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dyntrain.errors import UserError
from dyntrain.evaluate import EvaluationSettings, ModelResult, evaluate_models, judge
from dyntrain.evaluate.audit import AuditCurve
from dyntrain.report import LearningCurve, figures, panels, require_report_extra, write_report
from evaluations import FAR, NEAR, made_up, record


@pytest.fixture(scope="module")
def results() -> list[ModelResult]:
    runs = [record(220), record(220, thermostat=0.02, seed=1)]
    fast = EvaluationSettings(horizon_fs=20.0, n_starts=4, n_free_runs=2, free_length_fs=120.0)
    return evaluate_models({"near": NEAR, "far": FAR}, runs, fast)


CURVE = LearningCurve("near", [10, 20, 30, 40], [0.4, 0.3, 0.35, 0.2], [1, 1, 2, 3], "evaluations", "error")


class Page(html.parser.HTMLParser):
    """Text, figures and links to elsewhere of a page; fails on elements that are not closed."""

    VOID = ("meta", "link", "img", "br", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.figures: list[dict[str, Any]] = []
        self.text, self.outside = "", []  # type: ignore[var-annotated]
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outside += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tag, attributes = self.open[-1] if self.open else ("", {})
        if attributes.get("type") == "application/json":
            self.figures.append(json.loads(data))
        elif tag not in ("script", "style"):
            self.text += data


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_is_whole_and_needs_no_network(results: list[ModelResult], tmp_path: Path) -> None:
    verdict = judge(results)
    facts = {"data": "run.traj", "seed": "7"}
    write_report(tmp_path / "r.html", "A title", verdict, results, learning_curves=[CURVE], provenance=facts)
    page = page_of(tmp_path / "r.html")
    assert page.outside == []
    assert verdict.headline in page.text and all(reason in page.text for reason in verdict.reasons)
    for words in (
        "A title",
        "near",
        "far",
        "force error at 10 fs (eV/Å)",
        "run.traj",
        "a bond length is off",
    ):
        assert words in page.text
    assert "applied to the roll-outs" in page.text  # one run is thermostatted
    # Errors and chaos, free runs, bonds and angles and distances, learning curves.
    assert len(page.figures) == 4 + 2 + 2 + 1
    assert "Left out: RDF" in page.text and "MSD" in page.text
    assert "2 of 2 runs of near ended whole after 120 fs" in page.text
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_no_figure_without_its_data(tmp_path: Path) -> None:
    alone = ModelResult("A", made_up("A", [[0.1, 0.2]] * 4).rollout)
    write_report(tmp_path / "r.html", "T", judge([alone]), [alone])
    page = page_of(tmp_path / "r.html")
    assert len(page.figures) == 4
    assert "Free runs" not in page.text and "Training" not in page.text and "To repeat it" not in page.text


def test_a_single_step_horizon_and_bursts_make_a_page(tmp_path: Path) -> None:
    short = made_up("short", [[0.1, 0.2]], n_failed=8)
    burst = made_up("burst", [[0.1, 0.2]] + [[np.nan, np.nan]] * 3, n_failed=8)
    for result in (short, burst):
        write_report(tmp_path / "r.html", "T", judge([result]), [result])
        assert "What failed (8 runs)" in page_of(tmp_path / "r.html").text
    assert "infinitely wrong" in page_of(tmp_path / "r.html").text


def test_odd_names_cannot_break_the_page(tmp_path: Path) -> None:
    name = '</script><b onclick="x">&'
    odd = made_up(name, [[0.1, 0.2]] * 4, n_failed=4)
    facts = {"file": "<i>x</i>"}
    write_report(tmp_path / "r.html", name, judge([odd]), [odd], provenance=facts)
    page = page_of(tmp_path / "r.html")
    assert name in page.text and "<i>x</i>" in page.text
    assert any(trace.get("name") == name for figure in page.figures for trace in figure["data"])


def test_lines_are_medians_and_end_where_half_have_burst() -> None:
    errors = np.array([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, np.nan], [0.1, np.nan, np.nan, np.nan]])
    low, high, median = figures.error_versus_time([made_up("A", errors)], "force_mae", "eV/Å").data
    np.testing.assert_allclose(median.y, [0.25, 0.25, np.nan])
    np.testing.assert_allclose(low.y, [0.175, 0.175, np.nan])
    np.testing.assert_allclose(high.y, [0.325, np.nan, np.nan])
    assert median.line.color == figures.colour_of(0)


def test_the_growth_of_the_segments_is_marked() -> None:
    line, marks = figures.learning_curves([CURVE], ["far", "near"]).data
    assert list(line.y) == list(CURVE.error) and line.line.color == figures.colour_of(1)
    assert list(marks.x) == [30, 40] and list(marks.text) == ["S=2", "S=3"]


def test_runs_that_ended_whole_carry_a_cross() -> None:
    whole, failed = made_up("A", [[0.1]] * 2, n_failed=2), made_up("B", [[0.1]] * 2, n_failed=8)
    low, high, curve_a, cross, *_, curve_b = figures.survival([whole, failed]).data
    # 2 of 8 at 500 fs: Greenwood's variance on the log-log scale gives 0.31 … 0.93.
    assert list(low.y) == pytest.approx([1, 0.3148, 0.3148], abs=1e-3)
    assert list(high.y) == pytest.approx([1, 0.9309, 0.9309], abs=1e-3)
    assert list(curve_a.x) == [0, 0.5, 1.0] and list(curve_a.y) == [1, 0.75, 0.75]
    assert list(cross.x) == [1.0]
    assert list(curve_b.y) == [1, 0, 0]


def test_all_energy_panels_have_one_scale(results: list[ModelResult]) -> None:
    layout = figures.energy_traces(results).layout
    assert layout.yaxis.range == layout.yaxis2.range
    assert layout.yaxis.domain[0] > layout.yaxis2.domain[1]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(UserError, match=re.escape('pip install "dyntrain[report]"')):
        require_report_extra()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    result = made_up("A", [[0.1, 0.2]] * 4)
    with pytest.raises(UserError, match="cannot write"):
        write_report(tmp_path / "no" / "r.html", "T", judge([result]), [result])


def test_the_audit_is_drawn_with_its_spread_and_its_failures_are_said(tmp_path: Path) -> None:
    errors = np.array([[0.1, 0.2, 0.3], [0.2, np.nan, 0.4], [0.3, np.inf, np.inf]])
    curve = AuditCurve(
        "GFN2-xTB", 1e-6, np.array([0.0, 50.0, 1000.0]), np.arange(3), errors, errors, errors, ("no SCF",)
    )
    result = dataclasses.replace(made_up("A", [[0.1, 0.2]] * 4), audit=curve)
    (trace,) = figures.audit_curves([result]).data
    np.testing.assert_allclose(trace.y, [0.2, 0.3, np.nan])
    np.testing.assert_allclose(trace.error_y.array[:2], [0.05, 0.05])
    write_report(tmp_path / "r.html", "T", judge([result]), [result])
    page = page_of(tmp_path / "r.html")
    assert "A: 6 structures of 3 free runs recomputed; 1 reference calculations failed." in page.text
    assert "Reference: GFN2-xTB" in page.text
    assert "speed" not in page.text


def test_panels_draw_the_recording_once_and_every_model(results: list[ModelResult]) -> None:
    found = panels.motion_panels(results, ("bond", "angle"))
    assert found is not None
    figure, height = found
    legend = [trace.name for trace in figure.data if trace.showlegend]
    assert legend == ["recording", "near", "far"] and height > 0
    n_panels = len({trace.xaxis for trace in figure.data})
    assert n_panels == sum(curve.kind in ("bond", "angle") for curve in results[0].motion.curves)
    assert panels.motion_panels(results, ("msd",)) is None
