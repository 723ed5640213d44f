"""What learns: the network, its running average and the optimiser, one clipped update at a time."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from dyntrain.models.files import network_of
from dyntrain.potential import Potential
from dyntrain.training.adam import Averages, adam_for


class Learner:
    """Adam on a clipped gradient, and an exponential moving average of the weights (EMA).

    Args:
        potential: what is trained.
        gradient_clip: largest norm of the gradient.
        ema: decay of the average in one update; 0: no average.

    Attributes:
        potential: with the weights that learn.
        averaged: with the weights that are validated and kept: the average, or those of ``potential``.
    """

    def __init__(self, potential: Potential, gradient_clip: float, ema: float) -> None:
        self.potential, self.gradient_clip, self.ema = potential, gradient_clip, ema
        self.parameters = [p for p in potential.parameters() if p.requires_grad]
        self.optimizer = adam_for(self.parameters)
        self.averaged = copy.deepcopy(potential).requires_grad_(False) if ema > 0 else potential
        pairs = zip(self.averaged.parameters(), potential.parameters(), strict=True)
        self._averages = Averages([average for average, w in pairs if w.requires_grad], self.parameters)

    @torch.no_grad()
    def update(self, lr: float, step: int) -> float | None:
        """Apply the weights' ``grad``; its norm before clipping, None if not finite: nothing is touched then.

        Args:
            step: number of updates tried before this one.
        """
        norm = self.optimizer.step(lr, self.gradient_clip)
        if not math.isfinite(norm):
            return None
        if self.averaged is not self.potential:
            # Early on the average follows closely: the first weights are not worth remembering.
            decay = min(self.ema, (1.0 + step) / (10.0 + step))
            self._averages.approach(1.0 - decay)
        return norm

    def state_dict(self) -> dict[str, Any]:
        state = {
            "weights": network_of(self.potential).state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.averaged is not self.potential:
            state["averaged"] = network_of(self.averaged).state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        network_of(self.potential).load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.averaged is not self.potential:
            network_of(self.averaged).load_state_dict(state["averaged"])
