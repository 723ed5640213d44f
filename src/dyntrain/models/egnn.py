"""The default network: smooth, size-extensive, equivariant, and cheap because edges carry only a basis.

Why this shape. What costs in a message-passing network is work per edge (the paper's: two 128×128
products). Here the first layer does none that is learnt: each pair adds its radial basis times the
spherical tensors of its direction to its atoms, one slot per neighbour element, and the learnt mixing into
channels follows *after* the sum, where it is exact and costs one small product per atom (atomic cluster
expansion; Drautz, Phys. Rev. B 99, 014104 (2019)). Products of those channels carry angles and
dihedrals. One elementwise message-passing layer (as PaiNN; Schütt et al., ICML 2021) then lets atoms know
their neighbours' surroundings. Scalars, vectors and second-rank tensors keep it equivariant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dyntrain import kernel
from dyntrain.models.egnn_inference import energies_and_slopes
from dyntrain.models.egnn_products import first_products, second_products
from dyntrain.models.family import FamilyModel
from dyntrain.models.messages import Bonds, messages
from dyntrain.models.pair_basis import REVERSAL, RadialBasis, degree_two
from dyntrain.models.species import SpeciesIndex
from dyntrain.neighbors import NeighborList, pair_vectors
from dyntrain.potential import PairSlopes
from dyntrain.state import State

PAIRS_AT_A_TIME = 8192
"""Whose densities are summed up at once: more would leave the processor's cache."""


class EGNN(FamilyModel):
    """dyntrain's default network; see the module's first lines for its shape.

    Energies are sums over atoms, smooth at the cutoff, invariant; per-element shifts and scales come from
    the data (``set_statistics``).

    Args:
        elements: atomic numbers it will know.
        cutoff: Å.
        width: scalar features per atom.
        n_channels: equivariant channels per atom.
        n_radial: radial functions.
    """

    family: ClassVar[str] = "egnn"
    energy_shifts: Tensor
    force_scale: Tensor
    mean_neighbors: Tensor
    degree_two: Tensor
    reversal: Tensor

    def __init__(
        self,
        elements: Sequence[int],
        cutoff: float = 5.0,
        width: int = 64,
        n_channels: int = 16,
        n_radial: int = 8,
    ) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.species = SpeciesIndex(elements)
        n_species = len(self.species)
        self.config: dict[str, Any] = {
            "elements": list(self.species.elements),
            "cutoff": self.cutoff,
            "width": width,
            "n_channels": n_channels,
            "n_radial": n_radial,
        }
        self.n_channels = n_channels
        self.radial = RadialBasis(n_radial, self.cutoff)
        self.register_buffer("energy_shifts", torch.zeros(n_species, dtype=torch.float64))
        self.register_buffer("force_scale", torch.tensor(1.0, dtype=torch.float64))
        self.register_buffer("mean_neighbors", torch.tensor(10.0, dtype=torch.float64))
        self.register_buffer("degree_two", degree_two(), persistent=False)
        self.register_buffer("reversal", torch.tensor(REVERSAL), persistent=False)
        c = n_channels
        # Layer 1: learnt mixing of (element, radial) slots into channels, one matrix a degree.
        self.mixing = nn.Parameter(torch.randn(3, n_species * n_radial, 2 * c) / math.sqrt(n_radial))
        self.centre = nn.Embedding(n_species, width)
        self.update1 = nn.Sequential(nn.Linear(width + 7 * c, width), nn.SiLU(), nn.Linear(width, width))
        # Layer 2: elementwise messages from the neighbours' features.
        self.filters = nn.Linear(n_radial, 3 * c, bias=False)
        self.send = nn.Linear(width, 2 * c)
        self.send_vectors = nn.Linear(c, c, bias=False)
        self.receive_vectors = nn.Linear(c, c, bias=False)
        self.update2 = nn.Sequential(nn.Linear(width + 5 * c, width), nn.SiLU(), nn.Linear(width, width))
        self.read_out = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    @property
    def elements(self) -> tuple[int, ...]:
        return self.species.elements

    def set_statistics(self, energy_shifts: Tensor, force_scale: float, mean_neighbors: float) -> None:
        self.energy_shifts.copy_(energy_shifts)
        self.force_scale.fill_(force_scale)
        self.mean_neighbors.fill_(max(mean_neighbors, 1.0))

    def shift_energies(self, shifts: Tensor) -> None:
        self.energy_shifts.add_(shifts.to(self.energy_shifts))

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        columns = self.species(state.atomic_numbers)
        dtype, c = self.mixing.dtype, self.n_channels
        i, j = neighbors.i, neighbors.j
        unit, basis = self._unit_and_basis(pair_vectors(state, neighbors).to(dtype))
        to_tensors = self.degree_two.to(dtype)
        density = self._densities(columns, i, j, basis, unit, to_tensors)
        # Pieces by split, not by slicing: its gradient is one concatenation.
        parts = zip(density.split([1, 3, 5], dim=1), self.mixing, strict=True)
        scalars, vw, tu = (part @ mixing for part, mixing in parts)
        products, sum_ = first_products(to_tensors, vw, tu).split([5 * c, 3 * c], dim=-1)
        h = self.centre(columns)
        h = h + self.update1(torch.cat([h, scalars.squeeze(1), products], dim=-1))
        sent = self.send_vectors(sum_.reshape(-1, c)).view(-1, 3 * c)
        sent = torch.cat([self.send(h), sent], dim=-1)
        received = messages(Bonds(i, j), sent, basis, unit, self.filters.weight.T)
        scalars, z = received.split([2 * c, 3 * c], dim=-1)
        y = self.receive_vectors(z.reshape(-1, c)).view(-1, 3 * c)
        products = second_products(to_tensors, torch.cat([z, y], dim=-1), vw, tu)
        h = h + self.update2(torch.cat([h, scalars, products], dim=-1))
        per_atom = self.read_out(h).squeeze(-1).double() * self.force_scale
        per_atom = per_atom + self.energy_shifts[columns]
        zeros = torch.zeros(state.n_systems, dtype=torch.float64, device=per_atom.device)
        return zeros.index_add(0, state.system_idx, per_atom)

    def pair_slopes(self, state: State, neighbors: NeighborList) -> PairSlopes | None:
        if type(self).forward is not EGNN.forward:  # a subclass that computes something else
            return None
        return energies_and_slopes(self, state, neighbors)

    def _unit_and_basis(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """û, and the basis over the square root of the mean number of neighbours: all is linear in it."""
        if kernel.is_of_use(vectors):
            from dyntrain.models.egnn_kernels import unit_and_basis

            factor = 1.0 / math.sqrt(float(self.mean_neighbors))
            return unit_and_basis(vectors, len(self.radial.wave_numbers), self.cutoff, factor)
        distances = vectors.norm(dim=-1)
        norm = torch.rsqrt(self.mean_neighbors).to(vectors.dtype)
        return vectors / distances[:, None], self.radial(distances) * norm

    def _densities(
        self, columns: Tensor, i: Tensor, j: Tensor, basis: Tensor, unit: Tensor, to_tensors: Tensor
    ) -> Tensor:
        """Σ over neighbours of radial basis × spherical tensor, a slot per element: [n_atoms, 9, slots]."""
        n_species, n_atoms, n_radial = len(self.species), columns.shape[0], basis.shape[1]
        if kernel.is_of_use(basis):
            from dyntrain.models.density_kernels import densities

            return densities(unit, basis, i, j, columns, n_species)
        to_i = (i * n_species + columns.index_select(0, j)).split(PAIRS_AT_A_TIME)
        to_j = (j * n_species + columns.index_select(0, i)).split(PAIRS_AT_A_TIME)
        reversal = self.reversal.to(basis.dtype).repeat_interleave(n_radial)
        density = basis.new_zeros(n_atoms * n_species, 9 * n_radial)
        back = torch.zeros_like(density)
        parts = zip(to_i, to_j, basis.split(PAIRS_AT_A_TIME), unit.split(PAIRS_AT_A_TIME), strict=True)
        for i_slots, j_slots, radial, u in parts:
            outer = (u[:, :, None] * u[:, None, :]).flatten(1)
            y = torch.cat([torch.ones_like(u[:, :1]), u, outer @ to_tensors], dim=-1)
            # Products of all pairs (tensor, radial) as one product of long rows: short loops are slow.
            forth = y.repeat_interleave(n_radial, dim=1) * radial.repeat(1, 9)
            density = density.index_add_(0, i_slots, forth)
            back = back.index_add_(0, j_slots, forth)
        density = density.addcmul(back, reversal)
        density = density.view(n_atoms, n_species, 9, n_radial).transpose(1, 2)
        return density.reshape(n_atoms, 9, n_species * n_radial)
