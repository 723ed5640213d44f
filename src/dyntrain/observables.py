"""Observables: pure functions on arrays that turn roll-outs and free runs into the numbers we report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

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
    growth = _slope(times[:stop], logs[:stop])
    doubled = growth * (times[stop - 1] - times[0]) >= np.log(2.0)
    return float(np.log(2.0) / growth) if doubled else None


def finite_or_none(value: float) -> float | None:
    """A plain number for JSON, which knows neither infinity nor NaN: those become null."""
    return float(value) if np.isfinite(value) else None


# --- energy conservation ------------------------------------------------------------------------------


def energy_drift(times_fs: FloatArray, total_energy: FloatArray, n_atoms: int) -> float:
    """Drift of the total energy: slope of the least-squares line, meV/atom/ps (as ml-peg reports it).

    Args:
        times_fs: [n_times] fs.
        total_energy: potential + kinetic energy of one system, [n_times] eV.

    Raises:
        ValueError: fewer than three times.
    """
    if len(times_fs) < 3:
        raise ValueError(f"a drift needs at least 3 times, got {len(times_fs)}")
    return 1e6 * _slope(times_fs, total_energy) / n_atoms


def _slope(x: FloatArray, y: FloatArray) -> float:
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())


# --- time to failure ----------------------------------------------------------------------------------


def bond_lengths(positions: FloatArray, first: IntArray, second: IntArray, offsets: FloatArray) -> FloatArray:
    """Lengths |x_second − x_first + offset|, [n_bonds] Å.

    Args:
        positions: [n_atoms, 3] Å, unwrapped.
        first, second: atoms of each bond, [n_bonds].
        offsets: lattice vector that belongs to each bond, [n_bonds, 3] Å.
    """
    return np.sqrt(((positions[second] - positions[first] + offsets) ** 2).sum(-1))


def kaplan_meier(times: FloatArray, failed: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Share of runs still whole after each failure (Kaplan & Meier, J. Am. Stat. Assoc. 53, 457 (1958)).

    Args:
        times: time of failure, or of the end of the run, [n_runs].
        failed: False where the run ended whole (censored), [n_runs].

    Returns:
        (times of failures, ascending [n_events]; share still whole just after each [n_events]).
    """
    event_times = np.unique(times[failed])
    at_risk = (times[None, :] >= event_times[:, None]).sum(1)
    events = ((times[None, :] == event_times[:, None]) & failed[None, :]).sum(1)
    return event_times, np.cumprod(1.0 - events / np.maximum(at_risk, 1))


def median_time_to_failure(times: FloatArray, failed: BoolArray) -> float | None:
    """First time at which at most half of the runs are whole (Kaplan–Meier); None if there is none."""
    event_times, survival = kaplan_meier(times, failed)
    # A survival of one half made of rounded factors may lie a hair above it.
    below = np.flatnonzero(survival <= 0.5 + 1e-12)
    return float(event_times[below[0]]) if below.size else None


def restricted_mean_time_to_failure(times: FloatArray, failed: BoolArray, run_length: float) -> float:
    """Mean time whole within ``run_length``: the area under the Kaplan–Meier curve up to it.

    Unlike a mean over the failed runs it uses the whole ones, too, and it needs no assumption about what
    happens after the end of the runs.
    """
    event_times, survival = kaplan_meier(times, failed)
    within = event_times < run_length
    edges = np.concatenate([[0.0], event_times[within], [run_length]])
    heights = np.concatenate([[1.0], survival[within]])
    return float((np.diff(edges) * heights).sum())
