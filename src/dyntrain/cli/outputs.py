"""What commands ask of --json and --report before their work begins, and where JSON and tables go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_STDOUT = (Path("-"), Path("/dev/stdout"))


def console_beside(json: Path | None) -> Console:
    """Where tables go: to stdout, or to stderr where stdout holds the JSON."""
    from rich.console import Console

    return Console(stderr=json in _STDOUT)


def write_json(path: Path, record: Any) -> None:
    """Write JSON whole to a file, or print it where the path is `-` or `/dev/stdout`."""
    import json

    from dyntrain.atomic import write_text

    to_stdout = path in _STDOUT  # which may lack an Å
    text = json.dumps(record, indent=1, ensure_ascii=to_stdout, allow_nan=False)
    if to_stdout:
        print(text)
    else:
        write_text(path, text + "\n")


def check_outputs(json: Path | None, report: Path | None) -> None:
    """Refuse what could not be written after minutes of work, or would take the place of a run or a model.

    Raises:
        UserError: no such folder, a file of another kind is there, or pages need an extra that is missing.
    """
    from dyntrain.errors import UserError

    for option, output, ending in (("--json", json, ".json"), ("--report", report, ".html")):
        if output is None or (output is json and json in _STDOUT):
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
