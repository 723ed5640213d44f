"""How long is a model right: roll-outs against a recorded run, free runs until they fail, and the verdict."""

from dyntrain.evaluate.free import FailureCriterion, FreeRuns, criterion_for, free_runs
from dyntrain.evaluate.result import ModelResult, evaluate_model
from dyntrain.evaluate.rollouts import MARKS_FS, OneStepErrors, RolloutErrors, one_step_errors, rollout_errors
from dyntrain.evaluate.starts import Progress, pick_starts
from dyntrain.evaluate.table import summary_rows
from dyntrain.evaluate.verdict import Verdict, judge

__all__ = [
    "MARKS_FS",
    "FailureCriterion",
    "FreeRuns",
    "ModelResult",
    "OneStepErrors",
    "Progress",
    "RolloutErrors",
    "Verdict",
    "criterion_for",
    "evaluate_model",
    "free_runs",
    "judge",
    "one_step_errors",
    "pick_starts",
    "rollout_errors",
    "summary_rows",
]
