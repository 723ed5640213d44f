"""Puts verdict, tables and figures into one HTML file that needs no network."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dyntrain.atomic import write_text
from dyntrain.errors import UserError
from dyntrain.evaluate import ModelResult, Verdict, summary_rows
from dyntrain.evaluate.distributions import MotionCurve
from dyntrain.evaluate.verdict import duration
from dyntrain.report import figures, panels
from dyntrain.report.figures import LearningCurve

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def require_report_extra() -> None:
    """Refuse early where the page could not be written.

    Raises:
        UserError: plotly or jinja2 is missing.
    """
    for name in ("plotly", "jinja2"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(
                f'the page needs {name}, which is not installed: pip install "dyntrain[report]"'
            ) from error


@dataclass(frozen=True)
class _Figure:
    title: str
    caption: str
    height: int
    json: str


def write_report(
    path: Path | str,
    title: str,
    verdict: Verdict,
    results: Sequence[ModelResult],
    *,
    learning_curves: Sequence[LearningCurve] = (),
    provenance: Mapping[str, str] | None = None,
) -> None:
    """Write the page of an evaluation; it appears whole or not at all.

    Args:
        path: the HTML file.
        title: headline of the page.
        verdict: of ``judge(results)``.
        results: one for each model, all from the same starts.
        learning_curves: of the trainings, if they are known.
        provenance: what a reader needs to repeat it, as pairs of plain words.

    Raises:
        UserError: plotly or jinja2 is missing, or the file cannot be written.
    """
    require_report_extra()
    import jinja2
    from plotly.offline import get_plotlyjs

    names = [result.name for result in results]
    curves = [curve for curve in learning_curves if len(curve.cost)]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        verdict=verdict,
        colours={name: figures.colour_of(number) for number, name in enumerate(names)},
        names=names,
        rows=summary_rows(results),
        one_step=_one_step_rows(results),
        rollout=results[0].rollout,
        kicks=_kicks_sentence(results[0].rollout.kick_share),
        chaos=_chaos_sentence(results),
        shortened=results[0].rollout.horizon_fs < 0.99 * results[0].rollout.horizon_asked_fs,
        against=_figures_against(results),
        free=_figures_free(results),
        audited=_figures_audit(results),
        audit_facts=_audit_sentences(results),
        motion=_figures_motion(results),
        motion_rows=_motion_rows(results),
        left_out=next((result.motion.left_out for result in results if result.motion), {}),
        criterion=next((str(result.free.criterion) for result in results if result.free), None),
        kind=next((result.free.criterion.kind for result in results if result.free), None),
        temperature=next((result.free.temperature_K for result in results if result.free), None),
        censored=_censored_sentence(results),
        speed=next((result.speed for result in results if result.speed), None),
        failures=_failures(results),
        training=_figures_training(curves, names),
        provenance=dict(provenance or {}),
        plotly_js=get_plotlyjs(),
    )
    write_text(path, page)


def _failures(results: Sequence[ModelResult]) -> list[tuple[str, int, float, str]]:
    return [
        (result.name, run, float(result.free.failure_fs[run]), reason)
        for result in results
        if result.free
        for run, reason in result.free.reasons.items()
    ]


def _one_step_rows(results: Sequence[ModelResult]) -> list[tuple[str, list[str]]]:
    steps = [result.rollout.one_step for result in results]
    elements = sorted({symbol for step in steps for symbol in step.force_mae_per_element})
    rows = [("force MAE (eV/Å)", [f"{s.force_mae:.3g}" for s in steps])]
    rows += [("force RMSE (eV/Å)", [f"{s.force_rmse:.3g}" for s in steps])]
    rows += [
        (f"force MAE on {symbol} (eV/Å)", [f"{s.force_mae_per_element[symbol]:.3g}" for s in steps])
        for symbol in elements
    ]
    rows += [("energy MAE (meV/atom)", [f"{s.energy_mae:.3g}" for s in steps])]
    rows += [
        ("energy MAE without each run's mean (meV/atom)", [f"{s.energy_mae_shifted:.3g}" for s in steps])
    ]
    return rows


def _kicks_sentence(share: float) -> str:
    if share < 1e-5:
        return "The recording is pure NVE to rounding; its kicks are applied and do nothing."
    return (
        f"The recording is more than velocity Verlet (thermostat or rounding of the file: {share:.1e} of the "
        "force's push in a step); that part is applied to the roll-outs, so the true potential would have no "
        "error."
    )


def _chaos_sentence(results: Sequence[ModelResult]) -> str:
    known = [
        f"{result.rollout.doubling_time_fs:.0f} fs ({result.name})"
        for result in results
        if result.rollout.doubling_time_fs is not None
    ]
    if not known:
        return (
            "Two runs of a model from starts a hair apart stay close over this time: what is shown is the "
            "models' error."
        )
    return (
        "Small deviations grow by themselves: two runs of one model from starts a hair apart double their "
        f"distance every {', '.join(known)}, so part of a late error is phase and not wrong forces."
    )


def _figures_against(results: Sequence[ModelResult]) -> list[_Figure]:
    caption = "Line: median over the starts; band: the middle half of them."
    if any(result.rollout.n_alive[-1] < result.rollout.n_starts for result in results):
        caption += " A start that has burst counts as infinitely wrong: a line ends where half have burst."
    shown = (
        ("force_mae", "Force error along the roll-out", "force MAE (eV/Å)", 420),
        ("position_rmsd", "Position error", "RMS distance (Å)", 340),
        ("energy_error", "Potential-energy error", "meV/atom", 340),
    )
    drawn = [
        _Figure(title, caption, height, _json(figures.error_versus_time(results, quantity, label)))
        for quantity, title, label, height in shown
    ]
    twins = _Figure(
        "How much of it is chaos",
        "Solid: position error. Dotted: two roll-outs of the same model from starts 1e-6 Å apart. Where the "
        "solid line is no steeper than the dotted one, the error grows because the motion is unstable, not "
        "because new force errors are made. Medians over the starts.",
        340,
        _json(figures.deviations(results)),
    )
    return [*drawn, twins]


def _figures_audit(results: Sequence[ModelResult]) -> list[_Figure]:
    if not any(result.audit for result in results):
        return []
    caption = (
        "Median over the audited runs; bars: the middle half of them. A run that has failed counts as "
        "infinitely wrong; a reference calculation that failed does not count."
    )
    return [
        _Figure(
            "Force error on the model's own structures", caption, 360, _json(figures.audit_curves(results))
        )
    ]


def _audit_sentences(results: Sequence[ModelResult]) -> list[str]:
    audits = [(result.name, result.audit) for result in results if result.audit]
    if not audits:
        return []
    first = audits[0][1]
    sentences = [
        f"Reference: {first.reference}; on recorded structures its forces agree with the recorded ones to "
        f"{first.agreement:.2g} of their size."
    ]
    for name, audit in audits:
        count = int(np.isfinite(audit.force_mae).sum())
        failed = f"; {len(audit.failures)} reference calculations failed" if audit.failures else ""
        sentences.append(f"{name}: {count} structures of {len(audit.runs)} free runs recomputed{failed}.")
    return sentences


def _censored_sentence(results: Sequence[ModelResult]) -> str:
    parts = [
        f"{int((~r.free.failed).sum())} of {r.free.n_runs} runs of {r.name} ended whole after "
        f"{duration(r.free.run_length_fs)}"
        for r in results
        if r.free
    ]
    censored = any(not r.free.failed.all() for r in results if r.free)
    words = " (censored: they count as whole up to there, and nothing is assumed beyond)" if censored else ""
    return "; ".join(parts) + words + "."


def _figures_motion(results: Sequence[ModelResult]) -> list[_Figure]:
    caption = (
        "Dark: the recording, mean over its parts; coloured: the free runs while they are whole. Bands: one "
        "standard error over the parts and over the runs."
    )
    shown = (
        ("Bonds and angles", ("bond", "angle")),
        ("Distances", ("distance", "rdf")),
        ("Vibrations", ("vdos",)),
        ("Diffusion", ("msd",)),
    )
    drawn = [(title, panels.motion_panels(results, kinds)) for title, kinds in shown]
    return [_Figure(title, caption, found[1], _json(found[0])) for title, found in drawn if found]


def _motion_rows(results: Sequence[ModelResult]) -> list[tuple[str, list[str]]]:
    """Difference from the recording, and in brackets what chance makes of it."""
    found = [
        {curve.label: curve for curve in result.motion.curves} if result.motion else {} for result in results
    ]
    labels = list(dict.fromkeys(label for curves in found for label in curves))
    names = {"vdos": "VDOS", "msd": "MSD"}

    def cell(curves: dict[str, MotionCurve], label: str) -> str:
        if label not in curves:
            return "–"
        chance = curves[label].by_chance
        return f"{curves[label].difference:.2g}" + (f" ({chance:.2g})" if np.isfinite(chance) else "")

    kinds = {label: curves[label].kind for curves in found for label in curves}
    return [(names.get(kinds[label], label), [cell(curves, label) for curves in found]) for label in labels]


def _figures_free(results: Sequence[ModelResult]) -> list[_Figure]:
    n_panels = sum(result.free is not None for result in results)
    if not n_panels:
        return []
    return [
        _Figure(
            "Total energy of the free runs",
            "Change since the start, one line a run, until the run ends or fails. Exact dynamics would keep "
            "it at zero. All panels have the same scale.",
            90 + 190 * n_panels,
            _json(figures.energy_traces(results)),
        ),
        _Figure(
            "Time to failure",
            "Share of the free runs that are whole (Kaplan–Meier); band: 95 % (Greenwood, log-log); a cross "
            "marks runs that ended whole.",
            320,
            _json(figures.survival(results)),
        ),
    ]


def _figures_training(curves: Sequence[LearningCurve], names: Sequence[str]) -> list[_Figure]:
    if not curves:
        return []
    caption = "Validation by roll-outs on held-out data."
    if any(len(set(curve.segment_length)) > 1 for curve in curves):
        caption += " A triangle marks where the segment length S grew."
    return [_Figure("Learning curves", caption, 400, _json(figures.learning_curves(curves, names)))]


def _json(figure: Any) -> str:
    # Inside <script> only "</" could end the element early; "<\\/" is the same string to JSON.
    return figure.to_json().replace("</", "<\\/")
