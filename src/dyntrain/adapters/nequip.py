"""NequIP models (package ``nequip``; Batzner et al., Nat. Commun. 13, 2453 (2022)) as potentials.

The framework's models are built, packaged and computed alike; Allegro shares this file's base class.
"""

from __future__ import annotations

import copy
import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from ase.data import atomic_numbers, chemical_symbols
from nequip.data import AtomicDataDict
from nequip.model import FullNequIPGNNModel, NequIPGNNModel
from nequip.model.saved_models.load_utils import load_saved_model
from nequip.nn import GraphModel
from nequip.nn.norm import AvgNumNeighborsNorm
from torch import Tensor

from dyntrain.adapters.base import AdapterModel, directed_edges, require_version
from dyntrain.adapters.nequip_files import (
    EXTENSION,
    Calculator,
    model_block,
    nequip_settings,
    write_package,
)
from dyntrain.errors import UserError
from dyntrain.models.species import SpeciesIndex
from dyntrain.neighbors import NeighborList
from dyntrain.state import State

if TYPE_CHECKING:
    from dyntrain.models.native import FileContents

require_version("nequip", "0.19")

_SET_HERE = (
    "r_max",
    "type_names",
    "seed",
    "model_dtype",
    "compile_mode",
    "per_type_energy_scales",
    "per_type_energy_shifts",
    "do_derivatives",
    "kwargs",
)
"""Arguments of NequIP's builders that are none of the architecture."""

_PARTS = (
    "allegro.nn.TwoBodyBesselScalarEmbed",
    "allegro.nn.TwoBodySplineScalarEmbed",
    "nequip.nn.pair_potential.ZBL",
)
"""All that an ``architecture`` may name as ``_target_``: a model file of ours must not run anything else."""


class NequIPFramework(AdapterModel):
    """What the models of the NequIP framework share: building, statistics, packages.

    Subclasses name their ``builders`` (functions of NequIP's by name, the usual one first) and ``settings``
    (arguments of the usual one that they take themselves).
    """

    # NequIP builds a checkpoint from its settings, of plain text, whose every `_target_` hydra calls.
    files_name_code: ClassVar[bool] = True
    builders: ClassVar[Mapping[str, Callable[..., GraphModel]]]
    settings: ClassVar[tuple[str, ...]]
    module: GraphModel
    _columns: Tensor

    @abstractmethod
    def __init__(self, elements: Sequence[int], cutoff: float, **settings: Any) -> None: ...

    def _set_up(
        self,
        elements: Sequence[int],
        cutoff: float,
        settings: Mapping[str, Any],
        architecture: Mapping[str, Any] | None,
    ) -> None:
        self.cutoff = float(cutoff)
        self.species = SpeciesIndex(elements)
        self.config = {
            "elements": [int(z) for z in elements],
            "cutoff": self.cutoff,
            **settings,
            "architecture": dict(architecture or {}),
        }
        self._check_architecture()
        self.module = self._build("float32")
        columns = [self.config["elements"].index(z) for z in self.species.elements]
        self.register_buffer("_columns", torch.tensor(columns), persistent=False)

    def _check_architecture(self) -> None:
        given = self.config["architecture"]
        if (builder := given.get("builder")) and builder not in self.builders:
            raise UserError(f"there is no builder {builder!r}; choose one of {', '.join(self.builders)}")
        known = {"builder"}
        for function in self.builders.values():
            known |= set(inspect.signature(function).parameters)
        known -= set(_SET_HERE)
        if unknown := sorted(set(given) - known):
            raise UserError(
                f"{self.family} has no setting `{unknown[0]}` in `architecture`; it has "
                f"{', '.join(sorted(known))}"
            )
        for target in _targets(given):
            if target not in _PARTS:
                raise UserError(f"architecture: `{target}` is not one of {', '.join(_PARTS)}")

    def _arguments(self) -> tuple[str, dict[str, Any]]:
        """Name of the builder, and all of its arguments but seed, precision, energies and scales."""
        architecture = {"avg_num_neighbors": 1.0, **copy.deepcopy(self.config["architecture"])}
        builder = architecture.pop("builder", None)
        own = {} if builder else {key: self.config[key] for key in self.settings}
        symbols = [chemical_symbols[z] for z in self.config["elements"]]
        return builder or next(iter(self.builders)), {
            **own,
            **architecture,
            "r_max": self.cutoff,
            "type_names": symbols,
        }

    def _build(self, precision: str) -> GraphModel:
        builder, arguments = self._arguments()
        symbols = arguments["type_names"]
        seed = int(torch.randint(2**31, ()))
        with nequip_settings():
            return self.builders[builder](
                **arguments,
                seed=seed,
                model_dtype=precision,
                # Buffers of these shapes; their numbers come from the data or from a file.
                per_type_energy_scales=dict.fromkeys(symbols, 1.0),
                per_type_energy_shifts=dict.fromkeys(symbols, 0.0),
            )

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        edges = directed_edges(state, neighbors)
        data = {
            AtomicDataDict.POSITIONS_KEY: state.positions,
            AtomicDataDict.EDGE_INDEX_KEY: torch.stack([edges.source, edges.target]),
            AtomicDataDict.EDGE_VECTORS_KEY: edges.vectors(state.positions),
            AtomicDataDict.ATOM_TYPE_KEY: self._columns[self.species(state.atomic_numbers)],
            AtomicDataDict.BATCH_KEY: state.system_idx,
            AtomicDataDict.NUM_NODES_KEY: state.n_atoms_per_system(),
        }
        # Not the module itself: its outermost layer computes forces, without a graph.
        out = self.module.model.func(data)
        per_atom = out[AtomicDataDict.PER_ATOM_ENERGY_KEY].squeeze(1)
        zeros = torch.zeros(state.n_systems, dtype=torch.float64, device=state.device)
        return zeros.index_add(0, state.system_idx, per_atom.double())

    def set_precision(self, precision: str) -> None:
        """Built anew: NequIP's layers keep the precision they were made in, and tables their digits."""
        old = self.module
        new = self._build(precision).to(next(old.parameters()).device).train(old.training)
        learnt = dict(old.named_parameters())
        with torch.no_grad():
            for name, parameter in new.named_parameters():
                parameter.copy_(learnt[name]).requires_grad_(learnt[name].requires_grad)
            for key in ("scales", "shifts"):
                getattr(_scale_shift(new), key).copy_(getattr(_scale_shift(old), key))
        self.module = new

    # --- the data's statistics ------------------------------------------------------------------------

    def set_statistics(self, energy_shifts: Tensor, force_scale: float, mean_neighbors: float) -> None:
        """As NequIP's own data statistics: scale is the rms force, sums are divided by √(mean neighbours)."""
        mean_neighbors = max(float(mean_neighbors), 1.0)
        # NequIP's files hold this number in the architecture, not among the tensors.
        self.config["architecture"]["avg_num_neighbors"] = mean_neighbors
        scale_shift = _scale_shift(self.module)
        with torch.no_grad():
            for layer in self.module.modules():
                if isinstance(layer, AvgNumNeighborsNorm):
                    layer.norm_const.fill_(1.0 / math.sqrt(mean_neighbors))
            scale_shift.scales.fill_(force_scale)
            scale_shift.shifts.zero_()
        self.shift_energies(energy_shifts)

    def shift_energies(self, shifts: Tensor) -> None:
        rows = _scale_shift(self.module).shifts
        with torch.no_grad():
            rows.index_add_(0, self._columns, shifts.to(rows)[:, None])

    # --- NequIP's files -------------------------------------------------------------------------------

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """A packaged model (``nequip-package``, .nequip.zip) or a checkpoint (``nequip-train``, .ckpt)."""
        path = Path(path)
        arguments = model_block(path)
        builder = arguments.pop("_target_", "").rsplit(".", 1)[-1]
        if builder not in cls.builders:
            raise UserError(
                f"{path}: its model was built by {builder or 'an unknown function'}; dyntrain knows "
                f"{', '.join(cls.builders)}"
            )
        symbols, cutoff = arguments["type_names"], arguments["r_max"]
        if strange := [name for name in symbols if name not in atomic_numbers]:
            raise UserError(f"{path}: its atom types must be chemical symbols, found {strange[0]!r}")
        own = {}
        if builder == next(iter(cls.builders)):
            # What is no positive number (a list of multiplicities) stays in the architecture.
            whole = [key for key in cls.settings if type(arguments.get(key)) is int and arguments[key] > 0]
            own = {key: arguments.pop(key) for key in whole}
        else:
            arguments["builder"] = builder
        architecture = {key: value for key, value in arguments.items() if key not in _SET_HERE}
        model = cls([atomic_numbers[name] for name in symbols], cutoff, architecture=architecture, **own)
        with nequip_settings():
            native = load_saved_model(path)
        model.set_precision(str(native.model_dtype).removeprefix("torch."))
        model._load(native.state_dict(), path)
        return model

    def _load(self, tensors: dict[str, Tensor], path: Path) -> None:
        expected = self.module.state_dict()
        for name in [name for name in tensors if name.endswith(("scale_shift.scales", "scale_shift.shifts"))]:
            # One number for all types becomes one for each, none the neutral one.
            wide = tensors[name].expand_as(expected[name]) if tensors[name].numel() else expected[name]
            tensors[name] = wide.clone()
        try:
            self.module.load_state_dict(tensors)
        except RuntimeError as error:
            raise UserError(
                f"{path}: its tensors do not fit a model built by the installed version of {self.family} "
                f"({str(error).splitlines()[1].strip()}); install the version it was packaged with"
            ) from error

    def export(self, path: Path) -> None:
        """A packaged model, as ``nequip-package build`` writes; ``nequip-compile`` takes it on.

        Raises:
            UserError: the path does not end on .nequip.zip, as NequIP wants it.
        """
        if not str(path).endswith(EXTENSION):
            raise UserError(f"NequIP loads packaged models from files named *{EXTENSION} only, got {path}")
        builder, arguments = self._arguments()
        module = copy.deepcopy(self.module).cpu().eval()
        scale_shift = _scale_shift(module)
        by_type = {
            f"per_type_energy_{key}": dict(
                zip(module.type_names, getattr(scale_shift, key).flatten().tolist(), strict=True)
            )
            for key in ("scales", "shifts")
        }
        block = {
            "_target_": f"{self.builders[builder].__module__}.{builder}",
            **arguments,
            **by_type,
            "seed": 0,
            "model_dtype": str(self.dtype).removeprefix("torch."),
        }
        write_package(path, module, block)

    @staticmethod
    def native_calculator(path: Path, device: str = "cpu", precision: str = "float64") -> Calculator:
        """In the precision that the file was written in: NequIP's files hold one only."""
        with nequip_settings():
            return Calculator._from_saved_model(path, device=device, chemical_species_to_atom_type_map=True)


class NequIPModel(NequIPFramework):
    """NequIP's module without its force and stress head.

    Args:
        elements: atomic numbers, in the order of the module's types.
        cutoff: Å.
        num_layers: message-passing layers.
        l_max: largest degree of the features.
        num_features: multiplicity of every degree.
        architecture: any argument of ``nequip.model.NequIPGNNModel``; it goes before the ones above.

    Raises:
        UserError: an entry of ``architecture`` that there is not.
    """

    family: ClassVar[str] = "nequip"
    may_be_zero = frozenset({"l_max"})
    builders: ClassVar = {"NequIPGNNModel": NequIPGNNModel, "FullNequIPGNNModel": FullNequIPGNNModel}
    settings: ClassVar = ("num_layers", "l_max", "num_features")

    def __init__(
        self,
        elements: Sequence[int],
        cutoff: float = 5.0,
        num_layers: int = 4,
        l_max: int = 1,
        num_features: int = 32,
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        AdapterModel.__init__(self)
        settings = {"num_layers": num_layers, "l_max": l_max, "num_features": num_features}
        self._set_up(elements, cutoff, settings, architecture)

    @classmethod
    def recognises(cls, contents: FileContents) -> bool:
        return is_of_framework(contents) and not mentions_allegro(contents)


def is_of_framework(contents: FileContents) -> bool:
    packaged = "model/package_metadata.txt" in contents.members
    return packaged or {"hyper_parameters", "training_module"} <= contents.strings


def mentions_allegro(contents: FileContents) -> bool:
    return any(name.startswith(("allegro/", "allegro.")) for name in contents.members | contents.strings)


def _scale_shift(module: GraphModel) -> Any:
    """NequIP's layer of energies and scales by type."""
    return module.model.func.per_type_energy_scale_shift


def _targets(arguments: Any) -> Iterator[str]:
    """Everything that hydra would call to build such arguments."""
    if isinstance(arguments, Mapping):
        for key, value in arguments.items():
            if str(key).startswith("_"):
                yield str(value) if key == "_target_" else str(key)
            yield from _targets(value)
    elif isinstance(arguments, list | tuple):
        for value in arguments:
            yield from _targets(value)
