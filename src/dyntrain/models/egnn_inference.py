"""The default network without autograd: energies and dE/dr of all pairs by a forward pass and its adjoint.

The same sums as ``EGNN.forward``, which is the plain form and the test of this one. Autograd's bookkeeping is
most of the cost of a small system; here nothing is recorded, every array is made once and used up in place.
x̄ (``x_bar``) is the gradient of the energy, in units of the network's force scale, with respect to x. Each
step of the forward pass leaves behind what its adjoint needs, and the adjoints follow in reverse order.
What is done for each pair is in ``egnn_pairs``; for one thread of a CPU, all of it is compiled
(``egnn_compiled``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from dyntrain import kernel
from dyntrain.models.egnn_pairs import Pairs
from dyntrain.models.egnn_products import Products
from dyntrain.neighbors import NeighborList
from dyntrain.potential import PairSlopes
from dyntrain.state import State

if TYPE_CHECKING:
    from dyntrain.models.egnn import EGNN


def energies_and_slopes(network: EGNN, state: State, neighbors: NeighborList) -> PairSlopes:
    """What ``EGNN.forward`` and its derivative with respect to the pair vectors give, to rounding."""
    if kernel.is_of_use(network.mixing):
        from dyntrain.models import egnn_compiled

        return egnn_compiled.energies_and_slopes(network, state, neighbors)
    # Made outside, so that the caller gets tensors like any other.
    slopes = state.positions.new_empty(neighbors.n_pairs, 3)
    energy = state.positions.new_zeros(state.n_systems)
    with torch.inference_mode():
        columns = network.species(state.atomic_numbers)
        pairs = Pairs(network, columns, state, neighbors)
        products = Products(network.degree_two.to(network.mixing.dtype))
        first, second = _FirstLayer(network, products), _SecondLayer(network, products, pairs)
        read_out = _Perceptron(network.read_out)
        h = second.forward(*first.forward(pairs.densities(), columns))
        per_atom = read_out(h)
        h_bar = read_out.adjoint(torch.ones_like(per_atom))
        pairs.pull_back_densities(first.adjoint(*second.adjoint(h_bar)))
        pairs.fill_slopes(float(network.force_scale), slopes)
        per_atom = per_atom.squeeze(1).double() * network.force_scale + network.energy_shifts[columns]
        energy.index_add_(0, state.system_idx, per_atom)
    return PairSlopes(energy, slopes)


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
    """Densities → features h and vectors v + Tw, [n_atoms, 3c], and back."""

    def __init__(self, network: EGNN, products: Products) -> None:
        self.c, self.products, self.mixing = network.n_channels, products, network.mixing
        self.centre, self.update = network.centre.weight, _Perceptron(network.update1)

    def forward(self, density: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        scalars, vw, tu = _by_degree(density, self.mixing)
        invariants, vectors = self.products.first(vw, tu).split_with_sizes([5 * self.c, 3 * self.c], 1)
        h = self.centre.index_select(0, columns)
        return h.add_(self.update(torch.cat([h, scalars.squeeze(1), invariants], 1))), vectors

    def adjoint(self, h_bar: Tensor, vectors_bar: Tensor) -> Tensor:
        """Gradient of the densities."""
        c = self.c
        _, scalars_bar, invariants_bar = self.update.adjoint(h_bar).split_with_sizes(
            [h_bar.shape[1], 2 * c, 5 * c], 1
        )
        bars = self.products.first_adjoint(torch.cat([invariants_bar, vectors_bar], 1))
        return torch.cat(_by_degree(torch.cat([scalars_bar[:, None], *bars], 1), self.mixing.mT), 1)


def _by_degree(rows: Tensor, matrices: Tensor) -> list[Tensor]:
    """Rows [n_atoms, 9, m] of degrees 0 (one), 1 (three) and 2 (five) times these degrees' [3, m, n]."""
    parts = zip(rows.split_with_sizes([1, 3, 5], 1), matrices, strict=True)
    return [(part.reshape(-1, part.shape[2]) @ matrix).view(*part.shape[:2], -1) for part, matrix in parts]


class _SecondLayer:
    """Messages, which bring scalars and vectors z, and what becomes of h with them; and back."""

    def __init__(self, network: EGNN, products: Products, pairs: Pairs) -> None:
        self.c, self.products, self.pairs = network.n_channels, products, pairs
        self.send, self.send_bias = network.send.weight, network.send.bias
        self.send_vectors, self.receive_vectors = network.send_vectors.weight, network.receive_vectors.weight
        self.update = _Perceptron(network.update2)

    def _mix(self, vectors: Tensor, matrix: Tensor) -> Tensor:
        """[n_atoms, 3c], the channels of each component times a matrix."""
        return (vectors.reshape(-1, self.c) @ matrix).view(-1, 3 * self.c)

    def forward(self, h: Tensor, vectors: Tensor) -> Tensor:
        c = self.c
        scalars = torch.addmm(self.send_bias, h, self.send.T)
        received = self.pairs.receive(torch.cat([scalars, self._mix(vectors, self.send_vectors.T)], 1))
        scalars, z = received.split_with_sizes([2 * c, 3 * c], 1)
        products = self.products.second(torch.cat([z, self._mix(z, self.receive_vectors.T)], 1))
        return h + self.update(torch.cat([h, scalars, products], 1))

    def adjoint(self, h_bar: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of h and of the vectors."""
        c = self.c
        of_h, scalars_bar, products_bar = self.update.adjoint(h_bar).split_with_sizes(
            [h_bar.shape[1], 2 * c, 3 * c], 1
        )
        z_bar, y_bar = self.products.second_adjoint(products_bar).chunk(2, 1)
        z_bar = self._mix(y_bar, self.receive_vectors).add_(z_bar)
        sent_bar = self.pairs.pull_back(torch.cat([scalars_bar, z_bar], 1))
        scalars_bar, vectors_bar = sent_bar.split_with_sizes([2 * c, 3 * c], 1)
        h_bar = torch.addmm(of_h, scalars_bar, self.send).add_(h_bar)
        return h_bar, self._mix(vectors_bar, self.send_vectors)
