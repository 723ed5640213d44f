"""Unit names: what files and users call their units, as factors to the internal ones."""

from __future__ import annotations

import difflib
import re

from ase import units

from dyntrain.errors import UserError
from dyntrain.units import AUT, BOHR, FS, HARTREE

_MOL = float(1 / units.mol)
_LENGTH = {"å": 1.0, "angstrom": 1.0, "ang": 1.0, "a": 1.0, "bohr": BOHR, "nm": 10.0, "pm": 0.01, "m": 1e10}
_ENERGY = {
    "ev": 1.0,
    "mev": 1e-3,
    "hartree": HARTREE,
    "ha": HARTREE,
    "rydberg": HARTREE / 2,
    "ry": HARTREE / 2,
    "kcal/mol": float(units.kcal / units.mol),
    "kj/mol": float(units.kJ / units.mol),
}
_TIME = {"fs": FS, "ps": 1e3 * FS, "s": 1e15 * FS, "ase": 1.0}
_VELOCITY = {f"{length}/{time}": x / t for length, x in _LENGTH.items() for time, t in _TIME.items()}
_FORCE = {f"{energy}/{length}": e / x for energy, e in _ENERGY.items() for length, x in _LENGTH.items()}
_AU = "atomic_units"

UNITS: dict[str, dict[str, float]] = {
    "positions": {**_LENGTH, _AU: BOHR},
    "energy": {**_ENERGY, _AU: HARTREE},
    "forces": {**_FORCE, _AU: HARTREE / BOHR},
    "velocities": {**_VELOCITY, "ase": 1.0, _AU: BOHR / AUT},
    "time": {**_TIME, _AU: AUT},
}
"""Quantity → unit → what one such unit is in Å, eV, Å/ASE time …; names in lower case, without blanks."""

# Symbols of H5MD unit strings ("kJ mol-1 nm-1").
_SYMBOLS = {
    "Angstrom": 1.0,
    "nm": 10.0,
    "pm": 0.01,
    "um": 1e4,
    "m": 1e10,
    "bohr": BOHR,
    "a0": BOHR,
    "as": 1e-3 * FS,
    "fs": FS,
    "ps": 1e3 * FS,
    "ns": 1e6 * FS,
    "s": 1e15 * FS,
    "eV": 1.0,
    "meV": 1e-3,
    "hartree": HARTREE,
    "Ha": HARTREE,
    "Ry": HARTREE / 2,
    "J": float(units.J),
    "kJ": float(units.kJ),
    "kcal": float(units.kcal),
    "cal": float(units.kcal / 1000),
    "mol": 1 / _MOL,
    "u": 1.0,
    "Da": 1.0,
    "amu": 1.0,
    "kg": float(units.kg),
    "g": float(units.kg / 1000),
    "N": float(units.J / units.m),
    "pN": float(1e-12 * units.J / units.m),
}


def factor(quantity: str, unit: str, source: str) -> float:
    """What one unit of a quantity ("forces") is in internal units.

    Raises:
        UserError: an unknown unit, with the nearest known one.
    """
    known = UNITS[quantity]
    name = re.sub(r"\s+", "", unit).lower().replace("atomicunits", _AU).replace("atomic_unit_", _AU)
    name = {"au": _AU, "a.u.": _AU, "atomic_unit": _AU}.get(name, name)
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(list(known)[:8])}, …"
    raise UserError(f"{source}: unknown unit {unit!r} of the {quantity}; {hint}")


def h5md_factor(unit: str, source: str) -> float:
    """What an H5MD unit string ("0.1 nm ps-1") is in internal units.

    Raises:
        UserError: a string that does not follow H5MD's units module, or an unknown symbol.
    """
    total = 1.0
    for number, word in enumerate(unit.split()):
        if number == 0 and re.fullmatch(r"\d+\.?\d*(e[-+]?\d+)?", word):
            total *= float(word)
            continue
        match = re.fullmatch(r"([A-Za-z][A-Za-z0]*?)([-+]?[1-9])?", word)
        if match is None or match[1] not in _SYMBOLS:
            raise UserError(f"{source}: unknown unit {word!r} in {unit!r}; known are {', '.join(_SYMBOLS)}.")
        total *= _SYMBOLS[match[1]] ** int(match[2] or 1)
    return total
