"""`dyntrain convert`: runs of any format into one H5MD store, from which training reads windows as slices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    files: Annotated[list[str], typer.Argument(help="Runs: files, folders or patterns.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The H5MD file to write (.h5).")],
    dt: Annotated[
        float | None, typer.Option(help="Time between frames in fs, where the files do not say it.")
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(help="YAML with the names of keys and their units, as under `keys` in a config."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output where it exists.")
    ] = False,
) -> None:
    """Write reference runs, checked and with their breaks marked, to one HDF5 file in H5MD layout."""
    from rich.console import Console
    from rich.markup import escape

    from dyntrain.cli.check import show
    from dyntrain.data.diagnose import diagnose, marked
    from dyntrain.data.keys import AUTOMATIC, read_keys
    from dyntrain.data.readers import expand_paths, read_trajectories
    from dyntrain.data.store import write_store
    from dyntrain.errors import UserError

    if output.exists() and not overwrite:
        raise UserError(f"{output} exists already; give another --output, or --overwrite to replace it.")
    sources = expand_paths(files)
    if any(output.exists() and source.samefile(output) for source in sources):
        raise UserError(f"{output} is one of the files to read; give another --output.")
    console, runs = Console(), []
    for run in read_trajectories(sources, dt, AUTOMATIC if keys is None else read_keys(keys)):
        show(diagnose(run), console)
        runs.append(marked(run))
    write_store(runs, output)
    n_frames, size = sum(run.n_frames for run in runs), output.stat().st_size / 1e6
    console.print(
        f"{escape(str(output))}: {len(runs)} run(s), {n_frames} frames, {size:.1f} MB.", soft_wrap=True
    )
