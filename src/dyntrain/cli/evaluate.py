"""`dyntrain evaluate`: how long one or several models are right, on held-out runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from dyntrain.cli.console import task_bars
from dyntrain.cli.outputs import check_outputs, console_beside, write_json

if TYPE_CHECKING:
    from dyntrain.data.trajectory import Trajectory
    from dyntrain.evaluate import EvaluationSettings, ModelResult, Verdict
    from dyntrain.evaluate.criteria import Kind
    from dyntrain.potential import Potential
    from dyntrain.reference.cache import StoredReference


class Failure(StrEnum):
    auto = "auto"
    molecule = "molecule"
    liquid = "liquid"
    reactive = "reactive"


_Reference = Annotated[
    str | None,
    typer.Option(
        help="Audit: recompute structures of the free runs with the method of the recording: tblite "
        "(GFN2-xTB), GFN1-xTB, or an ASE calculator by name."
    ),
]
_Options = Annotated[
    Path | None,
    typer.Option(
        "--calculator",
        help="YAML file with keywords of --reference, as for `dyntrain aimd`; for xTB also charge and "
        "unpaired_electrons.",
    ),
]
_Store = Annotated[
    Path, typer.Option("--reference-store", help="Folder of reference results: none is ever computed twice.")
]


def evaluate(
    model: Annotated[Path, typer.Argument(help="Model file.", show_default=False)],
    files: Annotated[
        list[str], typer.Argument(help="Held-out runs: files, folders or patterns.", show_default=False)
    ],
    more: Annotated[
        list[Path] | None,
        typer.Option(
            "--model", help="Another model to compare with the first, the control; may be repeated."
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the page (HTML) to this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all numbers to this file; - for stdout.")] = None,
    horizon: Annotated[float, typer.Option(help="Follow the recorded run for so many fs.")] = 150.0,
    starts: Annotated[int, typer.Option(help="Roll-outs, each from another recorded frame.", min=1)] = 16,
    free_runs: Annotated[int, typer.Option(help="Free NVE runs; 0 for none.", min=0)] = 8,
    free_length: Annotated[float, typer.Option(help="Length of each free run in fs.", min=1.0)] = 1000.0,
    free_temperature: Annotated[
        float | None, typer.Option(help="Draw the free runs' velocities for so many K; else the recording's.")
    ] = None,
    failure: Annotated[
        Failure,
        typer.Option(help="Criterion by which a free run has failed; auto: what suits the recording."),
    ] = Failure.auto,
    reference: _Reference = None,
    calculator: _Options = None,
    reference_store: _Store = Path("reference-results"),
    audit_runs: Annotated[int, typer.Option(help="Free runs to audit.", min=1)] = 8,
    dt: Annotated[
        float | None, typer.Option(help="Time between frames in fs, where the files do not say it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the starts.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="float32 or float64; else the model's own.")] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Another program's model file may run code that is in it.")
    ] = False,
) -> None:
    """Roll models out against held-out runs (their kicks applied), let them run free, and judge."""
    from dyntrain.cli.loading import load_potential
    from dyntrain.data.diagnose import usable_runs
    from dyntrain.data.readers import read_trajectories
    from dyntrain.errors import UserError
    from dyntrain.evaluate import EvaluationSettings
    from dyntrain.threads import limit_threads

    if horizon <= 0:
        raise UserError(f"--horizon must be a time in fs above 0, got {horizon:g}")
    settings = EvaluationSettings(
        horizon_fs=horizon,
        n_starts=starts,
        n_free_runs=free_runs,
        free_length_fs=free_length,
        free_temperature_K=free_temperature,
        failure=None if failure is Failure.auto else cast("Kind", failure.value),
        audit_runs=audit_runs,
        seed=seed,
    )
    # What would stop us after minutes of work is asked for before them.
    check_outputs(json, report)
    stored = stored_reference(reference, calculator, reference_store, free_runs)
    models = [model, *(more or [])]
    potentials = {
        name: load_potential(path, device, precision, trust)
        for name, path in zip(model_names(models), models, strict=True)
    }
    runs, _ = usable_runs(read_trajectories(files, dt))
    limit_threads(max(starts, free_runs) * max(run.n_atoms for run in runs))
    results, verdict = _measure(potentials, runs, settings, stored)
    _show_and_write(results, verdict, runs, report, json, _provenance(models, runs, settings, stored))


def stored_reference(
    method: str | None, options: Path | None, store: Path, n_free_runs: int
) -> StoredReference | None:
    """The reference of an audit of free runs, its results kept in a folder; None: no audit is asked for."""
    from dyntrain.errors import UserError

    if method is None:
        if options is not None:
            raise UserError("--calculator holds keywords of --reference, which is not given: add it")
        return None
    if n_free_runs < 1:
        raise UserError("--reference audits the free runs, but --free-runs is 0: allow at least one")
    from dyntrain.cli.aimd import read_options
    from dyntrain.reference.cache import StoredReference

    return StoredReference(method, read_options(options) if options else {}, store)


def _measure(
    potentials: Mapping[str, Potential],
    runs: Sequence[Trajectory],
    settings: EvaluationSettings,
    reference: StoredReference | None,
) -> tuple[list[ModelResult], Verdict]:
    from rich.console import Console

    from dyntrain.evaluate import evaluate_models, judge

    with task_bars(Console(stderr=True)) as show:
        results = evaluate_models(potentials, runs, settings, reference=reference, progress=show)
    return results, judge(results)


def _show_and_write(
    results: Sequence[ModelResult],
    verdict: Verdict,
    runs: Sequence[Trajectory],
    report: Path | None,
    json: Path | None,
    provenance: Mapping[str, str],
) -> None:
    console = console_beside(json)
    print_results(results, verdict, console)
    if json is not None:
        write_json(json, _record(results, verdict, runs))
        console.print(f"numbers: {json}", highlight=False, soft_wrap=True)
    if report is not None:
        from dyntrain.report import write_report

        title = "How long is the model right?" if len(results) == 1 else "How long are the models right?"
        write_report(report, title, verdict, results, provenance=provenance)
        console.print(f"page: {report}", highlight=False, soft_wrap=True)


def model_names(models: Sequence[Path]) -> list[str]:
    """Short names that tell the models apart: of their files, else of their folders, else the whole paths."""
    # The names of shipped models end in a version, not in a file's ending: chgnet-0.3.0.
    stems = [path.name if path.suffix[1:].isdigit() else path.stem for path in models]
    shipped = [path.parent == Path() and not path.exists() for path in models]
    folders = [
        path.name if named else path.absolute().parent.name
        for path, named in zip(models, shipped, strict=True)
    ]
    for names in (stems, folders):
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({number})" for number, path in enumerate(models, 1)]


def print_results(results: Sequence[ModelResult], verdict: Verdict, console: Any) -> None:
    """Print the table of an evaluation and its verdict in words."""
    from rich.table import Table

    from dyntrain.evaluate import summary_rows

    rollout = results[0].rollout
    table = Table(title=f"{rollout.n_starts} roll-outs beside the held-out runs, kicks applied")
    table.add_column("median over the starts")
    for result in results:
        table.add_column(result.name, justify="right")
    for label, cells in summary_rows(results):
        table.add_row(label, *cells)
    console.print(table)
    if rollout.horizon_fs < rollout.horizon_asked_fs - 1e-6:
        console.print(
            f"the runs allow {rollout.horizon_fs:g} fs, not the {rollout.horizon_asked_fs:g} fs asked for",
            highlight=False,
        )
    if results[0].free is not None:
        console.print(
            f"a free run has failed when {results[0].free.criterion}", highlight=False, soft_wrap=True
        )
    console.print(f"[bold]{verdict.headline}[/bold]", highlight=False, soft_wrap=True)
    for reason in verdict.reasons:
        console.print(f"  {reason}", highlight=False, soft_wrap=True)


def _record(results: Sequence[ModelResult], verdict: Verdict, runs: Sequence[Trajectory]) -> dict[str, Any]:
    """All numbers as plain values for JSON."""
    import dataclasses

    from dyntrain import __version__
    from dyntrain.evaluate import usable

    return {
        "dyntrain": __version__,
        "verdict": {
            "winner": verdict.winner,
            "headline": verdict.headline,
            "reasons": list(verdict.reasons),
            "usable": {
                result.name: dataclasses.asdict(found) if (found := usable(result)) else None
                for result in results
            },
        },
        "runs": [
            {"file": run.file, "n_frames": run.n_frames, "formula": run.formula, "dt_fs": run.dt_fs}
            for run in runs
        ],
        "models": [result.to_dict() for result in results],
    }


def _provenance(
    models: Sequence[Path],
    runs: Sequence[Trajectory],
    settings: EvaluationSettings,
    reference: StoredReference | None,
) -> dict[str, str]:
    from dyntrain import __version__

    facts = {
        "models": ", ".join(str(path) for path in models),
        "held-out runs": "; ".join(
            f"{run.file} ({run.formula}, {run.n_frames} frames of {run.dt_fs:g} fs)" for run in runs
        ),
        "seed": str(settings.seed),
        "dyntrain": __version__,
    }
    if settings.free_temperature_K is not None:
        facts["temperature of the free runs"] = f"{settings.free_temperature_K:g} K, drawn"
    if reference is not None:
        facts["reference"] = (
            f"{reference.name}: {reference.n_calculated} calculations, {reference.n_read} results from "
            f"{reference.folder}"
        )
    return facts
