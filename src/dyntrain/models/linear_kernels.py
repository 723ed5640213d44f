"""Products of a matrix and a vector as parts of compiled kernels, for sizes that are constant there.

A matrix [n_out, n_in] is ``weight.view(-1)`` of a linear layer: in the innermost loops all lies at constant
distances, so that they become vector instructions. Several rows of it at once, so that results stay in
registers.
"""

from __future__ import annotations

from dyntrain.kernel import compiled_part


@compiled_part
def multiply(n_out, n_in, w, x, out):  # type: ignore[no-untyped-def]
    """out = W x."""
    zero = x.dtype.type(0.0)
    for o in range(0, n_out - 3, 4):
        a, b, c, d, rows = zero, zero, zero, zero, w[o * n_in :]
        for k in range(n_in):
            y = x[k]
            a += y * rows[k]
            b += y * rows[n_in + k]
            c += y * rows[2 * n_in + k]
            d += y * rows[3 * n_in + k]
        out[o], out[o + 1], out[o + 2], out[o + 3] = a, b, c, d
    for o in range(n_out // 4 * 4, n_out):
        a, rows = zero, w[o * n_in :]
        for k in range(n_in):
            a += x[k] * rows[k]
        out[o] = a


@compiled_part
def add_transposed(n_out, n_in, w, x, out):  # type: ignore[no-untyped-def]
    """out += Wᵀ x."""
    for k in range(0, n_out - 7, 8):
        a, b, c, d, e, f, g, h = x[k], x[k + 1], x[k + 2], x[k + 3], x[k + 4], x[k + 5], x[k + 6], x[k + 7]
        rows = w[k * n_in :]
        for o in range(n_in):
            out[o] += (
                a * rows[o]
                + b * rows[n_in + o]
                + c * rows[2 * n_in + o]
                + d * rows[3 * n_in + o]
                + e * rows[4 * n_in + o]
                + f * rows[5 * n_in + o]
                + g * rows[6 * n_in + o]
                + h * rows[7 * n_in + o]
            )
    for k in range(n_out // 8 * 8, n_out):
        a, rows = x[k], w[k * n_in :]
        for o in range(n_in):
            out[o] += a * rows[o]
