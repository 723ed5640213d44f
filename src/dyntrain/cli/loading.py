"""What every command that takes a model does with --device and --precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dyntrain.potential import Potential


def load_potential(path: Path, device: str, precision: str | None, trust: bool = False) -> Potential:
    """A model file, or a pretrained model by its name, as a potential on its device.

    Args:
        device: auto (cuda where there is one), cpu, cuda or cuda:N.
        precision: float32 or float64 for the network; None leaves it as it was trained.
        trust: another program's file may run the code that is in it.

    Raises:
        UserError: no such model, device or precision.
    """
    from dyntrain.models.files import load_model

    return load_model(path, device=resolve_device(device), precision=precision, trust=trust)


def resolve_device(device: str) -> str:
    """ "auto" as the device it means here, and any other checked to exist."""
    import torch

    from dyntrain.errors import UserError

    n_gpus = torch.cuda.device_count()
    if device == "auto":
        return "cuda" if n_gpus else "cpu"
    known = ["cpu", *(["cuda"] if n_gpus else []), *(f"cuda:{n}" for n in range(n_gpus))]
    if device not in known:
        raise UserError(f"--device must be one of auto, {', '.join(known)} on this machine, got {device!r}")
    return device
