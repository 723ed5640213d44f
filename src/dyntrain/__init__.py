"""dyntrain: dynamic training of machine-learning interatomic potentials on AIMD segments."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public names and the module each comes from; imported on first use, so that `import dyntrain` and
# `dyntrain --help` do not pay for torch when nothing of it is needed.
_PUBLIC = {
    "Calculator": "dyntrain.calculator",
    "State": "dyntrain.state",
    "Trajectory": "dyntrain.data.trajectory",
    "UserError": "dyntrain.errors",
    "load_model": "dyntrain.models.files",
    "load_weights": "dyntrain.models.files",
    "potential_from": "dyntrain.adapters.function",
    "potential_from_forces": "dyntrain.adapters.function",
    "read_trajectories": "dyntrain.data.readers",
    "rollout": "dyntrain.rollout",
    "save_model": "dyntrain.models.files",
}

__all__ = ["__version__", *sorted(_PUBLIC)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'dyntrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
