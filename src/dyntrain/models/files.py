"""Model files: plain tensors and JSON, so that loading one never runs code."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import pickle
from pathlib import Path
from typing import Any

import torch

from dyntrain.atomic import atomic_path
from dyntrain.errors import UserError
from dyntrain.models.egnn import EGNN
from dyntrain.models.paper_egnn import PaperEGNN
from dyntrain.potential import Conservative, EnergyModel

MODELS: dict[str, type[EGNN] | type[PaperEGNN]] = {"egnn": EGNN, "paper_egnn": PaperEGNN}
"""Networks by the name they have in configurations and model files."""

DTYPES = {"float32": torch.float32, "float64": torch.float64}
"""Precisions of a network by name; positions, energies and sums are float64 always."""

_FORMAT = "dyntrain model"
_VERSION = 1


def build_model(name: str, **settings: Any) -> EnergyModel:
    """A fresh network (weights from torch's current random state).

    Args:
        settings: ``elements``, ``cutoff`` and whatever else the network takes, all of them positive.

    Raises:
        UserError: no such network, a setting it does not have, or one that is no positive number.
    """
    if name not in MODELS:
        raise UserError(f"there is no network {name!r}; choose one of {', '.join(sorted(MODELS))}")
    known = inspect.signature(MODELS[name]).parameters
    for key, value in settings.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(known)}"
            raise UserError(f"the network {name} has no setting `{key}`: {hint}")
        kind = type(known[key].default)
        fitting = (int,) if kind is int else (int, float)
        if kind in (int, float) and not (type(value) in fitting and 0 < value < math.inf):
            what = "whole number" if kind is int else "number"
            raise UserError(f"the network {name} needs a {what} above 0 as `{key}`, got {value!r}")
    return MODELS[name](**settings)


def set_precision(model: torch.nn.Module, precision: str) -> None:
    """Cast the network's weights; tables and what was measured on the data stay as they are (float64).

    Args:
        precision: ``float32`` or ``float64``.
    """
    if precision not in DTYPES:
        raise UserError(f"precision must be float32 or float64, got {precision!r}")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[precision])


def model_name(model: torch.nn.Module) -> str:
    """The name in ``MODELS`` of one of our networks."""
    for name, kind in MODELS.items():
        if type(model) is kind:
            return name
    raise UserError(f"{type(model).__name__} is not one of dyntrain's own networks ({', '.join(MODELS)})")


def model_record(potential: Conservative, provenance: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a model file holds: strings and tensors only."""
    model = potential.energy_model
    header = {
        "network": model_name(model),
        "settings": model.config,
        "precision": str(next(model.parameters()).dtype).removeprefix("torch."),
        "provenance": provenance or {},
    }
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    return {"format": _FORMAT, "version": _VERSION, "header": json.dumps(header), "tensors": tensors}


def save_model(
    potential: Conservative, path: Path | str, *, provenance: dict[str, Any] | None = None
) -> None:
    """Write one of our potentials; the file appears whole or not at all.

    Args:
        provenance: JSON-able facts to keep with it (data, settings, versions).
    """
    with atomic_path(path) as part:
        torch.save(model_record(potential, provenance), part)


def read_record(path: Path | str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a model file.

    Raises:
        UserError: no such file, not a model of ours, damaged, or from a newer dyntrain.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no model file {path}")
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        AttributeError,
    ) as error:
        raise UserError(
            f"{path} is not a dyntrain model file, or it is damaged ({type(error).__name__}); "
            "dyntrain models are written by `dyntrain train` or save_model"
        ) from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise UserError(f"{path} is not a dyntrain model file (it holds a {type(record).__name__})")
    if record["version"] > _VERSION:
        raise UserError(
            f"{path} is a model file of version {record['version']}, this dyntrain reads up to {_VERSION}: "
            "upgrade dyntrain"
        )
    return json.loads(record["header"]), record["tensors"]


def load_model(
    path: Path | str, *, device: str | torch.device = "cpu", precision: str | None = None
) -> Conservative:
    """A potential from a model file; never runs code from it.

    Args:
        precision: ``float32`` or ``float64``; default: as saved.

    Raises:
        UserError: no such file, not a model of ours, damaged, or from a newer dyntrain.
    """
    header, tensors = read_record(path)
    model = build_model(header["network"], **header["settings"])
    set_precision(model, header["precision"])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{path}: its tensors do not fit its settings ({str(error).splitlines()[0]})"
        ) from error
    if precision is not None:
        set_precision(model, precision)
    return Conservative(model).to(device).eval()
