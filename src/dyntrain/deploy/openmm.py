"""OpenMM moved by our potential: a `PythonForce` (OpenMM 8.4 and later)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dyntrain.deploy.evaluator import Evaluator
from dyntrain.errors import UserError
from dyntrain.potential import Potential

# OpenMM's units are nm and kJ/mol, with the constants of CODATA 2018.
_KJ_PER_MOL = 96.48533212331
_NM = 0.1


def make_force(
    model: Potential | Path | str,
    atomic_numbers: Sequence[int],
    *,
    periodic: bool = False,
    device: str | None = None,
) -> Any:
    """An ``openmm.PythonForce`` with the energy and forces of a model, to be added to a ``System``.

    Args:
        model: a model file, or a potential.
        atomic_numbers: of the system's particles, in order.
        periodic: the box of the state is periodic in all directions.
        device: as in ``Calculator``.

    Raises:
        UserError: no OpenMM, or one without ``PythonForce``.
    """
    try:
        import openmm
    except ImportError as error:
        raise UserError("OpenMM is not installed: pip install 'openmm>=8.4'") from error
    if not hasattr(openmm, "PythonForce"):
        raise UserError(f"OpenMM {openmm.__version__} has no PythonForce: pip install 'openmm>=8.4'")
    force = openmm.PythonForce(_Compute(Evaluator(model, device), np.array(atomic_numbers), periodic))
    force.setUsesPeriodicBoundaryConditions(periodic)
    return force


class _Compute:
    def __init__(self, evaluator: Evaluator, numbers: np.ndarray, periodic: bool) -> None:
        self._evaluator, self._numbers, self._periodic = evaluator, numbers, periodic

    def __call__(self, state: Any) -> tuple[float, np.ndarray]:
        """Energy in kJ/mol and forces [n_atoms, 3] in kJ/mol/nm of an ``openmm.State``."""
        positions = np.asarray(state.getPositions(asNumpy=True)._value) / _NM
        cell = np.asarray(state.getPeriodicBoxVectors(asNumpy=True)._value) / _NM if self._periodic else None
        found = self._evaluator(positions, self._numbers, cell, [self._periodic] * 3)
        return found.energy * _KJ_PER_MOL, found.forces * (_KJ_PER_MOL / _NM)
