"""Pairs of atoms by compiled loops: found, kept while they are near, and what each is for without a gradient.

``find_pairs`` finds what vesin finds, for a batch at once and sooner than its pairs could be looked up;
``keep_near`` keeps what ``neighbors`` keeps by PyTorch's operations. Arrays are C-contiguous, float64, int64
and bool.
"""

from __future__ import annotations

import math

import numpy as np

from dyntrain.kernel import compiled, compiled_as_written, compiled_part, compiled_with_arrays


@compiled
def fill_inverse(cell, inverse):  # type: ignore[no-untyped-def]
    """The inverse of a cell: its columns are normal to the planes that bound the cell."""
    for k in range(3):
        a, b = cell[(k + 1) % 3], cell[(k + 2) % 3]
        inverse[0, k] = a[1] * b[2] - a[2] * b[1]
        inverse[1, k] = a[2] * b[0] - a[0] * b[2]
        inverse[2, k] = a[0] * b[1] - a[1] * b[0]
    inverse /= cell[0, 0] * inverse[0, 0] + cell[0, 1] * inverse[1, 0] + cell[0, 2] * inverse[2, 0]


@compiled
def is_wide(inverse, pbc, width):  # type: ignore[no-untyped-def]
    """Whether the planes that bound a cell are further apart than ``width`` where it repeats."""
    for k in range(3):
        apart = 1.0 / math.sqrt(inverse[0, k] ** 2 + inverse[1, k] ** 2 + inverse[2, k] ** 2)
        if pbc[k] and not apart > width:
            return False
    return True


@compiled
def fill_fractions(positions, inverse, most, fractions):  # type: ignore[no-untyped-def]
    """Positions in units of the cell's vectors, [3, n_atoms]; whether all are numbers up to ``most``."""
    inside = True
    for k in range(3):
        for a in range(positions.shape[0]):
            r = positions[a]
            fractions[k, a] = r[0] * inverse[0, k] + r[1] * inverse[1, k] + r[2] * inverse[2, k]
            inside &= abs(fractions[k, a]) <= most  # not so for NaN
    return inside


@compiled
def look_from(i, fractions, cell, repeats, images, squares):  # type: ignore[no-untyped-def]
    """At all later atoms from atom i: which image of each is nearest (shifts), and how far it is, squared.

    Args:
        fractions: [3, n_atoms].
        repeats: 1 or 0 for each vector of the cell, [3].
        images: filled, [3, n_atoms].
        squares: filled, [n_atoms].
    """
    # Rows from the first of them on: an index that might be negative would be asked about each time.
    xs, ys, zs = fractions[0, i:], fractions[1, i:], fractions[2, i:]
    image0, image1, image2, squares = images[0, i:], images[1, i:], images[2, i:], squares[i:]
    x0, y0, z0, p, q, r = xs[0], ys[0], zs[0], repeats[0], repeats[1], repeats[2]
    xx, xy, xz = cell[0, 0], cell[0, 1], cell[0, 2]
    yx, yy, yz = cell[1, 0], cell[1, 1], cell[1, 2]
    zx, zy, zz = cell[2, 0], cell[2, 1], cell[2, 2]
    for j in range(1, squares.shape[0]):
        x, y, z = xs[j] - x0, ys[j] - y0, zs[j] - z0
        # Rounded, so that what is left is at most half a cell.
        a, b, c = p * np.floor(0.5 - x), q * np.floor(0.5 - y), r * np.floor(0.5 - z)
        image0[j], image1[j], image2[j] = a, b, c
        x, y, z = x + a, y + b, z + c
        r0, r1, r2 = x * xx + y * yx + z * zx, x * xy + y * yy + z * zy, x * xz + y * yz + z * zz
        squares[j] = r0 * r0 + r1 * r1 + r2 * r2


@compiled_with_arrays
def find_pairs(positions, sizes, cells, pbc, cutoff, hair, most_cells):  # type: ignore[no-untyped-def]
    """Pairs closer than ``cutoff`` and a hair, in canonical order, with atoms numbered through the batch.

    Only the nearest image of each atom is looked at (why that will do: ``neighbor_search.search_at_once``).

    Args:
        positions: [n_atoms, 3].
        sizes: atoms of each system, [n_systems].
        cells: [n_systems, 3, 3].
        pbc: [n_systems, 3].
        hair: Å, by which the search looks further.
        most_cells: away from the origin an atom may be.

    Returns:
        i, j [n_pairs], shifts [n_pairs, 3], and how many pairs are within a hair of the cutoff; that is −1
        where the nearest image would not do or is not known: cells too narrow, atoms too far or not numbers.
    """
    inner, outer = (cutoff - hair) ** 2, (cutoff + hair) ** 2
    n_most = (sizes * (sizes - 1)).sum() // 2
    first, second, shifts = np.empty(n_most, np.int64), np.empty(n_most, np.int64), np.empty((n_most, 3))
    inverse = np.empty((3, 3))
    n_pairs = n_close = start = 0
    for s in range(sizes.shape[0]):
        n = sizes[s]
        images, fractions, squares = np.empty((3, n)), np.empty((3, n)), np.empty(n)
        cell = cells[s] if pbc[s].any() else np.eye(3)
        fill_inverse(cell, inverse)
        inside = fill_fractions(positions[start : start + n], inverse, most_cells, fractions)
        if not (inside and is_wide(inverse, pbc[s], 2.0 * (cutoff + hair))):
            return first[:0], second[:0], shifts[:0], -1
        repeats = pbc[s].astype(np.float64)
        for i in range(n):
            look_from(i, fractions, cell, repeats, images, squares)
            for j in range(i + 1, n):
                if squares[j] < outer:
                    first[n_pairs], second[n_pairs] = start + i, start + j
                    for k in range(3):
                        shifts[n_pairs, k] = images[k, j]
                    n_pairs += 1
                    n_close += squares[j] >= inner
        start += n
    return first[:n_pairs], second[:n_pairs], shifts[:n_pairs], n_close


@compiled_part
def vector_of_pair(here, there, is_periodic, cell, shift):  # type: ignore[no-untyped-def]
    """r_ij from the positions of i and j; ``is_periodic``: whether there are images at all."""
    x, y, z = there[0] - here[0], there[1] - here[1], there[2] - here[2]
    if is_periodic:
        x += shift[0] * cell[0, 0] + shift[1] * cell[1, 0] + shift[2] * cell[2, 0]
        y += shift[0] * cell[0, 1] + shift[1] * cell[1, 1] + shift[2] * cell[2, 1]
        z += shift[0] * cell[0, 2] + shift[1] * cell[1, 2] + shift[2] * cell[2, 2]
    return x, y, z


@compiled
def fill_vectors(positions, system_idx, cells, is_periodic, i, j, shifts, vectors):  # type: ignore[no-untyped-def]
    """``neighbors.pair_vectors``."""
    for p in range(i.shape[0]):
        here, there, cell = positions[i[p]], positions[j[p]], cells[system_idx[i[p]]]
        vectors[p, 0], vectors[p, 1], vectors[p, 2] = vector_of_pair(
            here, there, is_periodic, cell, shifts[p]
        )


@compiled
def add_forces(i, j, slopes, forces):  # type: ignore[no-untyped-def]
    """What pulls i forth pulls j back: adds dE/dr_ij [n_pairs, 3] to forces [n_atoms, 3]."""
    for p in range(i.shape[0]):
        here, there, slope = forces[i[p]], forces[j[p]], slopes[p]
        for k in range(3):
            here[k] += slope[k]
            there[k] -= slope[k]


@compiled
def has_moved(old, new, limit):  # type: ignore[no-untyped-def]
    """Whether an atom is further away than ``limit``, or nobody knows where (NaN)."""
    for a in range(old.shape[0]):
        x, y, z = new[a, 0] - old[a, 0], new[a, 1] - old[a, 1], new[a, 2] - old[a, 2]
        if not x * x + y * y + z * z <= limit * limit:
            return True
    return False


@compiled_as_written
def keep_near(positions, system_idx, cells, is_periodic, i, j, shifts, cutoff):  # type: ignore[no-untyped-def]
    """The pairs i, j [n_pairs], shifts [n_pairs, 3] that are closer than the cutoff, in their order.

    Args:
        positions: [n_atoms, 3].
        system_idx: [n_atoms].
        cells: [n_systems, 3, 3].
        is_periodic: whether there are images at all.
    """
    first, second, images = np.empty_like(i), np.empty_like(j), np.empty_like(shifts)
    n_near, r = 0, np.empty(3)
    for p in range(i.shape[0]):
        cell, shift = cells[system_idx[i[p]]], shifts[p]
        for k in range(3):
            r[k] = positions[j[p], k] - positions[i[p], k]
            if is_periodic:
                r[k] += shift[0] * cell[0, k] + shift[1] * cell[1, k] + shift[2] * cell[2, k]
        if r[0] * r[0] + r[1] * r[1] + r[2] * r[2] < cutoff**2:
            first[n_near], second[n_near] = i[p], j[p]
            for k in range(3):
                images[n_near, k] = shift[k]
            n_near += 1
    return first[:n_near], second[:n_near], images[:n_near]
