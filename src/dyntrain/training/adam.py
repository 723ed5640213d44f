"""Adam on a clipped gradient: PyTorch's fused operation, with little around it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors as as_one_vector
from torch._utils import _unflatten_dense_tensors as as_tensors_like

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


class Adam:
    """Adam (Kingma and Ba, arXiv:1412.6980) on a clipped gradient.

    ``torch.optim.Adam`` makes the same steps. What it does around them (hooks, lists made anew, a tensor for
    each weight's number of steps) takes longer than they do where networks are small.

    A weight without gradient is left as it is, and the step does not count for it.

    Args:
        weights: what learns.
    """

    def __init__(self, weights: Iterable[torch.nn.Parameter]) -> None:
        self._weights = list(weights)
        alike: dict[tuple[torch.device, torch.dtype], dict[int, torch.nn.Parameter]] = {}
        for number, weight in enumerate(self._weights):
            alike.setdefault((weight.device, weight.dtype), {})[number] = weight
        self._groups = [_Group(weights) for weights in alike.values()]

    def zero_grad(self) -> None:
        """Take every weight's ``grad`` away."""
        for weight in self._weights:
            weight.grad = None

    def step(self, lr: float, largest_norm: float) -> float:
        """Move the weights by their ``grad``; its norm before clipping. Not finite: nothing is touched.

        To be called without autograd.

        Args:
            lr: learning rate.
            largest_norm: the whole gradient is clipped to this norm.
        """
        gradients = [group.gradient() for group in self._groups]
        norm = math.hypot(*(float(torch.linalg.vector_norm(gradient)) for gradient in gradients))
        if math.isfinite(norm):
            for group, gradient in zip(self._groups, gradients, strict=True):
                group.step(gradient.mul_(largest_norm / norm) if norm > largest_norm else gradient, lr)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Steps and moments by the weight's number, named as in ``torch.optim.Adam``'s."""
        return {"state": dict(sorted(entry for group in self._groups for entry in group.state()))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``, also one of ``torch.optim.Adam``."""
        for group in self._groups:
            group.load(state["state"])


class _Group:
    """Weights of one device and type, by their number, and what is kept of their gradients.

    means, squares: running means of each weight's gradient and of its square
    steps:          that each weight has made, [n_weights]
    """

    def __init__(self, weights: Mapping[int, torch.nn.Parameter]) -> None:
        self.numbers, self.weights = list(weights), list(weights.values())
        for weight in self.weights:
            weight.data = weight.data.contiguous()  # the fused operation goes through memory as it lies
        self.means, self.squares = ([torch.zeros_like(weight) for weight in self.weights] for _ in range(2))
        self.steps = torch.zeros(len(self.weights), device=self.weights[0].device)
        self._choose([True] * len(self.weights))

    def _choose(self, has_gradient: list[bool]) -> None:
        """Make the lists of what is updated: the weights that have a gradient."""
        self._has_gradient = has_gradient
        self._more_steps = torch.tensor(has_gradient, dtype=self.steps.dtype, device=self.steps.device)
        columns = zip(self.weights, self.means, self.squares, self.steps.unbind(), strict=True)
        chosen = [column for column, has in zip(columns, has_gradient, strict=True) if has]
        self._weights, self._means, self._squares, self._steps = (
            [column[k] for column in chosen] for k in range(4)
        )

    def gradient(self) -> Tensor:
        """Of all weights that have one, as one vector [n_numbers]."""
        gradients = [weight.grad for weight in self.weights]
        has_gradient = [gradient is not None for gradient in gradients]
        if has_gradient != self._has_gradient:
            self._choose(has_gradient)
        found = [gradient for gradient in gradients if gradient is not None]
        return as_one_vector(found) if found else self.steps.new_zeros(0)

    def step(self, gradient: Tensor, lr: float) -> None:
        """One step of the weights that have a gradient, which may be scaled.

        Args:
            gradient: as by ``gradient``.
        """
        if not self._weights:
            return
        self.steps += self._more_steps
        torch._fused_adam_(
            self._weights,
            as_tensors_like(gradient, self._weights),
            self._means,
            self._squares,
            [],
            self._steps,
            lr=lr,
            beta1=_BETA1,
            beta2=_BETA2,
            weight_decay=0.0,
            eps=_EPS,
            amsgrad=False,
            maximize=False,
        )

    def state(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """(number, what is kept) of each weight that has made a step."""
        columns = zip(self.numbers, self.steps, self.means, self.squares, strict=True)
        for number, steps, mean, square in columns:
            if steps > 0:
                yield number, {"step": steps.clone(), "exp_avg": mean, "exp_avg_sq": square}

    def load(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        zero = torch.zeros(())
        for k, number in enumerate(self.numbers):
            kept = state.get(number, {"step": zero, "exp_avg": zero, "exp_avg_sq": zero})
            self.steps[k] = kept["step"]
            self.means[k].copy_(kept["exp_avg"])
            self.squares[k].copy_(kept["exp_avg_sq"])
