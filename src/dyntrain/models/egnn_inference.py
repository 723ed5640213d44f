"""The default network without autograd: energies and dE/dr of all pairs by a forward pass and its adjoint.

The same sums as ``EGNN.forward``, which is the plain form and the test of this one. Autograd's bookkeeping is
most of the cost of a small system; here nothing is recorded, every array is made once and used up in place.
x̄ (``x_bar``) is the gradient of the energy, in units of the network's force scale, with respect to x. Each
step of the forward pass leaves behind what its adjoint needs, and the adjoints follow in reverse order.
What is done for each pair is in ``egnn_pairs``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from dyntrain.models.egnn_pairs import Pairs, pairs_of
from dyntrain.neighbors import NeighborList
from dyntrain.potential import PairSlopes
from dyntrain.state import State

if TYPE_CHECKING:
    from dyntrain.models.egnn import EGNN


def energies_and_slopes(network: EGNN, state: State, neighbors: NeighborList) -> PairSlopes:
    """What ``EGNN.forward`` and its derivative with respect to the pair vectors give, to rounding."""
    with torch.inference_mode():
        columns = network.species(state.atomic_numbers)
        pairs = pairs_of(network, columns, state, neighbors)
        first, read_out = _FirstLayer(network), _Perceptron(network.read_out)
        second = _SecondLayer(network, first, pairs)
        h = second.forward(first.forward(pairs.densities(), columns))
        per_atom = read_out(h)
        h_bar = read_out.adjoint(torch.ones_like(per_atom))
        pairs.pull_back_densities(first.adjoint(*second.adjoint(h_bar)))
        slopes = pairs.slopes().double() * network.force_scale
        per_atom = per_atom.squeeze(1).double() * network.force_scale + network.energy_shifts[columns]
    # Made outside, so that the caller gets tensors like any other.
    energy = torch.zeros(state.n_systems, dtype=torch.float64, device=state.device)
    return PairSlopes(energy.index_add(0, state.system_idx, per_atom), slopes.clone())


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

    def __init__(self, network: EGNN, first: _FirstLayer, pairs: Pairs) -> None:
        self.c, self.first, self.pairs = network.n_channels, first, pairs
        self.send, self.send_bias = network.send.weight, network.send.bias
        self.send_vectors, self.receive_vectors = network.send_vectors.weight, network.receive_vectors.weight
        self.update = _Perceptron(network.update2)

    def forward(self, h: Tensor) -> Tensor:
        c = self.c
        ab = torch.addmm(self.send_bias, h, self.send.T)
        received = self.pairs.receive(torch.cat([ab, *(self.first.v_and_tw @ self.send_vectors.T)], 1))
        invariants, z = received.split_with_sizes([2 * c, 3 * c], 1)
        self.z = z = torch.stack(z.chunk(3, 1))
        self.matrices = self.first.matrices[..., :c]
        z_mixed, tz = z @ self.receive_vectors.T, (self.matrices * z).sum(1)
        self.left, self.right = torch.cat([z, self.first.v, tz], -1), torch.cat([z_mixed, z, z_mixed], -1)
        return h + self.update(torch.cat([h, invariants, (self.left * self.right).sum(0)], 1))

    def adjoint(self, h_bar: Tensor) -> tuple[Tensor, ...]:
        """Gradients of h, v, v + Tw and T for the first layer."""
        c = self.c
        of_h, invariants_bar, products_bar = self.update.adjoint(h_bar).split_with_sizes(
            [h_bar.shape[1], 2 * c, 3 * c], 1
        )
        z1, v_bar, tz_bar = (products_bar * self.right).chunk(3, -1)
        mixed1, z2, mixed2 = (products_bar * self.left).chunk(3, -1)
        # z stands alone twice, in z_mixed = z Rᵀ and in Tz, T symmetric: z̄ = z₁ + z₂ + (mixed)‾ R + T (Tz)‾
        z_bar = z1 + z2 + (mixed1 + mixed2) @ self.receive_vectors + (self.matrices * tz_bar).sum(1)
        sent_bar = self.pairs.pull_back(torch.cat([invariants_bar, *z_bar], 1))
        # sent = [a, b, (v + Tw) Sᵀ] with [a, b] from h
        ab_bar, vectors_bar = sent_bar.split_with_sizes([2 * c, 3 * c], 1)
        h_bar = h_bar + ab_bar @ self.send + of_h
        v_and_tw_bar = torch.stack(vectors_bar.chunk(3, 1)) @ self.send_vectors
        return h_bar, v_bar, v_and_tw_bar, tz_bar[:, None] * self.z


@lru_cache(maxsize=8)
def _degrees(device: torch.device) -> Tensor:
    return torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2], device=device)
