"""The paper network's weights as its evaluations need them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LayerWeights(NamedTuple):
    """One layer's weights as the sweeps need them: everything that a layer norm follows has mean zero.

    pair:      [n_terms, width]: W1's columns for the edge features, in the basis of the distances
    centre, neighbor: [width, width]: W1's columns for h_i and h_j
    bias, gain, shift: the number is that of METHOD's W
    """

    pair: Tensor
    centre: Tensor
    neighbor: Tensor
    bias1: Tensor
    gain1: Tensor
    shift1: Tensor
    w2: Tensor
    bias2: Tensor
    gain2: Tensor
    shift2: Tensor
    w3: Tensor
    bias3: Tensor
    gain3: Tensor
    shift3: Tensor
    w4: Tensor
    bias4: Tensor
    gain4: Tensor
    shift4: Tensor


class ReadOutWeights(NamedTuple):
    """E = w6 ReLU(w5 Σ h + bias5) + bias6."""

    w5: Tensor
    bias5: Tensor
    w6: Tensor
    bias6: Tensor
