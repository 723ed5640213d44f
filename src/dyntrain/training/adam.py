"""Adam on a clipped gradient, and the running average of weights: compiled for the CPU, or PyTorch's."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dyntrain import kernel


def adam_for(weights: Iterable[torch.nn.Parameter]) -> Adam:
    """What moves these weights by their gradients."""
    weights = list(weights)
    return CompiledAdam(weights) if _are_for_kernels(weights) else TorchAdam(weights)


_FOR_KERNELS = torch.float32, torch.float64


def _are_for_kernels(tensors: Iterable[Tensor]) -> bool:
    return all(tensor.dtype in _FOR_KERNELS and kernel.is_of_use(tensor) for tensor in tensors)


class Adam(ABC):
    """Adam (Kingma and Ba, arXiv:1412.6980) on a clipped gradient.

    A weight without gradient is left as it is, and the step does not count for it.

    Args:
        weights: what learns.
    """

    def __init__(self, weights: Sequence[torch.nn.Parameter]) -> None:
        self.weights = weights

    def zero_grad(self) -> None:
        """Take every weight's ``grad`` away."""
        for weight in self.weights:
            weight.grad = None

    @abstractmethod
    def step(self, lr: float, largest_norm: float) -> float:
        """Move the weights by their ``grad``; its norm before clipping. Not finite: nothing is touched.

        To be called without autograd. The gradients may be scaled.

        Args:
            lr: learning rate.
            largest_norm: the whole gradient is clipped to this norm.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Steps and moments by the weight's number, named as in ``torch.optim.Adam``'s."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict`` of either form, also one of ``torch.optim.Adam``."""


class TorchAdam(Adam):
    """By ``torch.optim.Adam``."""

    def __init__(self, weights: Sequence[torch.nn.Parameter]) -> None:
        super().__init__(weights)
        self._optimizer = torch.optim.Adam(weights)

    def step(self, lr: float, largest_norm: float) -> float:
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights, largest_norm))
        if math.isfinite(norm):
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._optimizer.step()
        return norm

    def state_dict(self) -> dict[str, Any]:
        return {"state": self._optimizer.state_dict()["state"]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        groups = self._optimizer.state_dict()["param_groups"]
        # Its own copy: PyTorch would go on in the tensors that it is given.
        self._optimizer.load_state_dict({"state": copy.deepcopy(state["state"]), "param_groups": groups})


class CompiledAdam(Adam):
    """The same in compiled loops: what PyTorch does around its steps takes longer for small networks."""

    def __init__(self, weights: Sequence[torch.nn.Parameter]) -> None:
        super().__init__(weights)
        for weight in weights:
            weight.data = weight.data.contiguous()  # a flat view of it is what moves
        self._views = _Views(weights)
        # Flat running means of each gradient and of its square, and the steps made.
        self._moments = [tuple(weight.new_zeros(2, weight.numel()).numpy()) for weight in weights]
        self._steps = [0] * len(weights)

    def step(self, lr: float, largest_norm: float) -> float:
        from dyntrain.training.adam_kernels import squared_norm, step

        gradients = [(k, _flat(w.grad)) for k, w in enumerate(self.weights) if w.grad is not None]
        norm = math.sqrt(sum(squared_norm(gradient) for _, gradient in gradients))
        if math.isfinite(norm):
            weights, scale = self._views(), largest_norm / norm if norm > largest_norm else 1.0
            for k, gradient in gradients:
                self._steps[k] += 1
                step(weights[k], gradient, *self._moments[k], scale, lr, self._steps[k])
        return norm

    def state_dict(self) -> dict[str, Any]:
        found = {}
        for number, (steps, weight, moments) in enumerate(
            zip(self._steps, self.weights, self._moments, strict=True)
        ):
            if steps > 0:
                mean, square = (torch.from_numpy(moment).view(weight.shape) for moment in moments)
                found[number] = {"step": torch.tensor(float(steps)), "exp_avg": mean, "exp_avg_sq": square}
        return {"state": found}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for number, moments in enumerate(self._moments):
            kept = state["state"].get(number)
            self._steps[number] = 0 if kept is None else int(kept["step"])
            for name, moment in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
                moment[:] = 0.0 if kept is None else _flat(kept[name])


class Averages:
    """Running averages of weights.

    Args:
        averages: what follows the weights, in their order.
    """

    def __init__(self, averages: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        self._averages, self._weights = averages, weights
        compiled = _are_for_kernels([*averages, *weights])
        self._views = (_Views(averages), _Views(weights)) if compiled else None

    def approach(self, fraction: float) -> None:
        """Let each average go so far to its weight; to be called without autograd."""
        if self._views is None:
            for average, weight in zip(self._averages, self._weights, strict=True):
                average.lerp_(weight, fraction)
            return
        from dyntrain.training.adam_kernels import approach

        averages, weights = self._views
        for average, weight in zip(averages(), weights(), strict=True):
            approach(average, weight, fraction)


class _Views:
    """Flat arrays of tensors that are contiguous; made anew only where one of them has got other memory."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._where: list[int] = []
        self._arrays: tuple[Any, ...] = ()

    def __call__(self) -> tuple[Any, ...]:
        where = [tensor.data_ptr() for tensor in self._tensors]
        if where != self._where:
            self._arrays = tuple(kernel.writes(*(tensor.view(-1) for tensor in self._tensors)))
            self._where = where
        return self._arrays


def _flat(tensor: Tensor) -> Any:
    """A view, or a copy of what does not lie in order."""
    return tensor.detach().numpy().reshape(-1)
