"""Mending a model where it fails: the reference continues the model's own motion, and training goes on."""

from dyntrain.improve.loop import Improved, ImproveObserver, improve
from dyntrain.improve.rounds import RoundResult

__all__ = ["ImproveObserver", "Improved", "RoundResult", "improve"]
