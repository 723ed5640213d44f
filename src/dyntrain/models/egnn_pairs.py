"""What the default network without autograd does for each pair of atoms, forwards and back."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dyntrain.models.messages import Bonds, pull_back, receive
from dyntrain.models.pair_basis import REVERSAL, degree_two
from dyntrain.neighbors import NeighborList, detached_pair_vectors
from dyntrain.state import State

if TYPE_CHECKING:
    from dyntrain.models.egnn import EGNN

PAIRS_AT_A_TIME = 2048
"""Whose densities are summed up at once: more would leave the processor's cache."""


class _Tables(NamedTuple):
    """Constant matrices that spread [n_pairs, few] over rows of (spherical tensor, radial function).

    tensors:  [13, 9 n_radial], from 1, û, û ûᵀ (row by row) to the nine tensors
    radial:   [n_radial, 9 n_radial]
    reversal: [9 n_radial], sign of each under û → −û
    """

    tensors: Tensor
    radial: Tensor
    reversal: Tensor


@lru_cache(maxsize=8)
def _tables(n_radial: int, dtype: torch.dtype, device: torch.device) -> _Tables:
    tensors = torch.block_diag(torch.eye(4), degree_two()).to(device, dtype)
    odd = torch.tensor(REVERSAL, device=device, dtype=dtype)
    return _Tables(
        tensors.repeat_interleave(n_radial, dim=1),
        torch.eye(n_radial, device=device, dtype=dtype).repeat(1, 9),
        odd.repeat_interleave(n_radial),
    )


class Pairs:
    """Pairs, all that depends on their vectors alone, and its gradient: of messages first, then of densities.

    Arrays by columns have the pairs last; ``_bar`` is a gradient.

    inverse:      1/d [n_pairs, 1], 1/Å
    unit:         û [n_pairs, 3]
    monomials:    1, û, û ûᵀ, [13, n_pairs]
    basis:        [n_radial, n_pairs], over the square root of the mean number of neighbours
    basis_slopes: its derivative by the distance
    basis_rows:   the basis as [n_pairs, n_radial]

    Args:
        columns: [n_atoms], number of each atom's element.
    """

    def __init__(self, network: EGNN, columns: Tensor, state: State, neighbors: NeighborList) -> None:
        self.i, self.j, self.columns = neighbors.i, neighbors.j, columns
        self.n_species, self.filters = len(network.species), network.filters.weight.T
        vectors = detached_pair_vectors(state, neighbors).to(network.mixing.dtype)
        distances = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        self.inverse = distances.reciprocal()
        self.unit = vectors.mul_(self.inverse)
        across = self.unit.T.contiguous()
        products = (across[:, None] * across).flatten(0, 1)
        self.monomials = torch.cat([torch.ones_like(across[:1]), across, products])
        # All is linear in the basis: scaled here, nothing else has to be.
        scale = torch.rsqrt(network.mean_neighbors).to(vectors.dtype)
        self.basis, self.basis_slopes = network.radial.with_slopes(distances.squeeze(1), scale)
        self.basis_rows = self.basis.T
        self.tables = _tables(self.basis.shape[0], vectors.dtype, vectors.device)

    def densities(self) -> Tensor:
        """Σ over neighbours of spherical tensor × radial function, a slot an element: [n_atoms, 9, slots]."""
        tensors, radial, reversal = self.tables
        density = self.unit.new_zeros(self.columns.shape[0] * self.n_species, reversal.shape[0])
        back = torch.zeros_like(density)
        for part, to_i, to_j in self._blocks():
            rows = (self.monomials[:, part].T @ tensors).mul_(self.basis[:, part].T @ radial)
            density.index_add_(0, to_i, rows)
            back.index_add_(0, to_j, rows)
        density.addcmul_(back, reversal)
        density = density.view(self.columns.shape[0], self.n_species, 9, -1).transpose(1, 2)
        return density.reshape(self.columns.shape[0], 9, -1)

    def receive(self, sent: Tensor) -> Tensor:
        """What arrives by ``messages``, [n_atoms, 5c], from what is sent."""
        self.sent = sent
        return receive(Bonds(self.i, self.j), sent, self.basis_rows, self.unit, self.filters)

    def pull_back(self, bar: Tensor) -> Tensor:
        """Gradient of what was sent from that of what was received; the pairs keep theirs."""
        sent_bar, self.basis_rows_bar, self.unit_bar, _ = pull_back(
            Bonds(self.i, self.j), False, bar, self.sent, self.basis_rows, self.unit, self.filters
        )
        return sent_bar

    def pull_back_densities(self, bar: Tensor) -> None:
        """Takes in Ā, the gradient of the densities: a pair's is Ā_i + (reversal) Ā_j."""
        tensors, radial, reversal = self.tables
        bar = bar.view(self.columns.shape[0], 9, self.n_species, -1).transpose(1, 2)
        bar = bar.reshape(-1, reversal.shape[0])
        back = bar * reversal
        monomials_bar, basis_bar = torch.empty_like(self.monomials), torch.empty_like(self.basis)
        for part, to_i, to_j in self._blocks():
            rows = bar.index_select(0, to_i).add_(back.index_select(0, to_j))
            of_tensors = self.monomials[:, part].T @ tensors
            torch.mm(radial, of_tensors.mul_(rows).T, out=basis_bar[:, part])
            torch.mm(tensors, rows.mul_(self.basis[:, part].T @ radial).T, out=monomials_bar[:, part])
        # û enters as it is, and twice in û ûᵀ, whose gradient is symmetric.
        twice = monomials_bar[4:].view(3, 3, -1).mul_(self.monomials[1:4]).sum(1)
        self.unit_bar = self.unit_bar + twice.mul_(2.0).add_(monomials_bar[1:4]).T
        self.basis_bar = basis_bar.add_(self.basis_rows_bar.T)

    def fill_slopes(self, scale: float, out: Tensor) -> None:
        """Write r̄ times ``scale`` to [n_pairs, 3], after both adjoints."""
        # d = |r|, û = r/d:  r̄ = d̄ û + (ū − û (û · ū)) / d
        turn = self.unit_bar.mul_(self.inverse)
        along = self.basis_bar.mul_(self.basis_slopes).sum(0).sub_((turn * self.unit).sum(1))
        out.copy_(turn.addcmul_(self.unit, along[:, None])).mul_(scale)

    def _blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(part of the pairs, where in the densities j is felt by i, and i by j)."""
        size = PAIRS_AT_A_TIME if self.columns.device.type == "cpu" else max(self.i.shape[0], 1)
        for start in range(0, self.i.shape[0], size):
            part = slice(start, start + size)
            i, j = self.i[part], self.j[part]
            to_i = self.columns.index_select(0, j).add_(i, alpha=self.n_species)
            yield part, to_i, self.columns.index_select(0, i).add_(j, alpha=self.n_species)
