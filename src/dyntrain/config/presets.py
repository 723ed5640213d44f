"""The presets: recipes that the user's YAML comes on top of."""

from __future__ import annotations

from typing import Any

_PAPER: dict[str, Any] = {
    "model": {"name": "paper_egnn", "cutoff": 5.0},
    "batch_size": 32,
    "training_points": 256,
    "loss": {
        "forces": {"weight": 1.0, "kind": "l1", "per_element": True},
        "energy": {"weight": 1.0, "kind": "l1", "only_single_frames": True},
        "first_step_weight": 50.0,
        "later_step_weight": 1.0,
    },
    "backprop": "stop_gradient",
    "curriculum": {
        "kind": "plateau",
        "max_length": 7,
        "lr": 1e-3,
        "factor": 0.33,
        "patience": 15,
        "floor": 2e-6,
        "restart_lr": 1e-4,
    },
    "gradient_clip": 1.0,
    "ema": 0.0,
    "validation": {"n_starts": 256, "n_steps": 120, "batch_size": 256},
}
"""The published recipe (METHOD)."""

_DYNAMIC: dict[str, Any] = {
    "curriculum": {
        "kind": "schedule",
        "stages": [
            {"segment_length": 1, "share": 0.6},
            {"segment_length": 2, "share": 0.1},
            {"segment_length": 4, "share": 0.1},
            {"segment_length": 8, "share": 0.2},
        ],
    },
}
"""Segments that grow in the last 40 % of the budget."""

PRESETS = {"paper": _PAPER, "dynamic": _DYNAMIC}
