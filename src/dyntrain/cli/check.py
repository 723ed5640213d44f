"""`dyntrain check`: one table a run, what is odd about it, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dyntrain.cli.outputs import check_outputs, console_beside, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dyntrain.data.run_report import Finding, RunReport
    from dyntrain.data.trajectory import Trajectory


def check(
    files: Annotated[list[str], typer.Argument(help="Runs: files, folders or patterns.", show_default=False)],
    dt: Annotated[
        float | None, typer.Option(help="Time between frames in fs, where the files do not say it.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Also write the reports to this file; - for stdout.")
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(help="YAML with the names of keys and their units, as under `keys` in a config."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write a page with pictures (HTML) to this file.")
    ] = None,
) -> None:
    """Tell whether reference runs can be used for dynamic training, and what is odd about them."""
    from dyntrain.data.diagnose import compared, diagnose, refused
    from dyntrain.data.keys import AUTOMATIC, read_keys
    from dyntrain.data.readers import expand_paths, read_runs
    from dyntrain.errors import UserError

    check_outputs(json, report)
    console = console_beside(json)
    mapping = AUTOMATIC if keys is None else read_keys(keys)
    runs: list[Trajectory] = []
    reports: list[RunReport] = []
    for file in expand_paths(files):
        try:
            read = read_runs(file, dt, mapping)
        except UserError as mistake:
            reports.append(refused(str(file), mistake))
            show(reports[-1], console)
            continue
        for run in read:
            runs.append(run)
            reports.append(diagnose(run))
            show(reports[-1], console)
    alone, reports = reports, compared(runs, reports)
    for before, after in zip(alone, reports, strict=True):
        _show_findings(after.findings[len(before.findings) :], console, f"{before.file}: ")
    if json is not None:
        write_json(json, [known.to_json() for known in reports])
    if report is not None:
        _write_page(runs, reports, report)
    errors = [f for known in reports for f in known.findings if f.severity == "error"]
    unusable = [known for known in reports if not known.usable]
    if len(unusable) == 1:
        raise UserError(_named(unusable[0].file, errors[0].message))
    if unusable:
        raise UserError(f"{len(unusable)} of {len(reports)} runs cannot be used; the reasons stand above.")


def show(report: RunReport, console: Any) -> None:
    """Print the table, the findings and the notes of one run."""
    from rich.markup import escape
    from rich.table import Table

    verdict = "[green]usable[/]" if report.usable else "[red]not usable[/]"
    table = Table(title=f"{escape(report.file)}: {verdict}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in _rows(report):
        table.add_row(name, escape(value))
    if table.row_count:
        console.print(table)
    else:
        console.print(table.title)
    _show_findings(report.findings, console)
    for note in report.notes:
        console.print(f"  [dim]note[/]: {escape(note)}", highlight=False)
    console.print()


def _show_findings(findings: Sequence[Finding], console: Any, who: str = "") -> None:
    from rich.markup import escape

    colours = {"error": "red", "warning": "yellow", "info": "cyan"}
    for finding in findings:
        colour = colours[finding.severity]
        console.print(f"  [{colour}]{finding.severity}[/]: {escape(who + finding.message)}", highlight=False)


def _rows(report: RunReport) -> list[tuple[str, str]]:
    """The table's lines; what was not measured has none."""
    if report.n_frames is None or report.dt_fs is None:
        return []
    rows = [
        ("run", f"{report.formula}, {report.n_atoms} atoms, {report.n_frames} frames"),
        ("dt", f"{report.dt_fs:.6g} fs ({report.dt_origin})"),
    ]
    if report.dt_fs_inferred is not None:
        says = f"{report.dt_fs_inferred:.6g} fs, correlation {report.dt_correlation:.6f}"
        rows.append(("dt by positions and forces", says))
    if report.residual is not None:
        rows.append(
            (
                "F = ma residual",
                f"{report.residual:.1e}; {report.residual_after_friction:.1e} with one friction a frame"
                + (" and a strain" if report.barostat else ""),
            )
        )
    rows.append(("ensemble", report.ensemble + (" with a barostat" if report.barostat else "")))
    if report.fastest_period_fs is not None:
        rows.append(("fastest period", f"{report.fastest_period_fs:.3g} fs"))
    if report.kick_ratio is not None:
        rows.append(("kicks / dt²F/m", f"{report.kick_ratio:.1e}"))
    rows.append(("velocities", str(report.velocities)))
    if report.temperature_K is not None:
        other = report.temperature_from_positions_K
        by_positions = "" if other is None else f", {other:.1f} K from positions"
        rows.append(("temperature", f"{report.temperature_K:.1f} K from velocities{by_positions}"))
    if report.drift_meV_atom_ps is not None:
        rows.append(("energy drift", f"{report.drift_meV_atom_ps:.3g} meV/atom/ps"))
    if report.energy_slope is not None:
        agreement = f"slope {report.energy_slope:.4f}, correlation {report.energy_correlation:.4f}"
        rows.append(("ΔE against −F·Δr", agreement))
    if report.closest_A:
        pairs = sorted(report.closest_A.items(), key=lambda item: item[1])
        rows.append(("closest, Å", ", ".join(f"{pair} {distance:.2f}" for pair, distance in pairs)))
    rows.append(("largest force", f"{report.largest_force_eV_A:.2f} eV/Å"))
    return rows


def _named(file: str, message: str) -> str:
    """The sentence with the file in front, unless it stands there already."""
    return message if message.startswith(file) else f"{file}: {message}"


def _write_page(runs: list[Trajectory], reports: list[RunReport], path: Path) -> None:
    from dyntrain.data.profile import make_profile
    from dyntrain.report.check_page import CheckedRun, write_check_page

    measured = iter(runs)
    profiles = [make_profile(next(measured), r) if r.n_frames is not None else None for r in reports]
    write_check_page(path, [CheckedRun(_rows(r), r, p) for r, p in zip(reports, profiles, strict=True)])
