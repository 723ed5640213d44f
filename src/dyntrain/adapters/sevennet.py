"""SevenNet (package ``sevenn``; Park et al., J. Chem. Theory Comput. 20, 4857 (2024)) as a potential."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import sevenn
import sevenn._const as const
import sevenn._keys as KEY
import torch
from ase.data import chemical_symbols
from sevenn.checkpoint import SevenNetCheckpoint
from sevenn.model_build import build_E3_equivariant_model
from sevenn.nn.sequential import AtomGraphSequential
from torch import Tensor

from dyntrain.adapters.base import (
    AdapterModel,
    default_dtype,
    directed_edges,
    require_version,
    without_warnings,
)
from dyntrain.atomic import atomic_path
from dyntrain.errors import UserError
from dyntrain.models.species import SpeciesIndex
from dyntrain.neighbors import NeighborList
from dyntrain.state import State

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from dyntrain.models.native import FileContents

require_version("sevenn", "0.13")

_DEFAULTS = copy.deepcopy(const.DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG)
_OWN_ARGUMENTS = (KEY.NODE_FEATURE_MULTIPLICITY, KEY.LMAX, KEY.NUM_CONVOLUTION)
_ACCELERATORS = (KEY.USE_FLASH_TP, KEY.CUEQUIVARIANCE_CONFIG, KEY.USE_OEQ)
_MODALITY_KEYS = (
    KEY.USE_MODALITY,
    KEY.NUM_MODALITIES,
    KEY.MODAL_MAP,
    KEY.USE_MODAL_WISE_SHIFT,
    KEY.USE_MODAL_WISE_SCALE,
)
_ARCHITECTURE = tuple(k for k in (*_DEFAULTS, *_MODALITY_KEYS) if k not in (KEY.CUTOFF, *_ACCELERATORS))
_MODALITY = KEY.DEFAULT_MODAL

_SHIPPED = {
    "sevennet-0": (const.SEVENNET_0_11Jul2024, None),
    "sevennet-0-22may2024": (const.SEVENNET_0_22May2024, None),
    "sevennet-l3i5": (const.SEVENNET_l3i5, None),
    "sevennet-mf-0-pbe": (const.SEVENNET_MF_0, "PBE"),
    "sevennet-mf-0-r2scan": (const.SEVENNET_MF_0, "R2SCAN"),
}
"""Checkpoint and modality of the models in the wheel, by the names one asks for them with."""


class SevenNetModel(AdapterModel):
    """SevenNet's module without its force head.

    The settings have the names and defaults of SevenNet's own input.yaml.

    Args:
        elements: atomic numbers, in the order of the module's columns.
        cutoff: Å.
        channel: multiplicity of the node features.
        lmax: largest degree of the features.
        num_convolution_layer: message-passing layers.
        architecture: any entry of the ``model`` block of SevenNet's input.yaml; it goes before those above.
        modality: of a multi-fidelity model: the one to compute (and to train).

    Raises:
        UserError: an entry of ``architecture`` or a modality that there is not.
    """

    family: ClassVar[str] = "sevennet"
    may_be_zero = frozenset({"lmax"})
    native_precisions = ("float32",)
    module: AtomGraphSequential
    _columns: Tensor

    def __init__(
        self,
        elements: Sequence[int],
        cutoff: float = 4.5,
        channel: int = 32,
        lmax: int = 1,
        num_convolution_layer: int = 3,
        architecture: Mapping[str, Any] | None = None,
        modality: str | None = None,
    ) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.species = SpeciesIndex(elements)
        self.config = {
            "elements": [int(z) for z in elements],
            "cutoff": self.cutoff,
            "channel": channel,
            "lmax": lmax,
            "num_convolution_layer": num_convolution_layer,
            "architecture": dict(architecture or {}),
            "modality": modality,
        }
        if unknown := sorted(set(self.config["architecture"]) - set(_ARCHITECTURE)):
            raise UserError(
                f"SevenNet has no model setting `{unknown[0]}`: `architecture` takes the entries of the "
                f"model block of its input.yaml, {', '.join(_ARCHITECTURE)}"
            )
        self.module = build_E3_equivariant_model(_sevenn_config(self.config))
        modalities = self.module.modal_map or {}
        if (modality is None) == bool(modalities) or (modalities and modality not in modalities):
            known = f"has the modalities {', '.join(modalities)}" if modalities else "has no modalities"
            raise UserError(f"this SevenNet model {known}; got {modality!r} as `modality`")
        self._modality = modalities.get(modality, 0)
        columns = [self.config["elements"].index(z) for z in self.species.elements]
        self.register_buffer("_columns", torch.tensor(columns), persistent=False)

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        edges = directed_edges(state, neighbors)
        data = {
            KEY.NODE_FEATURE: self._columns[self.species(state.atomic_numbers)],
            KEY.EDGE_IDX: torch.stack([edges.source, edges.target]),
            KEY.EDGE_VEC: edges.vectors(state.positions).to(self.dtype),
            KEY.BATCH: state.system_idx,
            KEY.MODAL_TYPE: torch.full_like(state.pbc[:, 0], self._modality, dtype=torch.int64),
        }
        for name, layer in self.module.named_children():
            if name == "rescale_atomic_energy":
                data[KEY.SCALED_ATOMIC_ENERGY] = data[KEY.SCALED_ATOMIC_ENERGY].double()
            data = layer(data)
            if name == "onehot_idx_to_onehot":
                # SevenNet makes these float32 whatever its weights are.
                for key in (KEY.NODE_FEATURE, KEY.NODE_ATTR):
                    data[key] = data[key].to(self.dtype)
            if name == "rescale_atomic_energy":
                # What follows sums in float32 and computes forces without a graph.
                break
        zeros = torch.zeros(state.n_systems, dtype=torch.float64, device=state.device)
        return zeros.index_add(0, state.system_idx, data[KEY.ATOMIC_ENERGY].squeeze(1))

    def set_precision(self, precision: str) -> None:
        super().set_precision(precision)
        if precision == "float64":
            # Tables as Wigner's 3j have lost digits on their way through float32; none of them is learnt.
            with default_dtype(torch.float64):
                exact = dict(build_E3_equivariant_model(_sevenn_config(self.config)).named_buffers())
            for name, buffer in self.module.named_buffers():
                buffer.copy_(exact[name])

    # --- the data's statistics ------------------------------------------------------------------------

    def set_statistics(self, energy_shifts: Tensor, force_scale: float, mean_neighbors: float) -> None:
        """As SevenNet's own defaults: scale is the rms force, sums are divided by the mean neighbours."""
        rescale = self.module.rescale_atomic_energy
        with torch.no_grad():
            rescale.shift.zero_()
            rescale.scale.fill_(force_scale)
            for name, layer in self.module.named_children():
                if name.endswith("_convolution"):
                    layer.denominator.fill_(max(mean_neighbors, 1.0))
        self.shift_energies(energy_shifts)

    def shift_energies(self, shifts: Tensor) -> None:
        shift = self.module.rescale_atomic_energy.shift
        with torch.no_grad():
            # Of a multi-fidelity model with shifts of their own: those of the modality that is trained.
            row = shift[self._modality] if shift.dim() == 2 else shift
            row.index_add_(0, self._columns, shifts.to(shift))

    # --- SevenNet's files -----------------------------------------------------------------------------

    @classmethod
    def recognises(cls, contents: FileContents) -> bool:
        return {"model_state_dict", KEY.TYPE_MAP, KEY.NUM_CONVOLUTION} <= contents.strings

    @classmethod
    def from_file(cls, path: Path, modality: str | None = None) -> Self:
        """A SevenNet checkpoint.

        Args:
            modality: of a multi-fidelity checkpoint; default: its own ``default_modal``.
        """
        checkpoint = SevenNetCheckpoint(path)
        try:
            found = checkpoint.config
            type_map = found[KEY.TYPE_MAP]
        except Exception as error:  # SevenNet reads whatever dictionary it finds
            raise UserError(f"{path} holds no SevenNet model ({type(error).__name__}: {error})") from error
        if found.get(KEY.USE_MODALITY) and modality is None:
            modality = found.get(_MODALITY)
        architecture = {key: found[key] for key in _ARCHITECTURE if key in found}
        # What is no positive number (lmax: 0) stays in the architecture.
        own = {key: architecture.pop(key) for key in _OWN_ARGUMENTS if found[key] > 0}
        elements = sorted(type_map, key=type_map.__getitem__)
        model = cls(elements, found[KEY.CUTOFF], **own, architecture=architecture, modality=modality)
        tensors = checkpoint.build_model().state_dict()
        for name in ("rescale_atomic_energy.shift", "rescale_atomic_energy.scale"):
            # One number for all elements becomes one for each: room to align their energies.
            tensors[name] = tensors[name].expand(model.module.state_dict()[name].shape).clone()
        model.module.load_state_dict(tensors)
        return model

    @classmethod
    def pretrained_names(cls) -> tuple[str, ...]:
        return tuple(_SHIPPED)

    @classmethod
    def pretrained(cls, name: str) -> Self:
        if name not in _SHIPPED:
            return super().pretrained(name)
        path, modality = _SHIPPED[name]
        return cls.from_file(Path(path), modality)

    def export(self, path: Path) -> None:
        """A SevenNet checkpoint, in float32: the only precision that SevenNet computes in."""
        config = _sevenn_config(self.config)
        rescale = self.module.rescale_atomic_energy
        config[KEY.SHIFT], config[KEY.SCALE] = rescale.shift.tolist(), rescale.scale.tolist()
        config[_MODALITY] = self.config["modality"]
        config["version"] = sevenn.__version__
        tensors = self.module.state_dict()
        record = {
            "model_state_dict": {name: _in_float32(tensor) for name, tensor in tensors.items()},
            "config": config,
            "epoch": 0,
        }
        with atomic_path(path) as part:
            torch.save(record, part)

    @staticmethod
    def native_calculator(path: Path, device: str = "cpu", precision: str = "float32") -> Calculator:
        from sevenn.calculator import SevenNetCalculator

        if precision != "float32":
            raise UserError("SevenNet's own calculator computes in float32 only")
        modality = SevenNetCheckpoint(path).config.get(_MODALITY)
        with without_warnings("No tensor product accelerator"):
            return SevenNetCalculator(str(path), device=device, modal=modality)


def _sevenn_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What SevenNet builds a module from, and keeps in its checkpoints."""
    symbols = [chemical_symbols[z] for z in config["elements"]]
    n_modalities = config["architecture"].get(KEY.NUM_MODALITIES, 1)
    by_modality = config["architecture"].get(KEY.USE_MODAL_WISE_SHIFT, False)
    shift = [0.0] * len(symbols)
    return {
        **copy.deepcopy(_DEFAULTS),
        # Placeholder: the number is a parameter, set from the data or from a checkpoint.
        KEY.CONV_DENOMINATOR: 1.0,
        **{key: config[key] for key in _OWN_ARGUMENTS},
        **copy.deepcopy(config["architecture"]),
        KEY.CUTOFF: config["cutoff"],
        KEY.MODEL_TYPE: "E3_equivariant_model",
        KEY.CHEMICAL_SPECIES: symbols,
        KEY.CHEMICAL_SPECIES_BY_ATOMIC_NUMBER: list(config["elements"]),
        KEY.NUM_SPECIES: len(symbols),
        KEY.TYPE_MAP: {z: column for column, z in enumerate(config["elements"])},
        KEY.SHIFT: [list(shift) for _ in range(n_modalities)] if by_modality else shift,
        KEY.SCALE: 1.0,
    }


def _in_float32(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.float() if tensor.is_floating_point() else tensor.clone()
