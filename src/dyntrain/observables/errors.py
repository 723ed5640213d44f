"""Errors of batches, of many starts, and how fast small deviations grow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dyntrain.observables.arrays import FloatArray, IntArray, slope

# --- errors of one frame of a batch -------------------------------------------------------------------


def mae_per_system(difference: FloatArray, system_idx: IntArray, n_systems: int) -> FloatArray:
    """Mean absolute value over the components of each system.

    Args:
        difference: predicted − reference vectors, [n_atoms, 3].
        system_idx: system of each atom, [n_atoms].

    Returns:
        [n_systems] in the unit of ``difference``; NaN for a system without atoms.
    """
    return _mean_per_group(np.abs(difference).mean(-1), system_idx, n_systems)


def rmse_per_system(difference: FloatArray, system_idx: IntArray, n_systems: int) -> FloatArray:
    """Root mean square over the components of each system; arguments as in ``mae_per_system``."""
    return np.sqrt(_mean_per_group((difference**2).mean(-1), system_idx, n_systems))


def displacement_per_system(difference: FloatArray, system_idx: IntArray, n_systems: int) -> FloatArray:
    """Root mean square distance over the atoms of each system, sqrt(mean_i |Δr_i|²), without alignment.

    Args:
        difference: predicted − reference positions, [n_atoms, 3] Å; other arguments as in ``mae_per_system``.
    """
    return np.sqrt(_mean_per_group((difference**2).sum(-1), system_idx, n_systems))


def mae_per_element(
    difference: FloatArray,
    atomic_numbers: IntArray,
    system_idx: IntArray,
    elements: Sequence[int],
    n_systems: int,
) -> FloatArray:
    """Mean absolute value over the components of each element's atoms, system by system.

    Args:
        difference: predicted − reference vectors, [n_atoms, 3].
        elements: atomic numbers, in the order of the answer.

    Returns:
        [n_systems, n_elements]; NaN where a system has no atom of the element.
    """
    column = np.searchsorted(np.sort(elements), atomic_numbers)
    group = system_idx * len(elements) + np.argsort(elements)[column]
    mean = _mean_per_group(np.abs(difference).mean(-1), group, n_systems * len(elements))
    return mean.reshape(n_systems, len(elements))


def _mean_per_group(values: FloatArray, group: IntArray, n_groups: int) -> FloatArray:
    counts = np.bincount(group, minlength=n_groups)
    sums = np.bincount(group, weights=values, minlength=n_groups)
    return np.divide(sums, counts, out=np.full(n_groups, np.nan), where=counts > 0)


# --- many starts at once ------------------------------------------------------------------------------


def quantile_over_starts(errors: FloatArray, q: float) -> FloatArray:
    """Quantile over starts, where a start that has burst counts as infinitely wrong.

    Leaving the burst ones out would make a model look better each time it breaks.

    Args:
        errors: [n_times, n_starts], NaN from the time a start has burst.
        q: 0 … 1, linear between neighbours.

    Returns:
        [n_times]; infinite where the quantile falls among the burst starts.
    """
    ordered = np.sort(np.where(np.isnan(errors), np.inf, errors), axis=1)
    place = q * (ordered.shape[1] - 1)
    low, high, weight = int(np.floor(place)), int(np.ceil(place)), place - np.floor(place)
    if low == high:  # inf · 0 would be NaN
        return ordered[:, low]
    return (1.0 - weight) * ordered[:, low] + weight * ordered[:, high]


def doubling_time(times: FloatArray, deviations: FloatArray, ceiling: float) -> float | None:
    """Time in which small deviations double: ln 2 / slope of a straight line through ln(deviation).

    Two runs of the *true* potential from starts a hair apart drift apart, too; this tells how much of an
    error versus time is chaos and not the model's fault.

    Args:
        times: [n_times], any unit.
        deviations: distance of the twin runs, [n_times] or [n_times, n_starts] (averaged as logarithms).
        ceiling: the fit ends where the (mean) deviation first exceeds this: it is small no longer.

    Returns:
        The doubling time in the unit of ``times``; None when the deviations do not double within the times
        given, or leave fewer than three points below the ceiling.
    """
    with np.errstate(divide="ignore"):
        logs = np.log(deviations.reshape(len(times), -1)).mean(-1)
    above = np.flatnonzero(~(logs <= np.log(ceiling)))
    stop = int(above[0]) if above.size else len(times)
    if stop < 3:
        return None
    growth = slope(times[:stop], logs[:stop])
    doubled = growth * (times[stop - 1] - times[0]) >= np.log(2.0)
    return float(np.log(2.0) / growth) if doubled else None
