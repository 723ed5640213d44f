"""Where the atoms are: bonds, angles, distances and radial distribution functions."""

from __future__ import annotations

import numpy as np

from dyntrain.observables.arrays import FloatArray, IntArray


def bond_lengths(positions: FloatArray, first: IntArray, second: IntArray, offsets: FloatArray) -> FloatArray:
    """Lengths |x_second − x_first + offset|, [..., n_bonds] Å.

    Args:
        positions: [..., n_atoms, 3] Å, unwrapped.
        first, second: atoms of each bond, [n_bonds].
        offsets: lattice vector that belongs to each bond, [n_bonds, 3] Å.
    """
    return np.sqrt(((positions[..., second, :] - positions[..., first, :] + offsets) ** 2).sum(-1))


def rdf(counts: FloatArray, edges: FloatArray, n_pairs: int, volume: float) -> FloatArray:
    """Radial distribution function g(r) = counts · V / (n_pairs · 4/3 π (r₂³ − r₁³)), [n_bins].

    Args:
        counts: pairs of each distance bin in one frame, in the mean over frames, [n_bins].
        edges: of the bins, [n_bins + 1] Å.
        n_pairs: how many pairs there are, counted as they were (each pair once: A–B N_A N_B, A–A
            N_A (N_A − 1) / 2).
        volume: of the cell, Å³.
    """
    shells = 4.0 / 3.0 * np.pi * np.diff(edges**3)
    return counts * volume / (max(n_pairs, 1) * shells)


def density(values: FloatArray, edges: FloatArray) -> FloatArray:
    """Share of the values in each bin over its width, [n_bins]; those beyond the edges count in the total."""
    return np.histogram(values, edges)[0] / (max(values.size, 1) * np.diff(edges))


def angles(positions: FloatArray, centre: IntArray, ends: IntArray, offsets: FloatArray) -> FloatArray:
    """Angles end–centre–end in degrees, [..., n_angles].

    Args:
        positions: [..., n_atoms, 3] Å, unwrapped.
        centre: atom at each angle's vertex, [n_angles].
        ends: the two outer atoms, [n_angles, 2].
        offsets: lattice vectors that belong to the two arms, [n_angles, 2, 3] Å.
    """
    arms = positions[..., ends, :] - positions[..., centre, None, :] + offsets
    one, other = arms[..., 0, :], arms[..., 1, :]
    cosine = (one * other).sum(-1) / (np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1))
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
