"""The systems AIMD is made of: molecules, a water box, H2 at Pd6/graphene, or the structure in a file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ase.io
import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.collections import g2

from dyntrain.errors import UserError
from dyntrain.reference.h2_pd6_graphene import ELECTRONS, incoming_hydrogen, pd6_graphene
from dyntrain.reference.water_box import water_box

_H2_PD6_GRAPHENE = "h2-pd6-graphene"
_WATER_BOX = re.compile(r"water-box(-(?P<molecules>\d+)(-(?P<density>\d+(\.\d+)?))?)?")

# Everyday names of molecules that ASE's G2 set lists by formula; all of its own names work too.
_FORMULAS = {
    "acetaldehyde": "CH3CHO",
    "ammonia": "NH3",
    "benzene": "C6H6",
    "ethane": "C2H6",
    "ethanol": "CH3CH2OH",
    "ethene": "C2H4",
    "ethyne": "C2H2",
    "formaldehyde": "H2CO",
    "formic-acid": "HCOOH",
    "hydrogen": "H2",
    "methane": "CH4",
    "methanol": "CH3OH",
    "propane": "C3H8",
    "water": "H2O",
}


@dataclass(frozen=True)
class Arrival:
    """A molecule that joins the thermalised atoms when the recording starts, after them in order.

    molecule: its formula;  draw: from the thermalised atoms and a random generator, it with its momenta
    """

    molecule: str
    draw: Callable[[Atoms, np.random.Generator], Atoms]


def build_system(system: str, seed: int = 0) -> Atoms:
    """The structure that a name or a file stands for.

    Args:
        system: an everyday name (``ethanol``) or one of ASE's G2 set (``CH3CH2OH``), both gas phase;
            ``water-box-N`` or ``water-box-N-DENSITY`` (N molecules, 16 unless given; g/cm³);
            ``h2-pd6-graphene`` (the surface: each run draws its own H2, see ``arrival``); or a structure file
            that ASE reads (the last frame of several; its cell and pbc are kept).
        seed: of a water box.

    Raises:
        UserError: unknown name, unreadable file, a single atom, or constraints (not supported).
    """
    if box := _WATER_BOX.fullmatch(system):
        return water_box(int(box["molecules"] or 16), float(box["density"] or 0.997), seed)
    if system == _H2_PD6_GRAPHENE:
        return pd6_graphene()
    atoms = molecule(_formula(system)) if _is_molecule(system) else _from_file(system)
    if len(atoms) < 2:
        raise UserError(f"{system} is a single atom: AIMD needs a system of at least two")
    if atoms.constraints:
        kinds = ", ".join(sorted({type(constraint).__name__ for constraint in atoms.constraints}))
        raise UserError(f"{system} carries constraints ({kinds}), which dyntrain aimd does not support")
    return atoms


def suited_settings(system: str) -> dict[str, Any]:
    """The fields of ``AimdSettings`` in which a system wants other values than the defaults."""
    # Short pieces, for progress and little loss when stopped: a step takes about half a second.
    condensed = {"method": "GFN1-xTB", "temperature_K": 300.0, "checkpoint_every": 20}
    if system == _H2_PD6_GRAPHENE:
        return {**condensed, "calculator_options": dict(ELECTRONS), "n_steps": 800}
    return condensed if _WATER_BOX.fullmatch(system) else {}


def arrival(system: str) -> Arrival | None:
    """The molecule that flies at the system, if there is one."""
    return Arrival("H2", incoming_hydrogen) if system == _H2_PD6_GRAPHENE else None


def system_name(system: str) -> str:
    """What the files made of a system are called: its name, or its file's without folder and suffix."""
    ready_made = system == _H2_PD6_GRAPHENE or _WATER_BOX.fullmatch(system) or _is_molecule(system)
    return system if ready_made else Path(system).stem


def _formula(name: str) -> str:
    return _FORMULAS.get(name.lower(), name)


def _is_molecule(system: str) -> bool:
    return _formula(system) in g2.names


def _from_file(system: str) -> Atoms:
    if not Path(system).is_file():
        names = [*_FORMULAS, "water-box", _H2_PD6_GRAPHENE]
        near = difflib.get_close_matches(system, [*names, *g2.names], n=1)
        raise UserError(
            f"unknown system {system!r}{f' (did you mean {near[0]}?)' if near else ''}: give one of "
            f"{', '.join(names)}, a molecule of ASE's G2 set (such as CH3CH2OH), or a structure file"
        )
    try:
        atoms = cast(Atoms, ase.io.read(system, index=-1))
    except Exception as error:  # ASE's readers raise anything at all on a file they do not understand
        raise UserError(f"ASE cannot read a structure from {system}: {error}") from error
    atoms.calc = None
    return atoms
