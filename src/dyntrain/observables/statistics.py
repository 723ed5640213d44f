"""Means with error bars from independent samples, and how far two curves are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dyntrain.observables.arrays import FloatArray


@dataclass(frozen=True, eq=False)
class Estimate:
    """mean: [n_x]; error: standard error of the mean, [n_x], NaN where there is one sample only."""

    mean: FloatArray
    error: FloatArray
    n_samples: int


def estimate(samples: FloatArray) -> Estimate:
    """Mean and standard error over samples (blocks of a run, or runs), [n_samples, n_x].

    Samples must be long against the correlation time; where they are not, the error bar is too small
    (H. Flyvbjerg & H. G. Petersen, J. Chem. Phys. 91, 461 (1989)).
    """
    n = len(samples)
    error = samples.std(0, ddof=1) / np.sqrt(n) if n > 1 else np.full(samples.shape[1], np.nan)
    return Estimate(samples.mean(0), error, n)


def distance_between(one: Estimate, other: Estimate, widths: FloatArray) -> tuple[float, float]:
    """∫|one − other| dx, and what chance makes of it where both are samples of the same curve.

    For normal errors the mean of |one − other| is √(2/π) of its standard deviation; NaN where an error bar is
    not known.

    Args:
        widths: of the bins, [n_x].
    """
    found = float((np.abs(one.mean - other.mean) * widths).sum())
    spread = np.sqrt(2.0 / np.pi * (one.error**2 + other.error**2))
    return found, float((spread * widths).sum())
