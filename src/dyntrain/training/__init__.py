"""Training: one visible loop (loop.py) and the pieces it calls."""

from dyntrain.training.loop import TrainingResult, train

__all__ = ["TrainingResult", "train"]
