"""What the default network without autograd does for each atom, compiled for one thread of a CPU.

Three parts of ``egnn_compiled``: what comes before the messages, what comes after them together with its
adjoint, and the adjoint of the first. A few atoms at a time, so that a product's weights stay in the
processor's cache from one to the next. ``w``: features of an atom, ``n``: channels.

    density             [n_atoms, 9, slots]
    vw, tu              [n_atoms, 6n], [n_atoms, 10n]     as in ``egnn_product_kernels``
    h, slopes           [n_atoms, w]                      features, SiLU′ of the first perceptron
    messages, sent      [n_atoms, 5n]                     as in ``message_kernels``

``_bar`` is the gradient of the energy in units of the network's force scale. Weights in the order of
``EGNN.__init__``, matrices flat (``linear_kernels``). Arrays are C-contiguous and of one floating point type,
indices int64.
"""

from __future__ import annotations

from dyntrain.kernel import compiled_part
from dyntrain.models.egnn_product_kernels import (
    first_of_atom,
    pull_back_first_of_atom,
    pull_back_second_of_atom,
    second_of_atom,
)
from dyntrain.models.linear_kernels import add_transposed, multiply
from dyntrain.models.silu_kernels import silu_row

AT_A_TIME = 16
"""Atoms."""


def room_widths(w: int, n: int) -> tuple[int, ...]:
    """Of the parts' ``room``: each is [AT_A_TIME, width]."""
    return w + 10 * n, w, w, w, 12 * n


@compiled_part
def before_messages(w, n, density, columns, weights, room, vw, tu, h, slopes, sent):  # type: ignore[no-untyped-def]
    """Fills the last five."""
    mixing, centre, w1, b1, w2, b2, _, send, send_bias, send_vectors = weights[:10]
    xs, act = room[:2]
    n_atoms, slots = density.shape[0], density.shape[2]
    for start in range(0, n_atoms, AT_A_TIME):
        atoms = range(start, min(start + AT_A_TIME, n_atoms))
        for a in atoms:
            x, of = xs[a - start], density[a]
            vw[a], tu[a] = 0.0, 0.0
            for c in range(w):
                x[c] = centre[columns[a], c]
            for c in range(w, w + 2 * n):
                x[c] = 0.0
            add_transposed(slots, 2 * n, mixing[0], of[0], x[w:])
            for k in range(3):
                add_transposed(slots, 2 * n, mixing[1], of[1 + k], vw[a, 2 * n * k :])
            for k in range(5):
                add_transposed(slots, 2 * n, mixing[2], of[4 + k], tu[a, 2 * n * k :])
            first_of_atom(n, vw[a], tu[a], x[w + 2 * n :])
        for a in atoms:
            multiply(w, w + 7 * n, w1, xs[a - start], act[a - start])
            silu_row(b1, act[a - start], slopes[a])
        for a in atoms:
            x, to, out = xs[a - start], h[a], sent[a]
            multiply(w, w, w2, act[a - start], to)
            for c in range(w):
                to[c] += b2[c] + x[c]
            multiply(2 * n, w, send, to, out)
            for c in range(2 * n):
                out[c] += send_bias[c]
            for k in range(3):
                multiply(n, n, send_vectors, x[w + (7 + k) * n :], out[(2 + k) * n :])


@compiled_part
def after_messages(  # type: ignore[no-untyped-def]
    w, n, messages, h, vw, tu, weights, room, per_atom, vw_bar, tu_bar, h_bar
):
    """Fills the last four; the messages' gradients take their place."""
    receive_vectors, w1, b1, w2, b2, r1, rb1, r2, rb2 = weights[10:]
    xs, act, bend, top, zys = room
    for start in range(0, h.shape[0], AT_A_TIME):
        atoms = range(start, min(start + AT_A_TIME, h.shape[0]))
        for a in atoms:
            x, zy, came = xs[a - start], zys[a - start], messages[a]
            for c in range(w):
                x[c] = h[a, c]
            for c in range(2 * n):
                x[w + c] = came[c]
            for c in range(3 * n):
                zy[c] = came[2 * n + c]
            for k in range(3):
                multiply(n, n, receive_vectors, zy[k * n :], zy[(3 + k) * n :])
            second_of_atom(n, zy, vw[a], tu[a], x[w + 2 * n :])
        for a in atoms:
            multiply(w, w + 5 * n, w1, xs[a - start], act[a - start])
            silu_row(b1, act[a - start], bend[a - start])
        for a in atoms:
            x, out, of_top = xs[a - start], h_bar[a], top[a - start]
            multiply(w, w, w2, act[a - start], out)
            for c in range(w):
                out[c] += b2[c] + x[c]
            multiply(w, w, r1, out, of_top)
            silu_row(rb1, of_top, out)
            energy = rb2[0]
            for c in range(w):
                energy += of_top[c] * r2[c]
                of_top[c] = r2[c] * out[c]  # from here on back
                out[c] = 0.0
            per_atom[a] = energy
            add_transposed(w, w, r1, of_top, out)
        for a in atoms:
            x, out = act[a - start], bend[a - start]
            for c in range(w):
                x[c] = 0.0
            add_transposed(w, w, w2, h_bar[a], x)
            for c in range(w):
                out[c] *= x[c]
        for a in atoms:
            x, zy, came = xs[a - start], zys[a - start], messages[a]
            for c in range(w + 5 * n):
                x[c] = 0.0
            add_transposed(w, w + 5 * n, w1, bend[a - start], x)
            for c in range(w):
                h_bar[a, c] += x[c]
            vw_bar[a], tu_bar[a] = 0.0, 0.0
            zy_bar = zy[6 * n :]
            pull_back_second_of_atom(n, x[w + 2 * n :], zy, vw[a], tu[a], zy_bar, vw_bar[a], tu_bar[a])
            for c in range(2 * n):
                came[c] = x[w + c]
            for c in range(3 * n):
                came[2 * n + c] = zy_bar[c]
            for k in range(3):
                add_transposed(n, n, receive_vectors, zy_bar[(3 + k) * n :], came[(2 + k) * n :])


@compiled_part
def back_from_messages(  # type: ignore[no-untyped-def]
    w, n, sent_bar, vw, tu, slopes, weights, room, vw_bar, tu_bar, h_bar, density
):
    """The last four are used up; the densities' gradient takes their place."""
    mixing, _, w1, _, w2, _, _, send, _, send_vectors = weights[:10]
    xs, act = room[:2]
    n_atoms, slots = density.shape[0], density.shape[2]
    for start in range(0, n_atoms, AT_A_TIME):
        atoms = range(start, min(start + AT_A_TIME, n_atoms))
        for a in atoms:
            x = act[a - start]
            add_transposed(2 * n, w, send, sent_bar[a], h_bar[a])
            for c in range(w):
                x[c] = 0.0
            add_transposed(w, w, w2, h_bar[a], x)
            for c in range(w):
                x[c] *= slopes[a, c]
        for a in atoms:
            x, out = xs[a - start], density[a]
            x[:] = 0.0
            add_transposed(w, w + 7 * n, w1, act[a - start], x)
            for k in range(3):
                add_transposed(n, n, send_vectors, sent_bar[a, (2 + k) * n :], x[w + (7 + k) * n :])
            pull_back_first_of_atom(n, x[w + 2 * n :], vw[a], tu[a], vw_bar[a], tu_bar[a])
            multiply(slots, 2 * n, mixing[0], x[w:], out[0])
            for k in range(3):
                multiply(slots, 2 * n, mixing[1], vw_bar[a, 2 * n * k :], out[1 + k])
            for k in range(5):
                multiply(slots, 2 * n, mixing[2], tu_bar[a, 2 * n * k :], out[4 + k])
