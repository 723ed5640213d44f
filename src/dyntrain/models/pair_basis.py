"""What the default network sees of a pair: radial functions of its distance, tensors of its direction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

REVERSAL = [1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
"""Signs of the nine spherical tensors of the reversed direction: odd degrees change theirs."""


def envelope(x: Tensor) -> Tensor:
    """1 at x = 0, and at x = 1 zero with its first three derivatives: (1 − x²)⁴."""
    return (1.0 - x * x) ** 4


class RadialBasis(nn.Module):
    """sin(n π d/c)/d · envelope(d/c), n = 1 … n_radial (Gasteiger et al., ICLR 2020), scaled to unit size.

    Args:
        cutoff: c, Å.
    """

    def __init__(self, n_radial: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.register_buffer(
            "wave_numbers",
            math.pi / cutoff * torch.arange(1, n_radial + 1, dtype=torch.float64),
            persistent=False,
        )

    wave_numbers: Tensor

    def forward(self, distances: Tensor) -> Tensor:
        """[n_pairs] Å → [n_pairs, n_radial]."""
        scale = 2.0 * envelope(distances / self.cutoff) / distances
        return torch.sin(distances[:, None] * self.wave_numbers.to(distances.dtype)) * scale[:, None]

    def with_slopes(self, distances: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """The same and its derivative by the distance, both times ``factor``, [n_radial, n_pairs]."""
        wave_numbers = self.wave_numbers.to(distances.dtype)[:, None]
        inside = 1.0 - (distances / self.cutoff).square_()
        # s = 2 (1 − x²)⁴ / d,  s′ = −16 (1 − x²)³ / c² − s / d
        cubed = inside.pow(3).mul_(2.0 * factor)
        scale = inside.mul_(cubed).div_(distances)
        scale_slope = torch.div(scale, distances).add_(cubed, alpha=8.0 / self.cutoff**2)
        phase = wave_numbers * distances
        sines = phase.sin()
        slopes = phase.cos_().mul_(wave_numbers).mul_(scale).addcmul_(sines, scale_slope, value=-1)
        return sines.mul_(scale), slopes


def degree_two() -> Tensor:
    """[9, 5]: entries of u uᵀ (row by row) → five real spherical tensors with |Y₂|² = 1 for unit u.

    The same table turns components back into the symmetric traceless matrix, up to one common factor.
    """
    half3 = 0.5 * math.sqrt(3.0)
    xy = [0, half3, 0, half3, 0, 0, 0, 0, 0]
    yz = [0, 0, 0, 0, 0, half3, 0, half3, 0]
    zz = [-0.5, 0, 0, 0, -0.5, 0, 0, 0, 1.0]
    xz = [0, 0, half3, 0, 0, 0, half3, 0, 0]
    xxyy = [half3, 0, 0, 0, -half3, 0, 0, 0, 0]
    return torch.tensor([xy, yz, zz, xz, xxyy], dtype=torch.float64).T.contiguous()
