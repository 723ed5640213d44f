"""What commands ask of --json and --report before their work begins."""

from __future__ import annotations

from pathlib import Path


def check_outputs(json: Path | None, report: Path | None) -> None:
    """Refuse what could not be written after minutes of work, or would take the place of a run or a model.

    Raises:
        UserError: no such folder, a file of another kind is there, or pages need an extra that is missing.
    """
    from dyntrain.errors import UserError

    for option, output, ending in (("--json", json, ".json"), ("--report", report, ".html")):
        if output is None:
            continue
        if not output.parent.is_dir():
            raise UserError(
                f"{output} cannot be written: there is no folder {output.parent}; create it or choose another"
            )
        if output.exists() and output.suffix != ending:
            raise UserError(
                f"{option} would replace {output}, which is no {ending} file: give another name, as "
                f"{output.with_suffix(ending).name}"
            )
    if report is not None:
        from dyntrain.report import require_report_extra

        require_report_extra()
