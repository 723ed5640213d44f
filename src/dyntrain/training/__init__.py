"""Training: one visible loop (loop.py) and the pieces it calls."""

from dyntrain.training.loop import TrainingResult, train
from dyntrain.training.observer import Observer, Silent

__all__ = ["Observer", "Silent", "TrainingResult", "train"]
