"""The network of Žugec et al. (JCIM 2025), evaluated exactly but cheaply: the "paper" variant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dyntrain.models.species import SpeciesIndex
from dyntrain.neighbors import NeighborList, pair_vectors
from dyntrain.potential import EnergyModel
from dyntrain.state import State

_RANGE_BEYOND_CUTOFF = 1.0
"""Å past the cutoff that the Chebyshev form still covers: frozen neighbour lists let pairs drift out."""


def fourier_features(distances: Tensor, frequencies: Tensor) -> Tensor:
    """[sin(B d), cos(B d)], [n_pairs, 2·len(B)]: the plain evaluation, kept as the oracle of the fast one."""
    phase = distances[:, None] * frequencies
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


def chebyshev_basis(distances: Tensor, range_end: float, n_terms: int) -> Tensor:
    """T_k(x) = cos(k arccos x), x = 2 d/range_end − 1, for k < n_terms: [n_pairs, n_terms].

    Raises:
        ValueError: a distance is outside the range.
    """
    longest = float(distances.detach().max()) if distances.numel() else 0.0
    if longest >= range_end:
        raise ValueError(
            f"a pair at {longest:.3f} Å is beyond the {range_end:.3f} Å that the fast edge features cover: "
            "rebuild the neighbour list"
        )
    theta = torch.acos(2.0 / range_end * distances - 1.0)
    return torch.cos(theta[:, None] * torch.arange(n_terms, dtype=theta.dtype, device=theta.device))


def chebyshev_coefficients(frequencies: Tensor, range_end: float, tolerance: float = 1e-10) -> Tensor:
    """M with [sin(B d), cos(B d)] = T(d) M on 0 < d < range_end, [n_terms, 2·len(B)] float64.

    On a bounded range the hundreds of features span few dimensions (about the largest phase plus
    twenty); n_terms is the smallest that reproduces each of them to ``tolerance``.
    """
    frequencies = frequencies.detach().double().cpu()
    n_nodes = 256 + 4 * math.ceil(float(frequencies.abs().max()) * range_end)
    theta = (torch.arange(n_nodes, dtype=torch.float64) + 0.5) * math.pi / n_nodes
    at_nodes = fourier_features(0.5 * range_end * (theta.cos() + 1.0), frequencies)
    spectrum = (
        2.0 / n_nodes * torch.cos(torch.arange(n_nodes, dtype=torch.float64)[:, None] * theta) @ at_nodes
    )
    spectrum[0] *= 0.5
    tail = spectrum.abs().flip(0).cumsum(0).flip(0).amax(1)
    return spectrum[: int((tail > tolerance).sum())].contiguous()


class _Layer(nn.Module):
    """One message-passing layer; the names of its parts follow METHOD's W1 … W4."""

    frequencies: Tensor

    def __init__(self, width: int, n_frequencies: int, sigma: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", sigma / math.sqrt(2.0) * torch.randn(n_frequencies))
        self.w1 = nn.Linear(2 * width + 2 * n_frequencies, width)
        self.norm1 = nn.LayerNorm(width)
        self.w2 = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.w3 = nn.Linear(2 * width, width)
        self.norm3 = nn.LayerNorm(width)
        self.w4 = nn.Linear(width, width)
        self.norm4 = nn.LayerNorm(width)
        self._coefficients: Tensor | None = None
        self._made_from: tuple[Tensor, int] | None = None

    def coefficients(self, range_end: float) -> Tensor:
        """Chebyshev form of this layer's features, made again whenever B was loaded or moved."""
        frequencies = self.frequencies
        made_from = self._made_from
        if made_from is None or made_from[0] is not frequencies or made_from[1] != frequencies._version:
            self._coefficients = chebyshev_coefficients(frequencies, range_end).to(frequencies.device)
            self._made_from = (frequencies, frequencies._version)
        assert self._coefficients is not None
        return self._coefficients.to(self.w1.weight.dtype)

    def forward(self, h: Tensor, i: Tensor, j: Tensor, basis: Tensor, coefficients: Tensor) -> Tensor:
        width = h.shape[1]
        to_centre, to_neighbor, to_features = self.w1.weight.split(
            [width, width, self.w1.weight.shape[1] - 2 * width], dim=1
        )
        pair_part = basis[:, : coefficients.shape[0]] @ (coefficients @ to_features.T)
        centre = functional.linear(h, to_centre, self.w1.bias)
        neighbor = functional.linear(h, to_neighbor)
        forth = centre.index_select(0, i) + neighbor.index_select(0, j) + pair_part
        back = centre.index_select(0, j) + neighbor.index_select(0, i) + pair_part
        message = functional.silu(self.norm1(torch.cat([forth, back])))
        message = functional.silu(self.norm2(self.w2(message)))
        received = torch.zeros_like(h).index_add(0, torch.cat([i, j]), message)
        update = functional.silu(self.norm3(self.w3(torch.cat([h, received], dim=-1))))
        return h + functional.silu(self.norm4(self.w4(update)))


class PaperEGNN(EnergyModel):
    """The paper's EGNN: hard cutoff, read-out pooled over the structure (not size-extensive).

        h_i⁰ = W_in onehot(z_i) + b
        ϕ_ij = [h_i, h_j, sin(B d_ij), cos(B d_ij)]
        m_ij = SiLU(LN(W2 SiLU(LN(W1 ϕ_ij + b1)) + b2))
        u_i  = SiLU(LN(W4 SiLU(LN(W3 [h_i, Σ_j m_ij] + b3)) + b4)),   h_i ← h_i + u_i
        E    = W6 ReLU(W5 Σ_i h_i + b5) + b6

    W1 ϕ is split into per-atom parts (W1's columns for h_i and h_j) and a per-pair part shared by both
    directions, the latter through a Chebyshev basis: all exact, a fraction of the work.

    Args:
        elements: atomic numbers, the columns of the one-hot code.
        cutoff: Å. width, n_layers, n_frequencies, sigma: as published.
    """

    def __init__(
        self,
        elements: Sequence[int],
        cutoff: float = 5.0,
        width: int = 128,
        n_layers: int = 3,
        n_frequencies: int = 256,
        sigma: float = 4.0,
    ) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.species = SpeciesIndex(elements)
        self.config: dict[str, Any] = {
            "elements": list(self.species.elements),
            "cutoff": self.cutoff,
            "width": width,
            "n_layers": n_layers,
            "n_frequencies": n_frequencies,
            "sigma": sigma,
        }
        self.w_in = nn.Linear(len(self.species), width)
        self.layers = nn.ModuleList(_Layer(width, n_frequencies, sigma) for _ in range(n_layers))
        self.w5 = nn.Linear(width, width)
        self.w6 = nn.Linear(width, 1)

    @property
    def elements(self) -> tuple[int, ...]:
        return self.species.elements

    def _message_layers(self) -> list[_Layer]:
        return cast(list[_Layer], list(self.layers))

    def set_mean_energy(self, mean_energy: float) -> None:
        """Start the read-out's bias b6 at the data's mean energy, eV.

        Total energies of thousands of eV would otherwise hold up everything else until b6 has got there.
        """
        with torch.no_grad():
            self.w6.bias.fill_(mean_energy)

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        columns = self.species(state.atomic_numbers)
        h = self.w_in.weight.T.index_select(0, columns) + self.w_in.bias
        distances = pair_vectors(state, neighbors).norm(dim=-1)
        range_end = self.cutoff + _RANGE_BEYOND_CUTOFF
        layers = self._message_layers()
        coefficients = [layer.coefficients(range_end) for layer in layers]
        basis = chebyshev_basis(distances, range_end, max(c.shape[0] for c in coefficients)).to(h.dtype)
        for layer, layer_coefficients in zip(layers, coefficients, strict=True):
            h = layer(h, neighbors.i, neighbors.j, basis, layer_coefficients)
        pooled = h.new_zeros(state.n_systems, h.shape[1]).index_add(0, state.system_idx, h)
        return self.w6(functional.relu(self.w5(pooled))).squeeze(-1).double()

    def load_published(self, weights: dict[str, np.ndarray]) -> None:
        """Take over the published code's weights by its names for them (``convs.0.mlp_msg.0.weight`` …).

        Raises:
            KeyError: a weight is missing; ValueError: one has another shape.
        """
        own: dict[str, Tensor] = dict(self.named_parameters())
        for number, layer in enumerate(self._message_layers()):
            own[f"layers.{number}.frequencies"] = layer.frequencies
        with torch.no_grad():
            for name, tensor in own.items():
                value = torch.as_tensor(weights[published_name(name)]).reshape(-1)
                if value.numel() != tensor.numel():
                    raise ValueError(
                        f"weight {published_name(name)} has {value.numel()} numbers, expected "
                        f"{tensor.numel()}"
                    )
                tensor.copy_(value.reshape(tensor.shape))


_PUBLISHED = {
    "w1": "mlp_msg.0",
    "norm1": "mlp_msg.1",
    "w2": "mlp_msg.3",
    "norm2": "mlp_msg.4",
    "w3": "mlp_upd.0",
    "norm3": "mlp_upd.1",
    "w4": "mlp_upd.3",
    "norm4": "mlp_upd.4",
}


def published_name(name: str) -> str:
    """The published code's name of one of our parameters."""
    head, *rest = name.split(".")
    if head == "layers":
        number, part, *kind = rest
        if part == "frequencies":
            return f"convs.{number}.RFF.B"
        return ".".join([f"convs.{number}", _PUBLISHED[part], *kind])
    return ".".join([{"w_in": "emb_in", "w5": "pred.0", "w6": "pred.2"}[head], *rest])
