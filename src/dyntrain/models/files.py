"""Model files: ours are plain tensors and JSON, so that loading one never runs code; others when trusted."""

from __future__ import annotations

import difflib
import inspect
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dyntrain.atomic import atomic_path
from dyntrain.errors import UserError
from dyntrain.models.families import MODELS, family, family_of, pretrained_family
from dyntrain.models.family import DTYPES, FamilyModel
from dyntrain.models.native import NoPlainData, list_contents, restricted_load, runs_code
from dyntrain.potential import Conservative, Potential

__all__ = [
    "MODELS",
    "build_model",
    "load_model",
    "load_weights",
    "model_record",
    "read_record",
    "save_model",
    "set_precision",
]

_FORMAT = "dyntrain model"
_VERSION = 1


def build_model(name: str, **settings: Any) -> FamilyModel:
    """A fresh network (weights from torch's current random state).

    Args:
        settings: ``elements``, ``cutoff`` and whatever else the network takes; numbers are positive.

    Raises:
        UserError: no such network, its package is missing, a setting it does not have, or one that is no
            positive number.
    """
    kind = family(name)
    known = inspect.signature(kind).parameters
    for key, value in settings.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(known)}"
            raise UserError(f"the network {name} has no setting `{key}`: {hint}")
        default = type(known[key].default)
        fitting = (int,) if default is int else (int, float)
        if default in (int, float) and not (
            type(value) in fitting and (0 < value < math.inf or (value == 0 and key in kind.may_be_zero))
        ):
            what = "whole number" if default is int else "number"
            raise UserError(f"the network {name} needs a {what} above 0 as `{key}`, got {value!r}")
    return kind(**settings)


def set_precision(model: FamilyModel, precision: str) -> None:
    """Cast the network's weights; see ``FamilyModel.set_precision``.

    Args:
        precision: ``float32`` or ``float64``.
    """
    if precision not in DTYPES:
        raise UserError(f"precision must be float32 or float64, got {precision!r}")
    model.set_precision(precision)


# --- writing ------------------------------------------------------------------------------------------


def network_of(potential: Potential) -> nn.Module:
    """What of a potential is trained and saved: its energy model, or all of it."""
    return potential.energy_model if isinstance(potential, Conservative) else potential


def model_record(potential: Potential, provenance: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a model file holds: strings and tensors only."""
    network = network_of(potential)
    known = isinstance(network, FamilyModel) and family(network.family) is type(network)
    header = {
        "network": network.family if known else None,
        "settings": network.config if known else {},
        "class": type(network).__name__,
        "conservative": potential.conservative,
        "precision": str(next(network.parameters()).dtype).removeprefix("torch."),
        "provenance": provenance or {},
    }
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    return {"format": _FORMAT, "version": _VERSION, "header": json.dumps(header), "tensors": tensors}


def save_model(potential: Potential, path: Path | str, *, provenance: dict[str, Any] | None = None) -> None:
    """Write a potential; the file appears whole or not at all.

    That of a network of your own, which no family knows, holds its weights alone: see ``load_weights``.

    Args:
        provenance: JSON-able facts to keep with it (data, settings, versions).
    """
    with atomic_path(path) as part:
        torch.save(model_record(potential, provenance), part)


# --- reading ------------------------------------------------------------------------------------------


def read_record(path: Path | str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a model file.

    Raises:
        UserError: no such file, not a model of ours, damaged, or from a newer dyntrain.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no model file {path}")
    try:
        record = restricted_load(path)
    except NoPlainData as error:
        raise UserError(
            f"{path} is not a dyntrain model file, or it is damaged ({error}); "
            "dyntrain models are written by `dyntrain train` or save_model"
        ) from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise UserError(f"{path} is not a dyntrain model file (it holds a {type(record).__name__})")
    try:
        if record["version"] > _VERSION:
            raise UserError(
                f"{path} is a model file of version {record['version']}, this dyntrain reads up to "
                f"{_VERSION}: upgrade dyntrain"
            )
        return json.loads(record["header"]), record["tensors"]
    except (KeyError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path} is a damaged dyntrain model file ({error!r}): copy or train it again"
        ) from error


def is_ours(path: Path) -> bool:
    """Whether a file says that it is a dyntrain model; nothing of it is run."""
    return _FORMAT in list_contents(path).strings


def load_model(
    model: Path | str,
    *,
    device: str | torch.device = "cpu",
    precision: str | None = None,
    trust: bool = False,
) -> Conservative:
    """A potential from a model file of ours or of another program, or a pretrained model by its name.

    Args:
        model: our ``model.pt`` (loading it never runs code), a file of an installed family's own format, or
            the name of a model that an installed package ships (``sevennet-0``).
        precision: ``float32`` or ``float64``; default: as saved.
        trust: whether another program's file may run the code that is in it: Python pickles do.

    Raises:
        UserError: no such file or name, not a model, damaged, from a newer dyntrain, needs trust, or the
            family's package is missing.
    """
    path = Path(model)
    if path.is_file():
        network = _ours(path) if is_ours(path) else _native(path, trust)
    elif path.is_dir():
        raise UserError(f"{path} is a folder: name the model file in it, as {path / 'model.pt'}")
    elif len(path.parts) > 1:
        raise UserError(f"there is no model file {path}")
    else:
        network = pretrained_family(str(model)).pretrained(str(model))
    if precision is not None:
        set_precision(network, precision)
    return Conservative(network).to(device).eval()


def _ours(path: Path) -> FamilyModel:
    header, tensors = read_record(path)
    if header["network"] is None:
        # Older files do not say.
        kind = "" if header.get("conservative", True) else " that gives forces directly (not conservative)"
        raise UserError(
            f"{path} holds the weights of {header['class']}, a network of your own{kind}, which dyntrain "
            "cannot build: do so in Python and fill it with dyntrain.load_weights, or register it as a family"
        )
    model = build_model(header["network"], **header["settings"])
    set_precision(model, header["precision"])
    _fill(model, tensors, path)
    return model


def _native(path: Path, trust: bool) -> FamilyModel:
    found = family_of(list_contents(path))
    if not trust and (found.files_name_code or runs_code(path)):
        raise UserError(
            f"{path} is a {found.family} model in a format that can hold program code, which would be run on "
            "loading: if you trust where it comes from, say so with --trust (`trust: true` in a YAML, "
            "trust=True in Python)"
        )
    return found.from_file(path)


def load_weights(potential: Potential, path: Path | str) -> None:
    """Fill a potential of your own with the weights of a model file that a training of it left.

    Raises:
        UserError: no such file, not a model of ours, or its weights do not fit.
    """
    header, tensors = read_record(path)
    network = network_of(potential)
    network.to(DTYPES[header["precision"]])
    _fill(network, tensors, Path(path))


def _fill(network: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        # The first line says no more than that there is an error.
        first = next((line.strip() for line in str(error).splitlines()[1:]), str(error))
        raise UserError(f"{path}: its tensors do not fit its settings ({first})") from error
