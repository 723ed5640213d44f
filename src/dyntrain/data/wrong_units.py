"""Wrong units: the factor between energy changes and −F·Δr, recognised by name."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ase import units

from dyntrain.units import BOHR, HARTREE

_KCAL, _KJ = float(units.kcal / units.mol), float(units.kJ / units.mol)
_RYDBERG = HARTREE / 2
_ENERGIES = {"hartree": HARTREE, "rydberg": _RYDBERG, "kcal/mol": _KCAL, "kJ/mol": _KJ, "meV": 1e-3}
_FORCES = {
    "hartree/bohr": HARTREE / BOHR,
    "rydberg/bohr": _RYDBERG / BOHR,
    "eV/bohr": 1 / BOHR,
    "hartree/Å": HARTREE,
    "kcal/mol/Å": _KCAL,
    "kJ/mol/Å": _KJ,
    "kJ/mol/nm": _KJ / 10,
    "meV/Å": 1e-3,
}
_POSITIONS = {"bohr": BOHR, "nm": 10.0}
_TOLERANCE = 0.02


@dataclass(frozen=True)
class WrongUnit:
    """What is likely wrong, and by which factor a dt inferred from these numbers must be multiplied."""

    advice: str
    dt_factor: float = 1.0


def name_energy_factor(slope: float, n_atoms: int, *, motion_is_right: bool) -> WrongUnit | None:
    """The likeliest wrong unit where energy changes are `slope` times −F·Δr; None where no name fits.

    Args:
        slope: 1 where all units are right.
        n_atoms: energies may be given per atom.
        motion_is_right: positions and forces agree with a dt that was stated, so only the energies are left.
    """
    candidates = [(1 / size, WrongUnit(f"the energies look like {name}")) for name, size in _ENERGIES.items()]
    if n_atoms > 1:
        candidates.append(
            (1 / n_atoms, WrongUnit(f"the energies look like energies per atom (of {n_atoms})"))
        )
    candidates.append((-1.0, WrongUnit("the energies seem to have the wrong sign")))
    if not motion_is_right:
        candidates += [
            (size, WrongUnit(f"the forces look like {name}", 1 / math.sqrt(size)))
            for name, size in _FORCES.items()
        ]
        candidates += [
            (size, WrongUnit(f"the positions look like {name}", math.sqrt(size)))
            for name, size in _POSITIONS.items()
        ]
    off, nearest = min(((abs(slope / factor - 1), unit) for factor, unit in candidates), key=lambda c: c[0])
    return nearest if off < _TOLERANCE else None
