"""What is known of the model of a round: beside held-out runs, on its own runs, and how long it lasts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dyntrain import observables
from dyntrain.atomic import write_text
from dyntrain.data.trajectory import Trajectory
from dyntrain.evaluate import MARKS_FS, FreeRuns, Progress, criterion_for, free_runs, rollout_errors
from dyntrain.evaluate.audit import Reference as Labels
from dyntrain.evaluate.audit import audit
from dyntrain.improve.explore import free_starts
from dyntrain.potential import Potential

_DEVIATION_FS, _N_ROLLOUTS = 150.0, 32
_N_AUDITED = 16

FLAT = 1.5
"""The audit is flat where the error nowhere exceeds so many times its value at the start of the runs."""

_LOWER = 0.9

Curve = dict[str, list[float | None]]


@dataclass(frozen=True)
class RoundResult:
    """Measurements of the model after a round (round 0: before any new segment).

    calls:       reference calculations of all new segments so far
    audit_calls: those of this round's audit
    deviation:   force MAE of roll-outs beside held-out runs: times_fs, median, lower, upper (eV/Å)
    audit:       force MAE against the reference on the model's own free runs, likewise; empty without one
    failure_fs, failed, reasons: of the free runs, which last ``run_length_fs``
    """

    number: int
    calls: int
    audit_calls: int
    deviation: Curve
    audit: Curve
    failure_fs: list[float]
    failed: list[bool]
    reasons: dict[str, str]
    run_length_fs: float
    criterion: str
    audit_failures: list[str] = field(default_factory=list)

    @property
    def n_failed(self) -> int:
        return sum(self.failed)

    @property
    def median_time_to_failure_fs(self) -> float | None:
        """Kaplan–Meier; None where fewer than half failed."""
        return observables.median_time_to_failure(np.array(self.failure_fs), np.array(self.failed))

    @property
    def is_flat(self) -> bool:
        """Whether the model is as right at the end of its own runs as at their start, and none failed."""
        errors = self.audit.get("median")
        if not errors or errors[0] is None or self.n_failed:
            return False
        return all(error is not None and error <= FLAT * errors[0] for error in errors)

    def is_lower_than(self, before: RoundResult) -> bool:
        """Whether the round has lowered the audit by a tenth, on average over its times."""
        pairs = zip(self.audit["median"], before.audit["median"], strict=False)
        ratios = [now / then for now, then in pairs if now is not None and then]
        return bool(ratios) and float(np.mean(ratios)) < _LOWER

    def summary(self) -> dict[str, Any]:
        """The round in ``improve.json``."""
        return {
            "round": self.number,
            "calls": self.calls,
            "audit_calls": self.audit_calls,
            "deviation_eV_A": at_marks(self.deviation, MARKS_FS),
            "audit_eV_A": at_marks(self.audit, self.audit.get("times_fs", [])),
            "n_failed": self.n_failed,
            "n_runs": len(self.failed),
            "run_length_fs": self.run_length_fs,
            "median_time_to_failure_fs": self.median_time_to_failure_fs,
        }

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> RoundResult:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def at_marks(curve: Curve, marks: Sequence[float | None]) -> dict[str, float | None]:
    """Medians of a curve at the marked times, fs as words → eV/Å."""
    found: dict[str, float | None] = {}
    for mark in marks:
        for time_fs, median in zip(curve.get("times_fs", []), curve.get("median", []), strict=True):
            if mark is not None and time_fs is not None and abs(time_fs - mark) < 1e-6:
                found[f"{mark:g}"] = median
    return found


def beside_recorded(
    potential: Potential, held_out: Sequence[Trajectory], seed: int, progress: Progress | None = None
) -> Curve:
    """Force error of roll-outs beside held-out runs, their kicks applied; the same seed, the same starts."""
    found = rollout_errors(
        potential,
        held_out,
        horizon_fs=_DEVIATION_FS,
        n_starts=_N_ROLLOUTS,
        seed=seed,
        progress=progress,
    )
    return _curve(found.times_fs, lambda q: observables.quantile_over_starts(found.force_mae, q))


def own_runs(
    potential: Potential,
    held_out: Sequence[Trajectory],
    *,
    horizon_fs: float,
    temperature: float | None,
    n_runs: int,
    seed: int,
    progress: Progress | None = None,
) -> FreeRuns:
    """Free runs from held-out frames; the same seed, the same starts.

    Args:
        temperature: of newly drawn velocities, K; None: the recorded ones.
    """
    return free_runs(
        potential,
        free_starts(held_out, n_runs, temperature, seed),
        held_out[0].dt,
        horizon_fs,
        criterion=criterion_for(held_out),
        temperature_K=temperature,
        progress=progress,
    )


def audited(
    potential: Potential, free: FreeRuns, labels: Labels, progress: Progress | None = None
) -> tuple[Curve, int, list[str]]:
    """Force error against the reference on free runs; also the calls it took, and those that failed."""
    found = audit(potential, free, labels, max_runs=_N_AUDITED, progress=progress)
    calls = sum(snapshot.run < _N_AUDITED for snapshot in free.snapshots)
    return _curve(found.times_fs, found.quantile), calls, list(found.failures)


def measure(
    potential: Potential,
    held_out: Sequence[Trajectory],
    labels: Labels | None,
    *,
    number: int,
    calls: int,
    horizon_fs: float,
    temperature: float | None,
    n_runs: int,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> RoundResult:
    """All that is known of the model of a round; without labels there is no audit."""
    deviation = beside_recorded(potential, held_out, seed, partial(progress, "roll-outs"))
    free = own_runs(
        potential,
        held_out,
        horizon_fs=horizon_fs,
        temperature=temperature,
        n_runs=n_runs,
        seed=seed,
        progress=partial(progress, "free runs"),
    )
    curve: Curve = {}
    audit_calls, audit_failures = 0, list[str]()
    if labels is not None:
        told = partial(progress, "audit")
        curve, audit_calls, audit_failures = audited(potential, free, labels, told)
    return RoundResult(
        number=number,
        calls=calls,
        audit_calls=audit_calls,
        deviation=deviation,
        audit=curve,
        failure_fs=free.failure_fs.tolist(),
        failed=free.failed.tolist(),
        reasons={str(run): reason for run, reason in free.reasons.items()},
        run_length_fs=free.run_length_fs,
        criterion=str(free.criterion),
        audit_failures=audit_failures,
    )


def _curve(times_fs: observables.FloatArray, quantile: Callable[[float], observables.FloatArray]) -> Curve:
    def plain(values: observables.FloatArray) -> list[float | None]:
        return [observables.finite_or_none(value) for value in values]

    return {
        "times_fs": [float(time_fs) for time_fs in times_fs],
        **{name: plain(quantile(q)) for name, q in (("lower", 0.25), ("median", 0.5), ("upper", 0.75))},
    }
