"""Adam and the running average of weights compiled for one thread of a CPU.

Weights, gradients and averages are tuples of flat arrays, all of one floating point type. What is kept of the
gradients lies in one array; that of a weight begins at its number in ``starts``.
"""

from __future__ import annotations

import numpy as np

from dyntrain.kernel import compiled

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


@compiled
def squared_norm(gradients):  # type: ignore[no-untyped-def]
    """In double precision."""
    total = 0.0
    for gradient in gradients:
        for c in range(gradient.shape[0]):
            total += float(gradient[c]) * float(gradient[c])
    return total


@compiled
def step(weights, gradients, chosen, starts, steps, means, squares, scale, lr):  # type: ignore[no-untyped-def]
    """One step of the chosen weights; their gradients are scaled. ``steps``: made before, [n_weights]."""
    number = means.dtype.type
    new1, new2, eps, factor = number(1.0 - BETA1), number(1.0 - BETA2), number(EPS), number(scale)
    for k in range(len(weights)):
        weight, gradient, at = weights[k], gradients[k], starts[chosen[k]]
        n = weight.shape[0]
        mean, square = means[at : at + n], squares[at : at + n]
        steps[chosen[k]] += 1.0
        made = steps[chosen[k]]
        rate = number(lr / (1.0 - BETA1**made))
        root = number(1.0 / np.sqrt(1.0 - BETA2**made))
        for c in range(n):
            x = gradient[c] * factor
            mean[c] += new1 * (x - mean[c])
            square[c] += new2 * (x * x - square[c])
            weight[c] -= rate * mean[c] / (np.sqrt(square[c]) * root + eps)


@compiled
def approach(averages, weights, fraction):  # type: ignore[no-untyped-def]
    """Go so far from each average to its weight."""
    for k in range(len(weights)):
        average, weight = averages[k], weights[k]
        part = average.dtype.type(fraction)
        for c in range(average.shape[0]):
            average[c] += part * (weight[c] - average[c])
