"""The network of Žugec et al. (JCIM 2025), evaluated exactly but cheaply: the "paper" variant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dyntrain.models.chebyshev import chebyshev_coefficients
from dyntrain.models.family import FamilyModel
from dyntrain.models.normed_silu import centred
from dyntrain.models.paper_gradients import energies
from dyntrain.models.paper_inference import FrozenNetwork
from dyntrain.models.paper_pairs import Pairs
from dyntrain.models.paper_tables import Expansion, tabulate
from dyntrain.models.paper_weights import LayerWeights, ReadOutWeights
from dyntrain.models.species import SpeciesIndex
from dyntrain.neighbors import NeighborList, pair_vectors
from dyntrain.potential import PairSlopes
from dyntrain.state import State

_RANGE_BEYOND_CUTOFF = 1.0
"""Å past the cutoff that the Chebyshev form still covers: frozen neighbour lists let pairs drift out."""


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

    def expansion(self, pair: Tensor) -> Expansion:
        """W1's columns for the edge features in double precision, beside their fast form."""
        to_features = centred(self.w1.weight.double())[:, 2 * self.w2.weight.shape[0] :]
        return Expansion(self.frequencies.double(), to_features.T, pair)

    def sweep_weights(self, n_terms: int, range_end: float) -> LayerWeights:
        """This layer's weights as the sweeps need them (differentiable)."""
        width = self.w2.weight.shape[0]
        w1 = centred(self.w1.weight)
        to_centre, to_neighbor, to_features = w1.split([width, width, w1.shape[1] - 2 * width], dim=1)
        coefficients = self.coefficients(range_end)
        pair = functional.pad(coefficients @ to_features.T, (0, 0, 0, n_terms - coefficients.shape[0]))
        return LayerWeights(
            pair,
            to_centre,
            to_neighbor,
            centred(self.w1.bias),
            self.norm1.weight,
            self.norm1.bias,
            centred(self.w2.weight),
            centred(self.w2.bias),
            self.norm2.weight,
            self.norm2.bias,
            centred(self.w3.weight),
            centred(self.w3.bias),
            self.norm3.weight,
            self.norm3.bias,
            centred(self.w4.weight),
            centred(self.w4.bias),
            self.norm4.weight,
            self.norm4.bias,
        )


class _Kept(NamedTuple):
    """A frozen network and what it was made from.

    Weights are compared number by number: fused optimizers change them without counting up their versions.
    """

    training: bool
    weights: list[Tensor]
    network: FrozenNetwork

    def is_of(self, training: bool, weights: list[Tensor]) -> bool:
        return self.training == training and all(
            old.dtype == new.dtype and old.device == new.device and torch.equal(old, new)
            for old, new in zip(self.weights, weights, strict=True)
        )


class PaperEGNN(FamilyModel):
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

    family: ClassVar[str] = "paper_egnn"

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
        self._range_end = self.cutoff + _RANGE_BEYOND_CUTOFF
        self._frozen: _Kept | None = None

    @property
    def elements(self) -> tuple[int, ...]:
        return self.species.elements

    def message_layers(self) -> list[_Layer]:
        return cast(list[_Layer], list(self.layers))

    def set_mean_energy(self, mean_energy: float) -> None:
        """Start the read-out's bias b6 at the data's mean energy, eV.

        Total energies of thousands of eV would otherwise hold up everything else until b6 has got there.
        """
        with torch.no_grad():
            self.w6.bias.fill_(mean_energy)

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        columns = self.species(state.atomic_numbers)
        h = self._h_of_elements().index_select(0, columns)
        pairs, order = Pairs.of(state, neighbors, columns)
        distances = pair_vectors(state, neighbors).norm(dim=-1).index_select(0, order)
        weights = [tensor for layer in self._sweep_weights() for tensor in layer]
        return energies(pairs, distances, self._range_end, [h, *weights, *self._read_out()])

    def _h_of_elements(self) -> Tensor:
        return self.w_in.weight.T + self.w_in.bias

    def _sweep_weights(self) -> list[LayerWeights]:
        layers = self.message_layers()
        n_terms = max(layer.coefficients(self._range_end).shape[0] for layer in layers)
        return [layer.sweep_weights(n_terms, self._range_end) for layer in layers]

    def _read_out(self) -> ReadOutWeights:
        return ReadOutWeights(self.w5.weight, self.w5.bias, self.w6.weight, self.w6.bias)

    def pair_slopes(self, state: State, neighbors: NeighborList) -> PairSlopes | None:
        """Energies and dE/dr of all pairs without a graph.

        After ``eval()``, in single precision, what depends only on two elements and a distance comes from
        tables (``paper_tables``), which are made again whenever a weight has changed.
        """
        if type(self).forward is not PaperEGNN.forward:  # a subclass that computes something else
            return None
        columns = self.species(state.atomic_numbers)
        return self._frozen_network().energies_and_slopes(columns, state, neighbors)

    def _frozen_network(self) -> FrozenNetwork:
        weights, kept = [*self.parameters(), *self.buffers()], self._frozen
        if kept is None or not kept.is_of(self.training, weights):
            copies = [tensor.detach().clone() for tensor in weights]
            self._frozen = kept = _Kept(self.training, copies, self._freeze())
        return kept.network

    @torch.no_grad()
    def _freeze(self) -> FrozenNetwork:
        h, layers, tables = self._h_of_elements(), self._sweep_weights(), None
        if not self.training and h.dtype == torch.float32:
            expansions = [
                layer.expansion(weights.pair)
                for layer, weights in zip(self.message_layers(), layers, strict=True)
            ]
            tables = tabulate(layers[0], expansions, h, self._range_end)
        if tables is not None:
            layers[1:] = [
                of_layer._replace(pair=table)
                for of_layer, table in zip(layers[1:], tables.features, strict=True)
            ]
        return FrozenNetwork(h, layers, self._read_out(), self._range_end, tables)

    def load_published(self, weights: dict[str, np.ndarray]) -> None:
        """Take over the published code's weights by its names for them (``convs.0.mlp_msg.0.weight`` …).

        Raises:
            KeyError: a weight is missing; ValueError: one has another shape.
        """
        own: dict[str, Tensor] = dict(self.named_parameters())
        for number, layer in enumerate(self.message_layers()):
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
