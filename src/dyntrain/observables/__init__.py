"""Observables: pure functions on arrays that turn roll-outs and free runs into the numbers we report."""

from dyntrain.observables.arrays import BoolArray, FloatArray, IntArray, finite_or_none
from dyntrain.observables.dynamics import WAVENUMBER, mean_square_displacement, vdos
from dyntrain.observables.energy import energy_drift, nve_score, stability_score
from dyntrain.observables.errors import (
    displacement_per_system,
    doubling_time,
    mae_per_element,
    mae_per_system,
    quantile_over_starts,
    rmse_per_system,
)
from dyntrain.observables.statistics import Estimate, distance_between, estimate
from dyntrain.observables.structure import angles, bond_lengths, density, rdf
from dyntrain.observables.survival import (
    Factor,
    SurvivalCurve,
    failure_factor,
    kaplan_meier,
    log_rank_test,
    median_interval,
    median_time_to_failure,
    restricted_mean_time_to_failure,
    survival_curve,
)

__all__ = [
    "WAVENUMBER",
    "BoolArray",
    "Estimate",
    "Factor",
    "FloatArray",
    "IntArray",
    "SurvivalCurve",
    "angles",
    "bond_lengths",
    "density",
    "displacement_per_system",
    "distance_between",
    "doubling_time",
    "energy_drift",
    "estimate",
    "failure_factor",
    "finite_or_none",
    "kaplan_meier",
    "log_rank_test",
    "mae_per_element",
    "mae_per_system",
    "mean_square_displacement",
    "median_interval",
    "median_time_to_failure",
    "nve_score",
    "quantile_over_starts",
    "rdf",
    "restricted_mean_time_to_failure",
    "rmse_per_system",
    "stability_score",
    "survival_curve",
    "vdos",
]
