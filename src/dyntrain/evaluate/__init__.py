"""How long is a model right: roll-outs, free runs and their audit against the recording, and the verdict."""

from dyntrain.evaluate.audit import AuditCurve, Reference, audit, check_reference, to_atoms
from dyntrain.evaluate.criteria import FailureCriterion, criterion_for
from dyntrain.evaluate.distributions import MotionComparison, compare_motion
from dyntrain.evaluate.free import AUDIT_TIMES_FS, FreeRuns, Snapshot, draw_starts, free_runs
from dyntrain.evaluate.result import ModelResult, evaluate_model, evaluate_models
from dyntrain.evaluate.rollouts import MARKS_FS, OneStepErrors, RolloutErrors, one_step_errors, rollout_errors
from dyntrain.evaluate.settings import EvaluationSettings
from dyntrain.evaluate.speed import Speed, measure_speed
from dyntrain.evaluate.starts import Progress, pick_starts
from dyntrain.evaluate.table import summary_rows
from dyntrain.evaluate.verdict import Usable, Verdict, factor_sentence, judge, usable

__all__ = [
    "AUDIT_TIMES_FS",
    "MARKS_FS",
    "AuditCurve",
    "EvaluationSettings",
    "FailureCriterion",
    "FreeRuns",
    "ModelResult",
    "MotionComparison",
    "OneStepErrors",
    "Progress",
    "Reference",
    "RolloutErrors",
    "Snapshot",
    "Speed",
    "Usable",
    "Verdict",
    "audit",
    "check_reference",
    "compare_motion",
    "criterion_for",
    "draw_starts",
    "evaluate_model",
    "evaluate_models",
    "factor_sentence",
    "free_runs",
    "judge",
    "measure_speed",
    "one_step_errors",
    "pick_starts",
    "rollout_errors",
    "summary_rows",
    "to_atoms",
    "usable",
]
