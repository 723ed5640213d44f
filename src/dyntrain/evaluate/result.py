"""All that is measured of a model, and the two calls that measure it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dyntrain.data.trajectory import Trajectory
from dyntrain.evaluate.audit import AuditCurve, Reference, audit, check_reference
from dyntrain.evaluate.criteria import FailureCriterion, criterion_for
from dyntrain.evaluate.distributions import MotionComparison, compare_motion
from dyntrain.evaluate.free import FreeRuns, draw_starts, free_runs
from dyntrain.evaluate.record import plain_record
from dyntrain.evaluate.rollouts import RolloutErrors, rollout_errors
from dyntrain.evaluate.settings import EvaluationSettings
from dyntrain.evaluate.speed import Speed, measure_speed
from dyntrain.evaluate.starts import Progress, pick_starts
from dyntrain.potential import Potential
from dyntrain.state import State

Tell = Callable[[str, int, int], None]
"""Called with (what is done, steps done, steps in all)."""


@dataclass(frozen=True, eq=False)
class ModelResult:
    """All that was measured of one model; None: not measured.

    rollout: against the recording, and on single structures
    free:    free runs; with an audit of a reactive system, what it found counts among their failures
    audit:   the model against the reference on its own way
    motion:  what the free runs look like beside the recording
    speed:   of the free runs' batch
    conservative: whether the forces are derivatives of the energy; else no integrator conserves it
    """

    name: str
    rollout: RolloutErrors
    free: FreeRuns | None = None
    audit: AuditCurve | None = None
    motion: MotionComparison | None = None
    speed: Speed | None = None
    conservative: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON (keys: docs/verdict.md); null where there is no finite number."""
        return {
            "name": self.name,
            "conservative": self.conservative,
            **plain_record(self.rollout, self.free, self.audit, self.motion, self.speed),
        }


def evaluate_model(
    name: str,
    potential: Potential,
    trajectories: Sequence[Trajectory],
    settings: EvaluationSettings | None = None,
    *,
    reference: Reference | None = None,
    progress: Tell | None = None,
) -> ModelResult:
    """Measure one model on held-out runs: see ``evaluate_models``."""
    return evaluate_models({name: potential}, trajectories, settings, reference=reference, progress=progress)[
        0
    ]


def evaluate_models(
    potentials: Mapping[str, Potential],
    trajectories: Sequence[Trajectory],
    settings: EvaluationSettings | None = None,
    *,
    reference: Reference | None = None,
    progress: Tell | None = None,
) -> list[ModelResult]:
    """Measure models on held-out runs, all from the same starts.

    Roll-outs against the recording; free runs from its frames until they fail; with a reference the audit of
    the structures the free runs visit; distributions and spectra of the free runs, and their speed, in turns.

    Args:
        potentials: name → model, on its device; the first is the control that factors are given against.
        trajectories: held-out runs with one time step.
        reference: labels structures; must be the method of the recording.
        progress: called after each step.

    Raises:
        UserError: no run, different time steps, an element that a model does not know, or a reference that is
            another method than the recording's.
    """
    settings = settings if settings is not None else EvaluationSettings()
    evaluation = _Evaluation(trajectories, settings, reference, progress)
    results = [evaluation.measure(name, potential) for name, potential in potentials.items()]
    if evaluation.starts is None:
        return results
    speeds = measure_speed(list(potentials.values()), evaluation.starts, trajectories[0].dt)
    return [dataclasses.replace(result, speed=speed) for result, speed in zip(results, speeds, strict=True)]


class _Evaluation:
    """What is the same for all models of an evaluation."""

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        settings: EvaluationSettings,
        reference: Reference | None,
        tell: Tell | None,
    ) -> None:
        self._trajectories, self._settings, self._tell = trajectories, settings, tell
        self._reference = reference
        self._agreement = check_reference(reference, trajectories) if reference else float("nan")
        self._criterion: FailureCriterion | None = None
        self.starts: State | None = None  # of the free runs, whose speed is measured as well
        if settings.n_free_runs:
            self._criterion = criterion_for(trajectories, settings.failure)
            self.starts = pick_starts(trajectories, settings.n_free_runs, settings.seed)
            if settings.free_temperature_K is not None:
                self.starts = draw_starts(self.starts, settings.free_temperature_K, settings.seed)

    def _telling(self, what: str) -> Progress | None:
        return None if self._tell is None else functools.partial(self._tell, what)

    def measure(self, name: str, potential: Potential) -> ModelResult:
        settings = self._settings
        against = rollout_errors(
            potential,
            self._trajectories,
            horizon_fs=settings.horizon_fs,
            n_starts=settings.n_starts,
            seed=settings.seed,
            progress=self._telling(f"{name}: roll-outs"),
        )
        if self._criterion is None or self.starts is None:
            return ModelResult(name, against, conservative=potential.conservative)
        free = free_runs(
            potential,
            self.starts,
            self._trajectories[0].dt,
            settings.free_length_fs,
            criterion=self._criterion,
            temperature_K=settings.free_temperature_K,
            progress=self._telling(f"{name}: free runs"),
        )
        motion = compare_motion(free, self._trajectories)
        curve = self._audit(name, potential, free)
        if curve is not None and self._criterion.audit_ratio is not None:
            free = free.failing_also(curve.exceeding(self._criterion.audit_ratio))
        return ModelResult(name, against, free, curve, motion, conservative=potential.conservative)

    def _audit(self, name: str, potential: Potential, free: FreeRuns) -> AuditCurve | None:
        if self._reference is None or not free.snapshots:
            return None
        return audit(
            potential,
            free,
            self._reference,
            agreement=self._agreement,
            max_runs=self._settings.audit_runs,
            progress=self._telling(f"{name}: audit"),
        )
