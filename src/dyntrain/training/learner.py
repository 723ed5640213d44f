"""What learns: the network, its running average and the optimiser, one clipped update at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dyntrain.models.files import network_of
from dyntrain.potential import Potential
from dyntrain.training.adam import Adam


class Learner:
    """Adam on a clipped gradient, and an exponential moving average of the weights (EMA).

    Args:
        potential: what is trained.
        gradient_clip: largest norm of the gradient.
        ema: decay of the average in one update; 0: no average.

    Attributes:
        potential: with the weights that learn.
    """

    def __init__(self, potential: Potential, gradient_clip: float, ema: float) -> None:
        self.potential, self.gradient_clip, self.ema = potential, gradient_clip, ema
        self.parameters = [p for p in potential.parameters() if p.requires_grad]
        self.optimizer = Adam(self.parameters)
        self._averaged = copy.deepcopy(potential).requires_grad_(False) if ema > 0 else potential
        self._weights: list[Tensor] = list(potential.parameters())
        self._average_again()

    def _average_again(self) -> None:
        """Begin with the weights that ``_averaged`` has."""
        # As one vector, which one operation moves; the model gets it when it is asked for.
        self._average = _as_one_vector(self._averaged.parameters())
        self._is_new = False

    @property
    def averaged(self) -> Potential:
        """With the weights that are validated and kept: the average, or those of ``potential``."""
        if self._is_new:
            weights = list(self._averaged.parameters())
            parts = self._average.split([weight.numel() for weight in weights])
            with torch.no_grad():
                for weight, part in zip(weights, parts, strict=True):
                    weight.copy_(part.view_as(weight))
            self._is_new = False
        return self._averaged

    @torch.no_grad()
    def update(self, lr: float, step: int) -> float | None:
        """Apply the weights' ``grad``; its norm before clipping, None if not finite: nothing is touched then.

        Args:
            step: number of updates tried before this one.
        """
        norm = self.optimizer.step(lr, self.gradient_clip)
        if not math.isfinite(norm):
            return None
        if self._averaged is not self.potential:
            # Early on the average follows closely: the first weights are not worth remembering.
            decay = min(self.ema, (1.0 + step) / (10.0 + step))
            self._average.lerp_(_as_one_vector(self._weights), 1.0 - decay)
            self._is_new = True
        return norm

    def state_dict(self) -> dict[str, Any]:
        state = {
            "weights": network_of(self.potential).state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self._averaged is not self.potential:
            state["averaged"] = network_of(self.averaged).state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        network_of(self.potential).load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._averaged is not self.potential:
            network_of(self._averaged).load_state_dict(state["averaged"])
            self._average_again()


def _as_one_vector(weights: Iterable[Tensor]) -> Tensor:
    return torch.cat([weight.detach().reshape(-1) for weight in weights])
