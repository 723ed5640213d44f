"""Files of the NequIP framework: packaged models (.nequip.zip), checkpoints (.ckpt), and its calculator."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ase import Atoms
from nequip.data import AtomicDataDict, from_ase
from nequip.integrations.ase import NequIPCalculator
from nequip.integrations.utils import basic_transforms
from nequip.nn import GraphModel
from nequip.scripts._package_utils import _EXTERNAL_MODULES, _INTERNAL_MODULES, _MOCK_MODULES
from nequip.utils.global_state import set_global_state
from nequip.utils.versions import get_current_code_versions
from torch import nn
from torch.package.package_exporter import PackageExporter
from torch.package.package_importer import PackageImporter

from dyntrain.adapters.base import default_dtype, without_warnings
from dyntrain.atomic import atomic_path
from dyntrain.errors import UserError

EXTENSION = ".nequip.zip"
_PACKAGE_FORMAT = 2
"""As nequip.scripts.package, whose import would set up the logging of the whole process."""

_MODEL = "sole_model"
"""NequIP's own name of the only model in a file."""


@contextmanager
def nequip_settings() -> Iterator[None]:
    """NequIP's global state; afterwards torch's default precision and all random numbers are as before."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(), default_dtype(torch.float64):
            set_global_state()
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class Calculator(NequIPCalculator):
    """NequIP's calculator, which needs float64 as the default precision of new tensors."""

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        with nequip_settings():
            super().calculate(*args, **kwargs)


def model_block(path: Path) -> dict[str, Any]:
    """The ``model`` block of the configuration that a packaged model or a checkpoint was trained with.

    Raises:
        UserError: the file has none.
    """
    if str(path).endswith(EXTENSION):
        config = yaml.safe_load(PackageImporter(str(path)).load_text("model", "config.yaml"))
    else:
        record = torch.load(path, map_location="cpu", weights_only=False)
        config = record.get("hyper_parameters", {}).get("info_dict", {})
    block = config.get("training_module", {}).get("model")
    if block is None:
        raise UserError(f"{path} holds no model of NequIP's: it has no training_module.model in its config")
    while block.get("_target_") == "nequip.model.modify":
        block = block["model"]
    return copy.deepcopy(dict(block))


def write_package(path: Path, module: GraphModel, block: dict[str, Any]) -> None:
    """A packaged model, as ``nequip-package build`` writes.

    Args:
        module: on the CPU, in evaluation mode.
        block: the ``model`` block of a configuration that builds it.
    """
    metadata = {
        "versions": get_current_code_versions(verbose=False),
        "external_modules": dict.fromkeys(_EXTERNAL_MODULES, "unknown"),
        "package_version_id": _PACKAGE_FORMAT,
        "available_models": ["eager"],
        "atom_types": dict(enumerate(module.type_names)),
    }
    quiet = without_warnings("TypedStorage is deprecated")
    with atomic_path(path) as part, quiet, PackageExporter(part) as package:
        package.mock([f"{name}.**" for name in _MOCK_MODULES])
        package.extern([f"{name}.**" for name in _EXTERNAL_MODULES])
        package.intern([f"{name}.**" for name in _INTERNAL_MODULES])
        package.save_pickle("model", "example_data.pkl", _example(module, float(block["r_max"])))
        package.save_text("model", "config.yaml", yaml.safe_dump({"training_module": {"model": block}}))
        package.save_text("model", "package_metadata.txt", yaml.safe_dump(metadata))
        package.save_pickle("model", "eager_model.pkl", nn.ModuleDict({_MODEL: module}))


def _example(module: GraphModel, cutoff: float) -> AtomicDataDict.Type:
    """Input that ``nequip-compile`` traces the model with: a cluster of all its elements."""
    symbols = module.type_names
    n_atoms = max(len(symbols), 4)
    spots = torch.randn(n_atoms, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    atoms = Atoms(
        [symbols[k % len(symbols)] for k in range(n_atoms)],
        0.3 * cutoff * spots.numpy(),
        cell=[4.0 * cutoff] * 3,
        pbc=True,
    )
    with nequip_settings():
        data = from_ase(atoms)
        for transform in basic_transforms(module.metadata, cutoff, symbols, {name: name for name in symbols}):
            data = transform(data)
    return data
