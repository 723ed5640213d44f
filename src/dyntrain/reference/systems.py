"""Ready-made systems: a molecule by its name or formula, or the structure in a file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import cast

import ase.io
from ase import Atoms
from ase.build import molecule
from ase.collections import g2

from dyntrain.errors import UserError

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


def build_system(system: str) -> Atoms:
    """The structure that a name or a file stands for.

    Args:
        system: an everyday name (``ethanol``), a name of ASE's G2 set (``CH3CH2OH``), both gas phase, or a
            structure file that ASE reads (the last frame of several; its cell and pbc are kept).

    Raises:
        UserError: unknown name, unreadable file, a single atom, or constraints (not supported).
    """
    atoms = molecule(_formula(system)) if _is_molecule(system) else _from_file(system)
    if len(atoms) < 2:
        raise UserError(f"{system} is a single atom: AIMD needs a system of at least two")
    if atoms.constraints:
        kinds = ", ".join(sorted({type(constraint).__name__ for constraint in atoms.constraints}))
        raise UserError(f"{system} carries constraints ({kinds}), which dyntrain aimd does not support")
    return atoms


def system_name(system: str) -> str:
    """What the files made of a system are called: its name, or its file's without folder and suffix."""
    return system if _is_molecule(system) else Path(system).stem


def _formula(name: str) -> str:
    return _FORMULAS.get(name.lower(), name)


def _is_molecule(system: str) -> bool:
    return _formula(system) in g2.names


def _from_file(system: str) -> Atoms:
    if not Path(system).is_file():
        near = difflib.get_close_matches(system, [*_FORMULAS, *g2.names], n=1)
        raise UserError(
            f"unknown system {system!r}{f' (did you mean {near[0]}?)' if near else ''}: give one of "
            f"{', '.join(_FORMULAS)}, a molecule of ASE's G2 set (such as CH3CH2OH), or a structure file"
        )
    try:
        atoms = cast(Atoms, ase.io.read(system, index=-1))
    except Exception as error:  # ASE's readers raise anything at all on a file they do not understand
        raise UserError(f"ASE cannot read a structure from {system}: {error}") from error
    atoms.calc = None
    return atoms
