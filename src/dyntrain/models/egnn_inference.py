"""The default network's energies and dE/dr of all pairs without autograd: its forward pass, then its adjoint.

The same sums as ``EGNN.forward``, which is the plain form and the test of this one. Autograd's bookkeeping is
most of the cost of a small system; here nothing is recorded, every array is made once and used up in place.
x̄ (``x_bar``) is the gradient of the energy, in units of the network's force scale, with respect to x. Each
step of the forward pass leaves behind what its adjoint needs, and the adjoints follow in reverse order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from dyntrain.models.messages import Bonds, pull_back, receive
from dyntrain.models.pair_basis import REVERSAL, degree_two
from dyntrain.neighbors import NeighborList, pair_vectors
from dyntrain.potential import PairSlopes
from dyntrain.state import State

if TYPE_CHECKING:
    from dyntrain.models.egnn import EGNN

PAIRS_AT_A_TIME = 2048
"""Whose densities are summed up at once: more would leave the processor's cache."""


def energies_and_slopes(network: EGNN, state: State, neighbors: NeighborList) -> PairSlopes:
    """What ``EGNN.forward`` and its derivative with respect to the pair vectors give, to rounding."""
    with torch.inference_mode():
        columns, n_species = network.species(state.atomic_numbers), len(network.species)
        pairs = _Pairs.of(network, state, neighbors)
        first, read_out = _FirstLayer(network), _Perceptron(network.read_out)
        second = _SecondLayer(network, first, pairs)
        h = second.forward(first.forward(_densities(pairs, columns, n_species), columns))
        per_atom = read_out(h)
        h_bar = read_out.adjoint(torch.ones_like(per_atom))
        to_first, (basis_bar, unit_bar) = second.adjoint(h_bar)
        density_bar = first.adjoint(*to_first)
        monomials_bar, more = _densities_adjoint(pairs, columns, n_species, density_bar)
        slopes = pairs.slopes(monomials_bar, more.add_(basis_bar), unit_bar).double() * network.force_scale
        per_atom = per_atom.squeeze(1).double() * network.force_scale + network.energy_shifts[columns]
    # Made outside, so that the caller gets tensors like any other.
    energy = torch.zeros(state.n_systems, dtype=torch.float64, device=state.device)
    return PairSlopes(energy.index_add(0, state.system_idx, per_atom), slopes.clone())


# --- pairs --------------------------------------------------------------------------------------------


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


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Pairs and all that depends on their vectors alone; arrays by columns have the pairs last.

    inverse:      1/d [n_pairs, 1], 1/Å
    unit:         û [n_pairs, 3]
    monomials:    1, û, û ûᵀ, [13, n_pairs]
    basis:        [n_radial, n_pairs], over the square root of the mean number of neighbours
    basis_slopes: its derivative by the distance
    tables:       constants
    """

    i: Tensor
    j: Tensor
    inverse: Tensor
    unit: Tensor
    monomials: Tensor
    basis: Tensor
    basis_slopes: Tensor
    tables: _Tables

    @classmethod
    def of(cls, network: EGNN, state: State, neighbors: NeighborList) -> _Pairs:
        dtype = network.mixing.dtype
        vectors = pair_vectors(state, neighbors).to(dtype)
        distances = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        inverse = distances.reciprocal()
        unit = vectors.mul_(inverse)
        across = unit.T.contiguous()
        products = (across[:, None] * across).flatten(0, 1)
        monomials = torch.cat([torch.ones_like(across[:1]), across, products])
        # All is linear in the basis: scaled here, nothing else has to be.
        scale = torch.rsqrt(network.mean_neighbors).to(dtype)
        basis, slopes = network.radial.with_slopes(distances.squeeze(1), scale)
        tables = _tables(basis.shape[0], dtype, unit.device)
        return cls(neighbors.i, neighbors.j, inverse, unit, monomials, basis, slopes, tables)

    def slopes(self, monomials_bar: Tensor, basis_bar: Tensor, unit_bar: Tensor) -> Tensor:
        """r̄ [n_pairs, 3] from the gradients by columns and that of û as it stands."""
        # û enters as it is, and twice in û ûᵀ, whose gradient is symmetric.
        twice = monomials_bar[4:].view(3, 3, -1).mul_(self.monomials[1:4]).sum(1)
        unit_bar = unit_bar + twice.mul_(2.0).add_(monomials_bar[1:4]).T
        # d = |r|, û = r/d:  r̄ = d̄ û + (ū − û (û · ū)) / d
        turn = unit_bar.mul_(self.inverse)
        along = basis_bar.mul_(self.basis_slopes).sum(0).sub_((turn * self.unit).sum(1))
        return turn.addcmul_(self.unit, along[:, None])


def _blocks(pairs: _Pairs, columns: Tensor, n_species: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(part of the pairs, where in the densities j is felt by i, and i by j)."""
    size = PAIRS_AT_A_TIME if columns.device.type == "cpu" else max(pairs.i.shape[0], 1)
    for start in range(0, pairs.i.shape[0], size):
        part = slice(start, start + size)
        i, j = pairs.i[part], pairs.j[part]
        to_i = columns.index_select(0, j).add_(i, alpha=n_species)
        yield part, to_i, columns.index_select(0, i).add_(j, alpha=n_species)


def _densities(pairs: _Pairs, columns: Tensor, n_species: int) -> Tensor:
    """Σ over neighbours of spherical tensor × radial function, a slot per element: [9, n_atoms, slots]."""
    tensors, radial, reversal = pairs.tables
    density = pairs.unit.new_zeros(columns.shape[0] * n_species, reversal.shape[0])
    back = torch.zeros_like(density)
    for part, to_i, to_j in _blocks(pairs, columns, n_species):
        rows = (pairs.monomials[:, part].T @ tensors).mul_(pairs.basis[:, part].T @ radial)
        density.index_add_(0, to_i, rows)
        back.index_add_(0, to_j, rows)
    density.addcmul_(back, reversal)
    density = density.view(columns.shape[0], n_species, 9, -1).permute(2, 0, 1, 3)
    return density.reshape(9, columns.shape[0], -1)


def _densities_adjoint(pairs: _Pairs, columns: Tensor, n_species: int, bar: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the monomials and the basis from Ā: a row's gradient is Ā_i + (reversal) Ā_j."""
    tensors, radial, reversal = pairs.tables
    bar = bar.view(9, columns.shape[0], n_species, -1).permute(1, 2, 0, 3).reshape(-1, reversal.shape[0])
    back = bar * reversal
    monomials_bar, basis_bar = torch.empty_like(pairs.monomials), torch.empty_like(pairs.basis)
    for part, to_i, to_j in _blocks(pairs, columns, n_species):
        rows = bar.index_select(0, to_i).add_(back.index_select(0, to_j))
        of_tensors = pairs.monomials[:, part].T @ tensors
        torch.mm(radial, of_tensors.mul_(rows).T, out=basis_bar[:, part])
        torch.mm(tensors, rows.mul_(pairs.basis[:, part].T @ radial).T, out=monomials_bar[:, part])
    return monomials_bar, basis_bar


# --- atoms --------------------------------------------------------------------------------------------


class _Perceptron:
    """y = W₂ SiLU(W₁ x + b₁) + b₂, and its adjoint x̄ = W₁ᵀ (SiLU′ ∘ W₂ᵀ ȳ)."""

    def __init__(self, layers: nn.Sequential) -> None:
        self.w1, self.b1, self.w2, self.b2 = layers.parameters()

    def __call__(self, x: Tensor) -> Tensor:
        self.before = torch.addmm(self.b1, x, self.w1.T)
        return torch.addmm(self.b2, silu(self.before), self.w2.T)

    def adjoint(self, y_bar: Tensor) -> Tensor:
        return torch.ops.aten.silu_backward.default(y_bar @ self.w2, self.before) @ self.w1


class _FirstLayer:
    """Densities → scalars, vectors v, w, tensors t, u → features h, and back.

    Vectors are [3, n_atoms, c], tensors [5, n_atoms, c], as matrices T and U [3, 3, n_atoms, c].
    """

    def __init__(self, network: EGNN) -> None:
        self.c = network.n_channels
        # One matrix for each of the nine tensors: degree 0, three times 1, five times 2.
        self.mixing = network.mixing.index_select(0, _degrees(network.mixing.device))
        self.to_tensors = network.degree_two.to(network.mixing.dtype)
        self.centre, self.update = network.centre.weight, _Perceptron(network.update1)

    def forward(self, density: Tensor, columns: Tensor) -> Tensor:
        scalars, vw, self.tu = torch.bmm(density, self.mixing).split_with_sizes([1, 3, 5])
        v, w = vw.chunk(2, -1)
        t, u = self.tu.chunk(2, -1)
        self.wv = torch.cat([w, v], -1)
        self.matrices = (self.to_tensors @ self.tu.flatten(1)).view(3, 3, *vw.shape[1:])  # [T, U]
        tw, uv = (self.matrices * self.wv).sum(1).chunk(2, -1)
        self.left, self.right = torch.cat([v, v, w, tw], -1), torch.cat([w, tw, tw, uv], -1)
        self.v, self.v_and_tw = v, v + tw
        h = self.centre.index_select(0, columns)
        invariants = [(self.left * self.right).sum(0), (t * u).sum(0)]
        return h.add_(self.update(torch.cat([h, scalars.squeeze(0), *invariants], 1)))

    def adjoint(self, h_bar: Tensor, v_bar: Tensor, v_and_tw_bar: Tensor, t_bar: Tensor) -> Tensor:
        """Gradient of the densities from those of h, of v and T as the second layer has them."""
        c = self.c
        _, scalars_bar, products_bar, tu_bar = self.update.adjoint(h_bar).split_with_sizes(
            [h_bar.shape[1], 2 * c, 4 * c, c], 1
        )
        # k = Σ left ∘ right: what left gets is k̄ right, and right k̄ left; parts that stand twice add up.
        v1, v2, w1, tw1 = (products_bar * self.right).chunk(4, -1)
        w2, tw2, tw3, uv_bar = (products_bar * self.left).chunk(4, -1)
        tw_bar = v_and_tw_bar + tw1 + tw2 + tw3
        # (Tw, Uv) = [T, U] [w, v], matrices symmetric: w̄ = T t̄w, v̄ = U ūv, T̄ = t̄w wᵀ, Ū = ūv vᵀ
        bars = torch.cat([tw_bar, uv_bar], -1)
        w_bar, v3 = (self.matrices * bars).sum(1).chunk(2, -1)
        matrices_bar = bars[:, None] * self.wv
        matrices_bar[..., :c] += t_bar
        vw_bar = torch.cat([v_bar + v_and_tw_bar + v1 + v2 + v3, w_bar + w1 + w2], -1)
        # k = Σ t ∘ u gives t̄ = k̄ u, ū = k̄ t; then T = Q t gives t̄ = Qᵀ T̄
        t, u = self.tu.chunk(2, -1)
        tu_bar = torch.cat([u, t], -1).mul_(torch.cat([tu_bar, tu_bar], -1))
        tu_bar.flatten(1).addmm_(self.to_tensors.T, matrices_bar.view(9, -1))
        return torch.bmm(torch.cat([scalars_bar[None], vw_bar, tu_bar]), self.mixing.mT)


class _SecondLayer:
    """Messages, which bring scalars and vectors z, and what becomes of h with them; and back."""

    def __init__(self, network: EGNN, first: _FirstLayer, pairs: _Pairs) -> None:
        self.c, self.first, self.pairs = network.n_channels, first, pairs
        f1, f2, f3 = network.filters.weight.chunk(3)
        self.filters = torch.cat([f1, f2, f2, f2, f3, f3, f3]).T
        self.bonds = Bonds(pairs.i, pairs.j)
        self.send, self.send_bias = network.send.weight, network.send.bias
        self.send_vectors, self.receive_vectors = network.send_vectors.weight, network.receive_vectors.weight
        self.update = _Perceptron(network.update2)

    def forward(self, h: Tensor) -> Tensor:
        c, pairs = self.c, self.pairs
        a, b = torch.addmm(self.send_bias, h, self.send.T).chunk(2, 1)
        self.sent = torch.cat([a, b, b, b, *(self.first.v_and_tw @ self.send_vectors.T)], 1)
        received = receive(self.bonds, self.sent, pairs.basis.T, pairs.unit, self.filters)
        scalars, along, z = received.split_with_sizes([c, 3 * c, 3 * c], 1)
        self.z = z = torch.stack(z.chunk(3, 1))
        self.matrices = self.first.matrices[..., :c]
        z_mixed, tz = z @ self.receive_vectors.T, (self.matrices * z).sum(1)
        self.left, self.right = torch.cat([z, self.first.v, tz], -1), torch.cat([z_mixed, z, z_mixed], -1)
        along = along.view(-1, 3, c).sum(1)
        return h + self.update(torch.cat([h, scalars, along, (self.left * self.right).sum(0)], 1))

    def adjoint(self, h_bar: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
        """Gradients of h, v, v + Tw and T for the first layer; of the basis and û."""
        c, pairs = self.c, self.pairs
        of_h, scalars_bar, along_bar, products_bar = self.update.adjoint(h_bar).split_with_sizes(
            [h_bar.shape[1], c, c, 3 * c], 1
        )
        z1, v_bar, tz_bar = (products_bar * self.right).chunk(3, -1)
        mixed1, z2, mixed2 = (products_bar * self.left).chunk(3, -1)
        # z stands alone twice, in z_mixed = z Rᵀ and in Tz, T symmetric: z̄ = z₁ + z₂ + (mixed)‾ R + T (Tz)‾
        z_bar = z1 + z2 + (mixed1 + mixed2) @ self.receive_vectors + (self.matrices * tz_bar).sum(1)
        received_bar = torch.cat([scalars_bar, along_bar, along_bar, along_bar, *z_bar], 1)
        sent_bar, basis_bar, unit_bar, _ = pull_back(
            self.bonds, False, received_bar, self.sent, pairs.basis.T, pairs.unit, self.filters
        )
        # sent = [a, b, b, b, (v + Tw) Sᵀ] with [a, b] from h
        a_bar, b1, b2, b3, *vectors_bar = sent_bar.chunk(7, 1)
        h_bar = h_bar + torch.cat([a_bar, b1 + b2 + b3], 1) @ self.send + of_h
        v_and_tw_bar = torch.stack(vectors_bar) @ self.send_vectors
        return (h_bar, v_bar, v_and_tw_bar, tz_bar[:, None] * self.z), (basis_bar.T, unit_bar)


@lru_cache(maxsize=8)
def _degrees(device: torch.device) -> Tensor:
    return torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2], device=device)
