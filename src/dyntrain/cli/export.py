"""`dyntrain export`: a trained model in the format that its family's own tools load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ase import Atoms


def export(
    model: Annotated[Path, typer.Argument(help="Model file of dyntrain (model.pt).", show_default=False)],
    output: Annotated[Path, typer.Option(help="File to write.", show_default=False)],
    structure: Annotated[
        Path | None, typer.Option(help="Compare on this structure (ASE reads it), not on a made-up one.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or float64; else the model's own.")] = None,
) -> None:
    """Write the format of the model's own family (MACE, NequIP, SevenNet …), for its ASE calculator, LAMMPS …

    The family's own calculator must give our energies and forces with the file; otherwise none is written.
    dyntrain's own networks have no other format than model.pt.
    """
    from dyntrain.adapters.exporting import export as write
    from dyntrain.models.files import load_model

    potential = load_model(model, precision=precision)
    found = write(potential, output, None if structure is None else _last_frame(structure))
    print(
        "its package's own calculator gives the same with it: "
        f"energy to {found.energy:.1e}, forces to {found.forces:.1e}, relative"
    )
    print(output)


def _last_frame(path: Path) -> Atoms:
    import ase.io

    from dyntrain.errors import UserError

    try:
        return ase.io.read(path)  # type: ignore[return-value]  # by default the last
    except Exception as error:  # ASE's readers raise anything
        raise UserError(f"ASE cannot read {path} ({type(error).__name__}: {error})") from error
