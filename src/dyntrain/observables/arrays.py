"""The array types that all observables speak."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def finite_or_none(value: float) -> float | None:
    """A plain number for JSON, which knows neither infinity nor NaN: those become null."""
    return float(value) if np.isfinite(value) else None


def slope(x: FloatArray, y: FloatArray) -> float:
    """Slope of the least-squares line through the points."""
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())
