"""The paper's network edge by edge, feature by feature: the fast one is tested and timed against it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dyntrain.models.chebyshev import fourier_features
from dyntrain.models.paper_egnn import PaperEGNN
from dyntrain.neighbors import NeighborList, pair_vectors
from dyntrain.potential import EnergyModel
from dyntrain.state import State


class PlainPaperEGNN(EnergyModel):
    """METHOD's equations as they stand, with another network's weights; derivatives are autograd's.

    Args:
        network: shares its weights (and is trained with it).
    """

    def __init__(self, network: PaperEGNN) -> None:
        super().__init__()
        self.network = network
        self.cutoff = network.cutoff

    @property
    def elements(self) -> tuple[int, ...]:
        return self.network.elements

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        net = self.network
        dtype = net.w_in.weight.dtype
        h = net.w_in(functional.one_hot(net.species(state.atomic_numbers), len(net.elements)).to(dtype))
        i, j, _ = neighbors.both_directions()
        distances = pair_vectors(state, neighbors).norm(dim=-1).to(dtype).repeat(2)
        for layer in net.message_layers():
            features = fourier_features(distances, layer.frequencies.to(dtype))
            m = functional.silu(layer.norm1(layer.w1(torch.cat([h[i], h[j], features], dim=-1))))
            m = functional.silu(layer.norm2(layer.w2(m)))
            received = torch.zeros_like(h).index_add(0, i, m)
            u = functional.silu(layer.norm3(layer.w3(torch.cat([h, received], dim=-1))))
            h = h + functional.silu(layer.norm4(layer.w4(u)))
        zeros = h.new_zeros(state.n_systems, h.shape[1])
        pooled = zeros.index_add(0, state.system_idx, h)
        return net.w6(functional.relu(net.w5(pooled))).squeeze(-1).double()
