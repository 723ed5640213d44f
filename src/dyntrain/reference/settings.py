"""What decides the numbers of an AIMD run, and the values that suit a system."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from dyntrain.errors import UserError
from dyntrain.reference.calculators import TBLITE_METHODS
from dyntrain.reference.systems import arrival, suited_settings

Ensemble = Literal["nve", "langevin", "nose-hoover"]


@dataclass(frozen=True)
class AimdSettings:
    """What decides the numbers of a run, together with its number; equal settings give equal numbers.

    system:             name or structure file (``systems.build_system``)
    method:             a tblite method, or an ASE calculator by name (``calculators.new_calculator``)
    calculator_options: keywords of that calculator; plain values, as in JSON
    ensemble:           of the recorded part: ``nve`` (velocity Verlet), ``langevin`` or ``nose-hoover``
    temperature_K:      of the start velocities and the thermostats
    dt_fs:              time step, fs
    n_steps:            recorded steps (``n_steps + 1`` frames)
    thermalise_steps:   Langevin steps before the recording, discarded
    thermostat_fs:      time constant of the thermostats, fs: Langevin has the friction 1/thermostat_fs; the
                        Nosé–Hoover chain has masses that go with its square
    checkpoint_every:   steps a piece; a stop loses at most one piece's work
    """

    system: str
    method: str = "GFN2-xTB"
    calculator_options: dict[str, Any] = field(default_factory=dict)
    ensemble: Ensemble = "nve"
    temperature_K: float = 500.0
    dt_fs: float = 0.5
    n_steps: int = 1000
    thermalise_steps: int = 500
    thermostat_fs: float = 50.0
    checkpoint_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name, lowest in {"n_steps": 1, "thermalise_steps": 0, "checkpoint_every": 1, "seed": 0}.items():
            if getattr(self, name) < lowest:
                raise UserError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        for name in ("dt_fs", "thermostat_fs"):
            if not 0 < getattr(self, name) < np.inf:
                raise UserError(f"{name} must be a positive number, got {getattr(self, name)}")
        if not 0 <= self.temperature_K < np.inf:
            raise UserError(f"temperature_K must not be negative, got {self.temperature_K}")
        self._check_ensemble()
        _check_plain(self.calculator_options)

    def _check_ensemble(self) -> None:
        if self.ensemble not in get_args(Ensemble):
            raise UserError(f"ensemble must be one of {', '.join(get_args(Ensemble))}, got {self.ensemble!r}")
        if self.ensemble == "nose-hoover" and self.temperature_K == 0:
            raise UserError("a Nosé–Hoover chain needs a temperature above 0 K")
        if self.ensemble != "nve" and arrival(self.system):
            raise UserError(
                f"{self.system} has a molecule in flight, which a thermostat would brake: use nve"
            )

    @property
    def total_steps(self) -> int:
        """Steps of one run, thermalisation included."""
        return self.thermalise_steps + self.n_steps


def settings_for(system: str, **changes: Any) -> AimdSettings:
    """The settings that suit a system, some of them changed.

    Args:
        system: name or structure file; ``water-box`` and ``h2-pd6-graphene`` have values of their own.
        changes: fields of ``AimdSettings``. Another method than the suited one starts without the suited
            calculator options; one that is not xTB gets shorter pieces.

    Raises:
        UserError: a value out of range.
    """
    suited = suited_settings(system)
    if changes.get("method", suited.get("method")) != suited.get("method"):
        suited.pop("calculator_options", None)
        if changes["method"] not in TBLITE_METHODS:
            suited["checkpoint_every"] = 20  # a step may take minutes
    return AimdSettings(**{"system": system, **suited, **changes})


def _check_plain(options: dict[str, Any]) -> None:
    """The options must survive the record on disk."""
    try:
        same = json.loads(json.dumps(options)) == options
    except (TypeError, ValueError):
        same = False
    if not same:
        raise UserError(
            f"the calculator options must be names with plain values (numbers, text, lists), got {options!r}"
        )
