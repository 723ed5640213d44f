"""ASE keys: which key of a frame holds its energy, forces and velocities, settled on the first frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dyntrain.data.ase_frames import Frame
from dyntrain.data.keys import KeyMap, candidates
from dyntrain.errors import UserError

_HOLDERS = {"energy": "info", "forces": "arrays", "velocities": "arrays"}


class LabelKeys:
    """The keys that hold the labels of a file, chosen by the user or else by name.

    Args:
        frame: the first one.

    Raises:
        UserError: several keys with different values, or an energy and forces of different owners.
    """

    def __init__(self, frame: Frame, keys: KeyMap, file: str) -> None:
        self.file, self._keys = file, keys
        self.notes: list[str] = []
        self.energy = self._choose("energy", frame)
        self.forces = self._choose("forces", frame)
        self.velocities = self._choose("velocities", frame)
        self._check_same_owner()

    def _choose(self, quantity: str, frame: Frame) -> str | None:
        said = getattr(self._keys, quantity)
        if said is not None:
            return str(said)
        held = values_of(quantity, frame)
        own = {"energy": ("free_energy", "energy"), "forces": ("forces",), "velocities": ("momenta",)}[
            quantity
        ]
        standard = next((key for key in own if key in held), None)
        found = candidates(quantity, [key for key in held if key not in own])
        if quantity == "velocities" and standard is not None:
            return standard
        if standard is not None:
            # Beside ASE's own key only those that name an owner (REF_energy) are rivals.
            rivals = [key for key, owner in found.items() if owner and key in held]
            self._refuse_rivals(quantity, held, [standard, *rivals])
            return standard
        self._refuse_rivals(quantity, held, list(found))
        if not found:
            return None
        key = next(iter(found))
        if key != quantity:
            self.notes.append(f"The key `{key}` is taken as the {quantity}.")
        return key

    def _refuse_rivals(self, quantity: str, held: Mapping[str, Any], names: list[str]) -> None:
        if len(names) > 1 and not all(_same(held[name], held[names[0]]) for name in names[1:]):
            listed = ", ".join(f"`{name}`" for name in names)
            raise UserError(
                f"{self.file} holds several {quantity} that differ ({listed}): say with "
                f"`keys: {{{quantity}: …}}` which is the reference."
            )

    def _check_same_owner(self) -> None:
        """An energy of one calculation and forces of another are the worst of labels."""
        if self.energy is None or self.forces is None or self._keys.energy or self._keys.forces:
            return
        owners = [self._owner("energy", self.energy), self._owner("forces", self.forces)]
        if owners[0] != owners[1]:
            raise UserError(
                f"{self.file}: the energy is in `{self.energy}` but the forces in `{self.forces}`, perhaps "
                "of another calculation; say with `keys: {energy: …, forces: …}` that they belong together."
            )

    def _owner(self, quantity: str, key: str) -> str:
        owner = candidates(quantity, [key]).get(key, "")
        return "" if owner == "free" else owner


def values_of(quantity: str, frame: Frame) -> dict[str, Any]:
    """Everything a frame holds that could be the quantity, by key; the calculator's results come first."""
    return {**getattr(frame, _HOLDERS[quantity]), **frame.results}


def _same(x: Any, y: Any) -> bool:
    try:
        return np.shape(x) == np.shape(y) and np.allclose(x, y, rtol=1e-8, atol=1e-8, equal_nan=True)
    except TypeError:
        return False
