"""Which windows a step trains on: a function of the segment length and how many were drawn before."""

from __future__ import annotations

from collections.abc import Sequence

from dyntrain.config import Config
from dyntrain.data.segments import Segments, epoch_order
from dyntrain.data.trajectory import IntArray, Trajectory
from dyntrain.training.setup import training_segments


class Sampler:
    """Passes over all windows of one length, each in an order of its own; a resumed run needs no state of it.

    Args:
        config: gives batch size, seed and training points.
        runs: training runs.
    """

    def __init__(self, config: Config, runs: Sequence[Trajectory]) -> None:
        self._config, self._runs = config, runs
        self._segments: Segments | None = None
        self._order: tuple[tuple[int, int], IntArray] | None = None

    def windows(self, length: int) -> Segments:
        """All windows of this length that are trained on."""
        if self._segments is None or self._segments.length != length:
            self._segments = training_segments(self._config, self._runs, length)
        return self._segments

    def batch(self, length: int, n_drawn: int) -> Segments:
        """The windows of the next step, after ``n_drawn`` of this length; the last of a pass are fewer."""
        windows = self.windows(length)
        pass_number, offset = divmod(n_drawn, len(windows))
        if self._order is None or self._order[0] != (length, pass_number):
            seed = self._config.seed * 1009 + length
            self._order = (length, pass_number), epoch_order(len(windows), seed, pass_number)
        return windows.take(self._order[1][offset : offset + self._config.batch_size])
