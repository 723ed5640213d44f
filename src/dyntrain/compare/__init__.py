"""The honest experiment: dynamic training against its controls at equal labelled frames and equal budget."""

from dyntrain.compare.arms import WHAT_IT_IS
from dyntrain.compare.held_out import HeldOut
from dyntrain.compare.record import to_dict
from dyntrain.compare.run import CompareObserver, Comparison, run_comparison
from dyntrain.compare.statistics import PairedTest, difference_band
from dyntrain.compare.trained import Trained

__all__ = [
    "WHAT_IT_IS",
    "CompareObserver",
    "Comparison",
    "HeldOut",
    "PairedTest",
    "Trained",
    "difference_band",
    "run_comparison",
    "to_dict",
]
