"""Keys: which key of a file holds what and in which unit, as found by name or as the user says."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from ase.data import chemical_symbols

from dyntrain.data.unit_names import UNITS, factor
from dyntrain.errors import UserError


@dataclass(frozen=True)
class KeyMap:
    """The user's word on a file's keys and units; what is None or absent is found by name.

    energy, forces, velocities, positions, atomic_numbers, stress: names of keys in the file.
    masses: element → the mass that the AIMD used, u; D and T are the hydrogens that the file has as such.
    units: quantity (positions, energy, forces, velocities, time) → unit as "kcal/mol", "Å/fs".
    """

    energy: str | None = None
    forces: str | None = None
    velocities: str | None = None
    positions: str | None = None
    atomic_numbers: str | None = None
    stress: str | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    masses: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, values: Any, source: str = "keys") -> KeyMap:
        """From the plain values of YAML, as ``{energy: REF_energy, units: {energy: kcal/mol}}``.

        Raises:
            UserError: what is wrong, with the key and what is known.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        for key, value in _section(values, names, source).items():
            if key not in ("units", "masses") and not (isinstance(value, str) and value):
                raise UserError(f"{source}: `{key}` should be the name of a key in the file, got {value!r}.")
        stated = values.get("units", {})
        for quantity, unit in _section(stated, UNITS, f"{source}.units").items():
            if not isinstance(unit, str):
                raise UserError(f"{source}.units: `{quantity}` should be a unit, got {unit!r}.")
            factor(quantity, unit, f"{source}.units")
        masses = values.get("masses", {})
        for symbol, mass in _section(masses, MASS_SYMBOLS, f"{source}.masses").items():
            if isinstance(mass, bool) or not isinstance(mass, int | float) or not 0 < mass < 1e3:
                raise UserError(f"{source}.masses: `{symbol}` should be a mass in u, got {mass!r}.")
        return cls(**{**values, "units": dict(stated), "masses": dict(masses)})

    def factor(self, quantity: str) -> float | None:
        """What one unit of a quantity in the file is internally, where the user says it."""
        unit = self.units.get(quantity)
        return None if unit is None else factor(quantity, unit, "keys.units")


MASS_SYMBOLS = (*chemical_symbols[1:], "D", "T")


def _section(values: Any, known: Iterable[str], source: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise UserError(f"{source}: should be keys and values (as `energy: REF_energy`), got {values!r}.")
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
            raise UserError(f"{source}: unknown key `{key}`; {hint}")
    return dict(values)


def read_keys(file: str | os.PathLike[str]) -> KeyMap:
    """A mapping from a YAML file.

    Raises:
        UserError: no such file, no YAML, or a mistake in it.
    """
    try:
        with open(file, encoding="utf-8") as stream:
            values = yaml.safe_load(stream)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}.") from error
    return KeyMap.from_mapping(values, str(file))


AUTOMATIC = KeyMap()
"""Everything is found by name."""

# A name of ours with a prefix or suffix that says whose it is: REF_energy, dft_forces, energy_mace.
_WHOSE = {
    "energy": r"(?:(?P<before>\w+?)[_-])?(?:potential_|total_)?(?:free_)?energy(?:[_-](?P<after>\w+))?|e",
    "forces": r"(?:(?P<before>\w+?)[_-])?(?:force|forces)(?:[_-](?P<after>\w+))?|f",
    "velocities": r"(?:(?P<before>\w+?)[_-])?(?:velocity|velocities|velo|vel)(?:[_-](?P<after>\w+))?|v",
}
# Energies (and forces) of another kind, which are never the label.
_OTHER = re.compile(
    r"kinetic|formation|atomization|interaction|binding|cohesive|zero|std|var|error|uncertainty|weight|config|per_"
    r"|hull|gap|conserved|fermi|correlation|vdw|disp|mask|max|mean|node|coulomb",
    re.IGNORECASE,
)


def candidates(quantity: str, names: Iterable[str]) -> dict[str, str]:
    """Keys that may hold a quantity (energy, forces, velocities) → whose it says it is ("" or "ref")."""
    found = {}
    for name in names:
        match = re.fullmatch(_WHOSE[quantity], name, re.IGNORECASE)
        if match and not _OTHER.search(name):
            found[name] = (match["before"] or match["after"] or "").lower()
    return found
