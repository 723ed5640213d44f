"""Analytic pair potentials: ground truth for tests, and the smallest examples of an energy model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dyntrain.neighbors import NeighborList, pair_vectors
from dyntrain.potential import EnergyModel
from dyntrain.state import State


def pair_sum(state: State, neighbors: NeighborList, pair_energies: Tensor) -> Tensor:
    """Sum of pair energies [n_pairs] over each system, [n_systems]."""
    system = state.system_idx.index_select(0, neighbors.i)
    zeros = torch.zeros(state.n_systems, dtype=pair_energies.dtype, device=state.device)
    return zeros.index_add(0, system, pair_energies)


class Harmonic(EnergyModel):
    """E = Σ_pairs ½ k (d − d0)² over all pairs within the cutoff (put it beyond every pair).

    Args:
        k: force constant, eV/Å².
        d0: rest length, Å.
    """

    def __init__(self, k: float = 20.0, d0: float = 1.0, cutoff: float = 50.0) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.k = nn.Parameter(torch.tensor(float(k), dtype=torch.float64))
        self.d0 = nn.Parameter(torch.tensor(float(d0), dtype=torch.float64))

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        distance = pair_vectors(state, neighbors).norm(dim=-1)
        return pair_sum(state, neighbors, 0.5 * self.k * (distance - self.d0) ** 2)


class LennardJones(EnergyModel):
    """E = Σ_pairs 4 ε [(σ/d)¹² − (σ/d)⁶] s(d), s = (1 − (d/cutoff)²)⁴: smooth at the cutoff.

    Args:
        epsilon: well depth, eV (argon: 0.0104).
        sigma: zero crossing, Å (argon: 3.40).
    """

    def __init__(self, epsilon: float = 0.0104, sigma: float = 3.40, cutoff: float = 8.5) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.epsilon = nn.Parameter(torch.tensor(float(epsilon), dtype=torch.float64))
        self.sigma = nn.Parameter(torch.tensor(float(sigma), dtype=torch.float64))

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        d2 = (pair_vectors(state, neighbors) ** 2).sum(-1)
        s6 = (self.sigma**2 / d2) ** 3
        smooth = (1.0 - d2 / self.cutoff**2) ** 4
        return pair_sum(state, neighbors, 4.0 * self.epsilon * (s6 * s6 - s6) * smooth)


class Morse(EnergyModel):
    """E = Σ_pairs D (1 − exp(−a (d − d0)))² over all pairs within the cutoff (put it beyond every pair).

    Args:
        depth: D, eV. a: 1/Å. d0: Å (defaults: roughly H2).
    """

    def __init__(self, depth: float = 4.7, a: float = 1.9, d0: float = 0.74, cutoff: float = 50.0) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.depth = nn.Parameter(torch.tensor(float(depth), dtype=torch.float64))
        self.a = nn.Parameter(torch.tensor(float(a), dtype=torch.float64))
        self.d0 = nn.Parameter(torch.tensor(float(d0), dtype=torch.float64))

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        distance = pair_vectors(state, neighbors).norm(dim=-1)
        return pair_sum(state, neighbors, self.depth * (1.0 - torch.exp(-self.a * (distance - self.d0))) ** 2)
