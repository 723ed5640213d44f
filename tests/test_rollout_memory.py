"""Memory of a roll-out and its gradient: flat for StopGradient and Adjoint, growing for Full."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dyntrain.integrators import VelocityVerlet
from dyntrain.models.analytic import LennardJones
from dyntrain.potential import Conservative
from dyntrain.rollout import Adjoint, Backprop, Full, StopGradient, rollout
from dyntrain.units import FS
from systems import argon_crystal


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors made under it that are alive, and their peak.

    Counts the storages that torch operations return, forward and backward, until they die. Unlike the
    resident memory of the process this is exact and the same in every run, whatever the allocator keeps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, partial(self._forget, key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int, _: Any) -> None:
        del self._alive[key]
        self.now -= size


def test_live_bytes_are_counted_right() -> None:
    with LiveBytes() as live:
        a = torch.ones(1000, dtype=torch.float64, requires_grad=True)
        assert live.now == 8000
        b = a.exp()  # saves its result: 8000 more
        view = b[:10]
        assert live.now == 16000
        c = (view * 2.0).sum()
        del b, view
        c.backward()
        assert a.grad is not None
        del c
        assert live.now == 16000  # a and its gradient
    assert 24000 < live.peak < 45000


def peak_bytes(backprop: Backprop, segment_length: int) -> int:
    """Of a roll-out of S frames, a loss of the forces in each, and the gradient."""
    start, potential = argon_crystal(3, speed=0.002), Conservative(LennardJones(cutoff=7.0))
    target = torch.zeros_like(start.positions)
    with LiveBytes() as live:
        total = torch.zeros((), dtype=torch.float64)
        for frame in rollout(potential, start, VelocityVerlet(FS), segment_length - 1, backprop=backprop):
            loss = (frame.prediction.forces - target).pow(2).sum()
            if backprop.block == 1:
                loss.backward()
            else:
                total = total + loss
        if total.requires_grad:
            total.backward()
    assert all(parameter.grad is not None for parameter in potential.parameters())
    return live.peak


def trajectory_bytes(segment_length: int) -> int:
    """Positions, velocities and forces of 27 atoms and one energy in each frame, in float64."""
    return segment_length * 8 * (3 * 3 * 27 + 1)


def test_stop_gradient_takes_the_same_memory_for_any_length() -> None:
    assert peak_bytes(StopGradient(), 256) <= 1.05 * peak_bytes(StopGradient(), 4)


def test_adjoint_takes_the_same_memory_beyond_the_trajectory() -> None:
    """Beyond the frames it yields and, in the backward pass, the loss's gradient by each of them."""
    short, long = (peak_bytes(Adjoint(), s) - 2 * trajectory_bytes(s) for s in (4, 256))
    assert long <= 1.05 * short
    # The trajectory itself is small: what is saved per frame is a graph.
    assert 2 * trajectory_bytes(1) < 0.05 * short


def test_full_takes_memory_for_the_graph_of_each_frame() -> None:
    """Otherwise the tests above would show nothing."""
    short, long = peak_bytes(Full(), 4), peak_bytes(Full(), 32)
    assert long > 6 * short


def test_without_grad_a_roll_out_keeps_nothing() -> None:
    start, potential = argon_crystal(3, speed=0.002), Conservative(LennardJones(cutoff=7.0))
    peaks = []
    for n_steps in (4, 64):
        with torch.no_grad(), LiveBytes() as live:
            for _ in rollout(potential, start, VelocityVerlet(FS), n_steps, backprop=Full()):
                pass
        peaks.append(live.peak)
    assert peaks[1] <= 1.05 * peaks[0]
