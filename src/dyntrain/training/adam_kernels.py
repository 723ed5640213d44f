"""Adam and the running average of a weight compiled for one thread of a CPU.

Arrays are flat and of one floating point type.
"""

from __future__ import annotations

import numpy as np

from dyntrain.kernel import compiled

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


@compiled
def squared_norm(gradient):  # type: ignore[no-untyped-def]
    """In double precision."""
    total = 0.0
    for c in range(gradient.shape[0]):
        total += float(gradient[c]) * float(gradient[c])
    return total


@compiled
def step(weight, gradient, mean, square, scale, lr, n_steps):  # type: ignore[no-untyped-def]
    """The ``n_steps``-th, by the scaled gradient and the running means of it and its square."""
    number = weight.dtype.type
    rate = number(lr / (1.0 - BETA1**n_steps))
    root = number(1.0 / np.sqrt(1.0 - BETA2**n_steps))
    new1, new2, eps, factor = number(1.0 - BETA1), number(1.0 - BETA2), number(EPS), number(scale)
    for c in range(weight.shape[0]):
        x = gradient[c] * factor
        mean[c] += new1 * (x - mean[c])
        square[c] += new2 * (x * x - square[c])
        weight[c] -= rate * mean[c] / (np.sqrt(square[c]) * root + eps)


@compiled
def approach(average, weight, fraction):  # type: ignore[no-untyped-def]
    """Go so far from the average to the weight."""
    part = average.dtype.type(fraction)
    for c in range(average.shape[0]):
        average[c] += part * (weight[c] - average[c])
