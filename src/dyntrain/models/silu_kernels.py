"""SiLU for compiled kernels, written out so that its exponential becomes vector instructions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import float32, int32, njit, types
from numba.extending import overload

from dyntrain.kernel import compiled_part


@njit(inline="always")
def sigmoid(y):  # type: ignore[no-untyped-def]
    """1/(1 + e⁻ʸ) of single precision to 3e-7; calls of a library's exponential are not vectorised."""
    x = min(max(y, float32(-87.0)), float32(87.0))
    # e⁻ˣ = 2ᵏ e⁻ᶠ, |f| ≤ ln 2 / 2, ln 2 in two parts
    k = np.floor(x * float32(-1.4426950408889634) + float32(0.5))
    f = (x + k * float32(0.693359375)) - k * float32(2.12194440e-4)
    # 1 − f + …: its largest relative error in this range, 1e-7, is as small as five terms can make it
    p = float32(0.0418901569) - float32(0.00831252022) * f
    p = p * f - float32(0.166671146)
    p = p * f + float32(0.499992315)
    p = (p * f - float32(1.0)) * f + float32(1.0)
    power = np.int32((int32(k) + int32(127)) << int32(23)).view(np.float32)
    return float32(1.0) / (float32(1.0) + p * power)


@njit(inline="always")
def silu(y):  # type: ignore[no-untyped-def]
    """In single precision."""
    return y * sigmoid(y)


@njit(inline="always")
def silu_slope(y):  # type: ignore[no-untyped-def]
    """SiLU′ in single precision."""
    s = sigmoid(y)
    return s * (float32(1.0) + y * (float32(1.0) - s))


def _any_sigmoid(y: Any) -> Any: ...


@overload(_any_sigmoid)
def _sigmoid_for(y):  # type: ignore[no-untyped-def]
    if y == types.float32:
        return lambda y: sigmoid(y)
    return lambda y: 1.0 / (1.0 + math.exp(-y))


@compiled_part
def silu_row(bias, x, slope):  # type: ignore[no-untyped-def]
    """SiLU(x + b) in place of x, and its slope; of either precision."""
    one = x.dtype.type(1.0)
    for c in range(x.shape[0]):
        y = x[c] + bias[c]
        s = _any_sigmoid(y)
        x[c] = y * s
        slope[c] = s * (one + y * (one - s))
