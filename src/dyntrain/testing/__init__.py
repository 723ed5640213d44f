"""The contract that every potential passes, as plain checks to run on your own model."""

from dyntrain.testing.agreement import FLOAT32, FLOAT64, Tolerances
from dyntrain.testing.contract import check_potential
from dyntrain.testing.derivatives import check_forces, check_parameter_gradients, check_second_derivatives
from dyntrain.testing.output import check_graph, check_input_untouched, check_output
from dyntrain.testing.physics import (
    check_batch,
    check_extensive,
    check_permutation,
    check_rotation,
    check_smooth_cutoff,
    check_translation,
)
from dyntrain.testing.rollouts import check_adjoint, check_rollout_gradient

__all__ = [
    "FLOAT32",
    "FLOAT64",
    "Tolerances",
    "check_adjoint",
    "check_batch",
    "check_extensive",
    "check_forces",
    "check_graph",
    "check_input_untouched",
    "check_output",
    "check_parameter_gradients",
    "check_permutation",
    "check_potential",
    "check_rollout_gradient",
    "check_rotation",
    "check_second_derivatives",
    "check_smooth_cutoff",
    "check_translation",
]
