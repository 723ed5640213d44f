"""What an evaluation does, in numbers; the same settings give every model the same starts."""

from __future__ import annotations

from dataclasses import dataclass

from dyntrain.errors import UserError
from dyntrain.evaluate.criteria import Kind


@dataclass(frozen=True)
class EvaluationSettings:
    """How much is measured.

    horizon_fs:         follow the recorded runs for so long, fs
    n_starts:           roll-outs, each from another recorded frame
    n_free_runs:        free NVE runs; 0 for none
    free_length_fs:     length of each, fs
    free_temperature_K: draw the free runs' velocities for this temperature; None: those of the recording
    failure:            kind of failure criterion (``criterion_for``); None: what suits the recording
    audit_runs:         free runs that are audited, where a reference is given
    seed:               of the starts and of drawn velocities
    """

    horizon_fs: float = 150.0
    n_starts: int = 16
    n_free_runs: int = 8
    free_length_fs: float = 1000.0
    free_temperature_K: float | None = None
    failure: Kind | None = None
    audit_runs: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, words in (("horizon_fs", "horizon"), ("free_length_fs", "length of the free runs")):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"the {words} must be a time in fs above 0, got {getattr(self, name):g}")
        if self.free_temperature_K is not None and not 0 <= self.free_temperature_K < 20_000:
            raise UserError(
                f"the temperature of the free runs must lie in 0 … 20 000 K, got {self.free_temperature_K:g}"
            )
