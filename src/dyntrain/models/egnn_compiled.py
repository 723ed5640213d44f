"""``egnn_inference`` compiled for one thread of a CPU: one kernel for the whole network.

What PyTorch and Python do around an operation takes longer than the operation where a system is small; here
they are met once. Its parts are those of the kernels with autograd, and ``egnn_atom_kernels``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import Tensor, nn

from dyntrain.kernel import compiled_for_sizes, reads, writes
from dyntrain.models.density_kernels import add_densities_by_pair, pull_back_densities_by_pair
from dyntrain.models.egnn_atom_kernels import (
    AT_A_TIME,
    after_messages,
    back_from_messages,
    before_messages,
    room_widths,
)
from dyntrain.models.egnn_kernels import geometry_of_pair, slope_of_pair
from dyntrain.models.linear_kernels import add_transposed, multiply
from dyntrain.models.message_kernels import pull_back_by_pair, receive_by_pair
from dyntrain.neighbor_kernels import vector_of_pair
from dyntrain.neighbors import NeighborList
from dyntrain.potential import PairSlopes
from dyntrain.state import State

if TYPE_CHECKING:
    from dyntrain.models.egnn import EGNN


@compiled_for_sizes
def _evaluation(w, n, n_radial):  # type: ignore[no-untyped-def]
    def evaluation(  # type: ignore[no-untyped-def]
        system, neighbors, numbers, weights, of_pairs, of_pair, of_atoms, room, energies, slopes
    ):
        """Adds to the energies, fills the slopes; ``energies_and_slopes`` says what is in the tuples."""
        positions, system_idx, cells, columns, shifts, is_periodic = system
        i, j, images = neighbors
        cutoff, factor, scale = numbers
        inverse, unit, basis, basis_slopes, basis_bar, unit_bar = of_pairs
        f, f_bar, tensors = of_pair
        density, vw, tu, h, bend, sent, messages, vw_bar, tu_bar, h_bar, sent_bar, per_atom = of_atoms
        filters = weights[6]
        density[:], messages[:], sent_bar[:] = 0.0, 0.0, 0.0
        for p in range(i.shape[0]):
            here, there, cell = positions[i[p]], positions[j[p]], cells[system_idx[i[p]]]
            x, y, z = vector_of_pair(here, there, is_periodic, cell, images[p])
            inverse[p] = geometry_of_pair(
                n_radial, x, y, z, cutoff, factor, unit[p], basis[p], basis_slopes[p]
            )
            add_densities_by_pair(n_radial, i[p], j[p], columns, unit[p], basis[p], density, tensors[0])
        before_messages(w, n, density, columns, weights, room, vw, tu, h, bend, sent)
        for p in range(i.shape[0]):
            f[:] = 0.0
            add_transposed(n_radial, 3 * n, filters, basis[p], f)
            receive_by_pair(n, i[p], j[p], sent, f, unit[p], messages)
        after_messages(w, n, messages, h, vw, tu, weights, room, per_atom, vw_bar, tu_bar, h_bar)
        for a in range(per_atom.shape[0]):
            energies[system_idx[a]] += per_atom[a] * scale + shifts[columns[a]]
        for p in range(i.shape[0]):
            f[:] = 0.0
            add_transposed(n_radial, 3 * n, filters, basis[p], f)
            pull_back_by_pair(n, i[p], j[p], messages, sent, f, unit[p], sent_bar, f_bar, unit_bar[p])
            multiply(n_radial, 3 * n, filters, f_bar, basis_bar[p])
        back_from_messages(w, n, sent_bar, vw, tu, bend, weights, room, vw_bar, tu_bar, h_bar, density)
        for p in range(i.shape[0]):
            pull_back_densities_by_pair(
                n_radial, i[p], j[p], columns, unit[p], basis[p], density, basis_bar[p], unit_bar[p], tensors
            )
            slope_of_pair(
                n_radial, unit[p], inverse[p], basis_slopes[p], unit_bar[p], basis_bar[p], scale, slopes[p]
            )

    return evaluation


def energies_and_slopes(network: EGNN, state: State, neighbors: NeighborList) -> PairSlopes:
    """What is said there."""
    w, n, n_radial = network.config["width"], network.n_channels, network.config["n_radial"]
    n_atoms, n_pairs = state.n_atoms, neighbors.n_pairs
    weights = _weights(network)
    number = weights[0].dtype

    def rows(n_rows: int, *widths: int) -> tuple[Any, ...]:
        return tuple(np.empty((n_rows, width), number) for width in widths)

    columns = network.species(state.atomic_numbers)
    of_system = reads(state.positions, state.system_idx, state.cell, columns, network.energy_shifts)
    factor = 1.0 / math.sqrt(float(network.mean_neighbors))
    density = np.empty((n_atoms, 9, network.mixing.shape[1]), number)
    energies = state.positions.new_zeros(state.n_systems)
    slopes = state.positions.new_empty(n_pairs, 3)
    _evaluation(w, n, n_radial)(
        (*of_system, bool(state.pbc.any())),
        tuple(reads(neighbors.i, neighbors.j, neighbors.shifts)),
        (network.cutoff, factor, float(network.force_scale)),
        weights,
        # 1/d, û, the basis, its derivative, and the gradients of basis and û
        (np.empty(n_pairs, number), *rows(n_pairs, 3, n_radial, n_radial, n_radial, 3)),
        # a pair's filters, their gradient, and tensors
        (np.empty(3 * n, number), np.empty(3 * n, number), np.empty((2, 9), number)),
        # densities, vw, tu, h, slopes, sent, messages; gradients of vw, tu, h, sent; energies
        (
            density,
            *rows(n_atoms, 6 * n, 10 * n, w, w, 5 * n, 5 * n, 6 * n, 10 * n, w, 5 * n),
            np.empty(n_atoms, number),
        ),
        rows(AT_A_TIME, *room_widths(w, n)),
        *writes(energies, slopes),
    )
    return PairSlopes(energies, slopes)


def _weights(network: EGNN) -> tuple[Any, ...]:
    """In the order of ``EGNN.__init__``; flat, but [3, slots · 2n] and [n_species, w]; filters transposed."""
    mixing, centre = network.mixing.detach().numpy(), network.centre.weight.detach().numpy()
    others = (
        *_perceptron(network.update1),
        network.filters.weight.T,
        network.send.weight,
        network.send.bias,
        network.send_vectors.weight,
        network.receive_vectors.weight,
        *_perceptron(network.update2),
        *_perceptron(network.read_out),
    )
    return mixing.reshape(3, -1), centre, *(weight.detach().numpy().reshape(-1) for weight in others)


def _perceptron(layers: nn.Sequential) -> tuple[Tensor, ...]:
    first, _, last = cast("list[nn.Linear]", list(layers))
    return first.weight, first.bias, last.weight, last.bias
