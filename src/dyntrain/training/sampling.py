"""Which windows a step trains on, and their noise: functions of the seed and how many were drawn before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from dyntrain.config import Config
from dyntrain.data.segments import Batch, Segments, epoch_order, find_segments
from dyntrain.data.trajectory import Trajectory
from dyntrain.training.setup import training_segments


class Sampler:
    """Passes over all windows of one length, each in an order of its own; a resumed run needs no state of it.

    Args:
        config: gives batch size, seed, training points and the share of replayed windows.
        training: training runs.
        replay: runs of the model's former training; each pass mixes in other windows of them.

    Attributes:
        replay: as given.
        runs: that the windows belong to: training runs, then replay runs.
    """

    def __init__(
        self, config: Config, training: Sequence[Trajectory], replay: Sequence[Trajectory] = ()
    ) -> None:
        self._config, self._training, self.replay = config, training, replay
        self.runs = [*training, *replay]
        self._windows: tuple[int, Segments, Segments | None] | None = None
        self._pass: tuple[tuple[int, int], Segments] | None = None

    def _found(self, length: int) -> tuple[Segments, Segments | None]:
        """All windows of this length of the training runs, and of the replay runs if any."""
        if self._windows is None or self._windows[0] != length:
            training = training_segments(self._config, self._training, length)
            replay = None
            if self.replay:
                replay = find_segments(self.replay, length, "replay", self._config.stride)
            self._windows = length, training, replay
        return self._windows[1:]

    def n_windows(self, length: int) -> int:
        """Windows of this length in one pass."""
        training, replay = self._found(length)
        return len(training) + (0 if replay is None else self._n_replayed(len(training)))

    def _n_replayed(self, n_training: int) -> int:
        replay = self._config.finetune.replay
        return 0 if replay is None else max(1, round(n_training * replay.share / (1.0 - replay.share)))

    def _ordered(self, length: int, pass_number: int) -> Segments:
        """The windows of one pass in the order they are drawn."""
        training, replay = self._found(length)
        joined, seed = training, self._config.seed
        if replay is not None:
            n = self._n_replayed(len(training))
            random = np.random.default_rng([seed, 4, length, pass_number])
            chosen = replay.take(random.choice(len(replay), n, replace=n > len(replay)))
            joined = Segments(
                np.concatenate([training.runs, chosen.runs + len(self._training)]),
                np.concatenate([training.starts, chosen.starts]),
                length,
                training.stride,
            )
        return joined.take(epoch_order(len(joined), seed * 1009 + length, pass_number))

    def batch(self, length: int, n_drawn: int) -> Segments:
        """The windows of the next step, after ``n_drawn`` of this length; the last of a pass are fewer."""
        pass_number, offset = divmod(n_drawn, self.n_windows(length))
        if self._pass is None or self._pass[0] != (length, pass_number):
            self._pass = (length, pass_number), self._ordered(length, pass_number)
        return self._pass[1][offset : offset + self._config.batch_size]

    def following(self, length: int, n_drawn: int) -> Segments:
        """The same, to read ahead of its step; none where another pass begins, which has no order yet."""
        if self._pass is None or self._pass[0] != (length, n_drawn // self.n_windows(length)):
            return self._found(length)[0][:0]
        return self.batch(length, n_drawn)


def displaced(batch: Batch, noise: float, seed: int, drawn: Sequence[int]) -> Batch:
    """Every coordinate off by Gaussian noise, the labels unchanged; fixed atoms stay.

    Args:
        noise: standard deviation of each coordinate, Å.
        drawn: how many structures were drawn before each of the batch; its noise depends on this and the seed
            alone, so that it is the same in one process or several, interrupted or not.
    """
    shapes = zip(drawn, batch.state.n_atoms_per_system().tolist(), strict=True)
    steps = [np.random.default_rng([seed, 3, number]).standard_normal((n, 3)) for number, n in shapes]
    moves = noise * torch.from_numpy(np.concatenate(steps))
    if batch.state.fixed is not None:
        moves[batch.state.fixed] = 0.0
    return replace(batch, state=batch.state.replace(positions=batch.state.positions + moves))
