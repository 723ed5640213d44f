"""Adam on a clipped gradient, and the running average of weights: compiled for the CPU, or PyTorch's."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
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
        numbers: dict[torch.dtype, list[int]] = {}
        for number, weight in enumerate(weights):
            numbers.setdefault(weight.dtype, []).append(number)
        self._groups = [_Group(those, [weights[k] for k in those]) for those in numbers.values()]

    def step(self, lr: float, largest_norm: float) -> float:
        norm = math.sqrt(sum(group.squared_norm() for group in self._groups))
        if math.isfinite(norm):
            for group in self._groups:
                group.step(lr, largest_norm / norm if norm > largest_norm else 1.0)
        return norm

    def state_dict(self) -> dict[str, Any]:
        return {"state": dict(sorted(entry for group in self._groups for entry in group.state().items()))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for group in self._groups:
            group.load(state["state"])


class _Group:
    """Weights of one type, by their numbers, and what is kept of their gradients.

    means, squares: running means of all gradients and of their squares, one after the other
    steps:          that each weight has made, [n_weights]
    """

    def __init__(self, numbers: list[int], weights: list[torch.nn.Parameter]) -> None:
        self.numbers, self.weights = numbers, weights
        for weight in weights:
            weight.data = weight.data.contiguous()  # a flat view of it is what moves
        sizes = [weight.numel() for weight in weights]
        self._views = _Views(weights)
        self.starts, self.steps = np.cumsum([0, *sizes[:-1]]), np.zeros(len(weights))
        self.means, self.squares = (weights[0].new_zeros(sum(sizes)).numpy() for _ in range(2))

    def squared_norm(self) -> float:
        """Of all gradients."""
        from dyntrain.training.adam_kernels import squared_norm

        gradients = [weight.grad for weight in self.weights]
        self._with = [k for k, gradient in enumerate(gradients) if gradient is not None]
        self._gradients = tuple(_flat(gradient) for gradient in gradients if gradient is not None)
        return squared_norm(self._gradients) if self._with else 0.0

    def step(self, lr: float, scale: float) -> None:
        """One step of the weights that had a gradient, after ``squared_norm``; it is to be scaled."""
        from dyntrain.training.adam_kernels import step

        if self._with:
            views = self._views()
            moved, chosen = tuple(views[k] for k in self._with), np.array(self._with)
            step(moved, self._gradients, chosen, self.starts, self.steps, self.means, self.squares, scale, lr)

    def _moments(self, k: int) -> dict[str, Tensor]:
        part = slice(self.starts[k], self.starts[k] + self.weights[k].numel())
        moments = {"exp_avg": self.means, "exp_avg_sq": self.squares}
        return {name: torch.from_numpy(of[part]).view(self.weights[k].shape) for name, of in moments.items()}

    def state(self) -> dict[int, dict[str, Tensor]]:
        """What is kept of each weight that has made a step."""
        return {
            number: {"step": torch.tensor(float(self.steps[k])), **self._moments(k)}
            for k, number in enumerate(self.numbers)
            if self.steps[k] > 0
        }

    def load(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        for k, number in enumerate(self.numbers):
            kept = state.get(number)
            self.steps[k] = 0.0 if kept is None else float(kept["step"])
            for name, moment in self._moments(k).items():
                moment.copy_(torch.zeros(()) if kept is None else kept[name])


class Averages:
    """Running averages of weights.

    Args:
        averages: what follows the weights, in their order.
    """

    def __init__(self, averages: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        self._pairs = list(zip(averages, weights, strict=True))
        self._compiled: list[tuple[_Views, _Views]] | None = None
        if _are_for_kernels([*averages, *weights]):
            alike = [[pair for pair in self._pairs if pair[0].dtype == dtype] for dtype in _FOR_KERNELS]
            self._compiled = [
                (_Views(a), _Views(w)) for a, w in (zip(*of, strict=True) for of in alike if of)
            ]

    def approach(self, fraction: float) -> None:
        """Let each average go so far to its weight; to be called without autograd."""
        if self._compiled is None:
            for average, weight in self._pairs:
                average.lerp_(weight, fraction)
            return
        from dyntrain.training.adam_kernels import approach

        for averages, weights in self._compiled:
            approach(averages(), weights(), fraction)


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
