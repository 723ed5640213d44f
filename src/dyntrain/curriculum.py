"""Curricula: pure state machines that say how long segments are and how fast to learn; no optimiser here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

Score = tuple[int, float]
"""How good a validation was, smaller is better: (frames never reached for bursts, loss of the others)."""


@dataclass(frozen=True)
class CurriculumState:
    """Where a curriculum stands; plain numbers, so a checkpoint can hold it.

    segment_length: S, frames a training segment has now
    lr: learning rate (plateau curriculum)
    best: best score at this S
    epochs_since_best: epochs since then
    finished: nothing more to learn
    """

    segment_length: int
    lr: float
    best: Score | None = None
    epochs_since_best: int = 0
    finished: bool = False


class Plan(NamedTuple):
    """What the next optimiser step uses."""

    segment_length: int
    lr: float


@dataclass(frozen=True)
class PlateauCurriculum:
    """S grows when learning at this S has converged (METHOD: the paper's settings).

    The learning rate falls by ``factor`` after ``patience`` epochs without improvement; once it would fall
    below ``floor``, S grows by one, the rate restarts at ``restart_lr`` and the best score is forgotten.
    Converged at ``max_length`` ends the training.
    """

    max_length: int
    lr: float = 1e-3
    factor: float = 0.33
    patience: int = 15
    floor: float = 2e-6
    restart_lr: float = 1e-4

    def start(self) -> CurriculumState:
        return CurriculumState(segment_length=1, lr=self.lr)

    def plan(self, state: CurriculumState, progress: float) -> Plan:
        """``progress`` (share of the budget spent) plays no part here."""
        return Plan(state.segment_length, state.lr)

    def after_validation(self, state: CurriculumState, score: Score, progress: float) -> CurriculumState:
        """``progress`` plays no part here."""
        if state.best is None or score < state.best:
            return replace(state, best=score, epochs_since_best=0)
        waited = state.epochs_since_best + 1
        if waited < self.patience:
            return replace(state, epochs_since_best=waited)
        if state.lr * self.factor >= self.floor:
            return replace(state, lr=state.lr * self.factor, epochs_since_best=0)
        if state.segment_length == self.max_length:
            return replace(state, epochs_since_best=waited, finished=True)
        return CurriculumState(segment_length=state.segment_length + 1, lr=self.restart_lr)


class Stage(NamedTuple):
    """A share of the budget spent at one segment length."""

    segment_length: int
    share: float


@dataclass(frozen=True)
class ScheduleCurriculum:
    """S follows the share of the budget spent; the learning rate falls as a half cosine to ``floor``.

    Args:
        stages: segment lengths and their shares of the budget (any positive numbers; they are scaled to 1).
        warmup: share of the budget over which the rate first rises linearly.
        stop_after: end after so many epochs of the last stage without a better score; None: never.
    """

    stages: Sequence[Stage]
    lr: float = 1e-3
    floor: float = 1e-6
    warmup: float = 0.01
    stop_after: int | None = None

    @property
    def max_length(self) -> int:
        return max(stage.segment_length for stage in self.stages)

    def start(self) -> CurriculumState:
        return CurriculumState(segment_length=self.stages[0].segment_length, lr=self.lr)

    def plan(self, state: CurriculumState, progress: float) -> Plan:
        """S and learning rate when the share ``progress`` (0 … 1) of the budget is spent."""
        length = self.stages[self._stage_at(progress)].segment_length
        rise = min(1.0, (progress + 1e-3) / self.warmup) if self.warmup > 0 else 1.0
        fall = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
        return Plan(length, rise * (self.floor + (self.lr - self.floor) * fall))

    def _stage_at(self, progress: float) -> int:
        total, passed = sum(stage.share for stage in self.stages), 0.0
        for number, stage in enumerate(self.stages):
            passed += stage.share / total
            if progress < passed:
                return number
        return len(self.stages) - 1

    def after_validation(self, state: CurriculumState, score: Score, progress: float) -> CurriculumState:
        """Remembers the best score; ends the training early only in the last stage."""
        if state.best is None or score < state.best:
            return replace(state, best=score, epochs_since_best=0)
        if self._stage_at(progress) < len(self.stages) - 1:
            return state
        waited = state.epochs_since_best + 1
        finished = self.stop_after is not None and waited >= self.stop_after
        return replace(state, epochs_since_best=waited, finished=finished)


Curriculum = PlateauCurriculum | ScheduleCurriculum
