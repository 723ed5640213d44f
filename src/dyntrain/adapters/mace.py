"""MACE (package ``mace-torch``; Batatia et al., NeurIPS 2022) as potentials: its raw, unmodified modules."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from ase.data import atomic_numbers as number_of
from torch import Tensor, nn

from dyntrain.adapters.base import (
    AdapterModel,
    default_dtype,
    directed_edges,
    environment_variable,
    require_version,
    without_warnings,
)
from dyntrain.adapters.exporting import sample_structure
from dyntrain.atomic import atomic_path
from dyntrain.errors import UserError
from dyntrain.models.native import FileContents
from dyntrain.models.species import SpeciesIndex
from dyntrain.neighbors import NeighborList, neighbor_list
from dyntrain.state import State

_ANY_PICKLE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_NOISE = ("The TorchScript type system", "`torch.jit.", f"Environment variable {_ANY_PICKLE}")

# MACE lifts torch's restriction on pickles for the whole process, and its e3nn needs that on being imported:
# what was set before is put back. Nor is its line about a missing CUDA library for us to print.
with environment_variable(_ANY_PICKLE, "1"), without_warnings(*_NOISE), redirect_stdout(StringIO()):
    from e3nn.o3 import Irreps
    from mace.modules import gate_dict, interaction_classes, models, readout_classes
    from mace.modules.blocks import ScaleShiftBlock
    from mace.tools.scripts_utils import extract_config_mace_model

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

require_version("mace-torch", "0.3.16")


_CLASSES: dict[str, type[nn.Module]] = {"MACE": models.MACE, "ScaleShiftMACE": models.ScaleShiftMACE}
_FACTORS = ("embedding_specs", "cueq_config")
"""Arguments of the raw module that say it needs more than a structure, or other hardware."""
_CLASSES_BY_NAME: dict[str, Mapping[str, Any]] = {
    "interaction_cls": interaction_classes,
    "interaction_cls_first": interaction_classes,
    "readout_cls": readout_classes,
    "gate": gate_dict,
}
_IRREPS = ("hidden_irreps", "MLP_irreps", "edge_irreps")
_ARRAYS = ("atomic_energies", "atomic_inter_scale", "atomic_inter_shift")
"""Kept by their shape alone: their numbers are in the state dict."""


class MACEModel(AdapterModel):
    """A MACE network; its settings have the names and defaults of ``mace_run_train``.

    Args:
        elements: atomic numbers it will know.
        cutoff: r_max, Å.
        num_channels, max_L: features of an atom: so many of each degree up to max_L.
        num_interactions: layers of message passing.
        correlation: order of the products of neighbours' features in a layer.
        max_ell: largest degree of the spherical harmonics.
        num_radial_basis, num_cutoff_basis: radial functions, power of the envelope.
        radial_MLP, MLP_irreps: of the radial networks and the last read-out.
        E0s: energy of each lone atom by symbol, eV; None: from the data.
        avg_num_neighbors, scale: None: from the data (scale: root mean square of the forces, eV/Å).
        architecture: all arguments of the raw module as ``config`` has them; the other settings are then
            not looked at.
    """

    family: ClassVar[str] = "mace"
    may_be_zero = frozenset({"max_L"})
    module: Any
    columns: Tensor

    def __init__(
        self,
        elements: Sequence[int],
        cutoff: float = 5.0,
        num_channels: int = 128,
        max_L: int = 1,
        num_interactions: int = 2,
        correlation: int = 3,
        max_ell: int = 3,
        num_radial_basis: int = 8,
        num_cutoff_basis: int = 5,
        radial_MLP: Sequence[int] = (64, 64, 64),
        MLP_irreps: str = "16x0e",
        E0s: Mapping[str, float] | None = None,
        avg_num_neighbors: float | None = None,
        scale: float | None = None,
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.species = SpeciesIndex(elements)
        self._given = {"E0s": E0s, "avg_num_neighbors": avg_num_neighbors, "scale": scale}
        if architecture is None:
            architecture = {
                **_DEFAULTS,
                "atomic_numbers": list(self.species.elements),
                "num_elements": len(self.species),
                "atomic_energies": [len(self.species)],
                "r_max": self.cutoff,
                "num_bessel": num_radial_basis,
                "num_polynomial_cutoff": num_cutoff_basis,
                "max_ell": max_ell,
                "num_interactions": num_interactions,
                "hidden_irreps": _hidden_irreps(num_channels, max_L),
                "correlation": correlation,
                "radial_MLP": list(radial_MLP),
                "MLP_irreps": MLP_irreps,
                "avg_num_neighbors": avg_num_neighbors or 10.0,
            }
        self._take(_built(architecture), dict(architecture))
        if E0s is not None:
            self._set_energies(torch.tensor([_energy_of(z, E0s) for z in self.elements], dtype=torch.float64))
        if scale is not None:
            self.module.scale_shift.scale.fill_(scale)

    def _take(self, module: nn.Module, architecture: dict[str, Any]) -> None:
        """Wrap a raw module, whose arguments are these."""
        self.module = module
        self.config = {
            "elements": list(self.elements),
            "cutoff": self.cutoff,
            "architecture": architecture,
        }
        # The raw module's columns follow its own order of elements.
        order = [architecture["atomic_numbers"].index(z) for z in self.elements]
        self.register_buffer("columns", torch.tensor(order), persistent=False)

    # --- energies -------------------------------------------------------------------------------------

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        dtype = self.dtype
        columns = self.columns[self.species(state.atomic_numbers)]
        edges = directed_edges(state, neighbors)
        # The raw module marks its positions as requiring a gradient: never the caller's own tensor.
        positions = state.positions if state.positions.requires_grad else state.positions.detach()
        ends = torch.cumsum(state.n_atoms_per_system(), 0)
        result = self.module(
            {
                "positions": positions.to(dtype),
                "node_attrs": nn.functional.one_hot(columns, len(self.species)).to(dtype),
                "edge_index": torch.stack([edges.source, edges.target]),
                "shifts": edges.shift_vectors.to(dtype),
                "unit_shifts": edges.shifts.to(dtype),
                "cell": state.cell.reshape(-1, 3).to(dtype),
                "batch": state.system_idx,
                "ptr": torch.cat([ends.new_zeros(1), ends]),
                "head": torch.zeros_like(ends),
            },
            compute_force=False,
        )
        # Summed here in float64: total energies of thousands of eV have no room in float32.
        per_atom = result["node_energy"].double()
        return per_atom.new_zeros(state.n_systems).index_add(0, state.system_idx, per_atom)

    # --- the data's statistics ------------------------------------------------------------------------

    def set_statistics(self, energy_shifts: Tensor, force_scale: float, mean_neighbors: float) -> None:
        if self._given["E0s"] is None:
            self._set_energies(energy_shifts)
        if self._given["scale"] is None:
            self.module.scale_shift.scale.fill_(force_scale)
        if self._given["avg_num_neighbors"] is None:
            neighbors = max(float(mean_neighbors), 1.0)
            self.config["architecture"]["avg_num_neighbors"] = neighbors
            for interaction in self.module.interactions:
                interaction.avg_num_neighbors = neighbors

    def shift_energies(self, shifts: Tensor) -> None:
        energies = self.module.atomic_energies_fn.atomic_energies
        self._set_energies(energies.reshape(-1)[self.columns].double() + shifts)

    def _set_energies(self, energies: Tensor) -> None:
        """Energy of a lone atom of each of ``elements``, [n_elements] eV."""
        buffer = self.module.atomic_energies_fn.atomic_energies
        buffer.reshape(-1)[self.columns] = energies.to(buffer)

    # --- MACE's own files -----------------------------------------------------------------------------

    @classmethod
    def recognises(cls, contents: FileContents) -> bool:
        return "mace" in contents.packages or any(
            name.startswith("__torch__.mace.") for name in contents.globals
        )

    @classmethod
    def from_file(cls, path: Path) -> Self:
        module = _loaded(path)
        heads: list[str] = getattr(module, "heads", [])
        if len(heads) > 1:
            raise UserError(
                f"{path} is a MACE model with several heads ({', '.join(heads)}): choose one "
                "with MACE's own `mace_select_head` and give the file that it writes"
            )
        architecture = _architecture(module, path)
        model = cls(architecture["atomic_numbers"], architecture["r_max"], architecture=architecture)
        _require_same_network(module, model, path)
        model._take(module.requires_grad_(), architecture)
        return model

    def export(self, path: Path) -> None:
        """Write the pickled module, as ``mace_run_train`` leaves it and MACECalculator loads it."""
        with atomic_path(path) as part, without_warnings(*_NOISE):
            torch.save(copy.deepcopy(self.module).cpu().eval(), part)

    @staticmethod
    def native_calculator(path: Path, device: str = "cpu", precision: str = "float64") -> Calculator:
        from mace.calculators import MACECalculator

        with environment_variable(_ANY_PICKLE, "1"), without_warnings(*_NOISE):
            return MACECalculator(model_paths=str(path), device=device, default_dtype=precision)


_DEFAULTS: dict[str, Any] = {
    "class": "ScaleShiftMACE",
    "interaction_cls": "RealAgnosticResidualInteractionBlock",
    "interaction_cls_first": "RealAgnosticResidualInteractionBlock",
    "gate": "silu",
    "use_reduced_cg": False,
    "heads": ["Default"],
    "atomic_inter_scale": [],
    "atomic_inter_shift": [],
}
"""Arguments of the raw module that ``mace_run_train --model ScaleShiftMACE`` chooses when nothing is said."""


def _hidden_irreps(num_channels: int, max_L: int) -> str:
    """``128x0e + 128x1o`` for 128 channels of degrees up to 1."""
    return " + ".join(f"{num_channels}x{degree}{'eo'[degree % 2]}" for degree in range(max_L + 1))


def _energy_of(number: int, energies: Mapping[str, float]) -> float:
    found = {number_of.get(str(symbol), symbol): float(energy) for symbol, energy in energies.items()}
    if number not in found:
        raise UserError(f"model.settings.E0s: there is no energy for the element of atomic number {number}")
    return found[number]


def _built(architecture: Mapping[str, Any]) -> nn.Module:
    """A raw module with these arguments; always made in float64, so that its tables of numbers are exact."""
    arguments = {key: value for key, value in architecture.items() if key != "class"}
    for key, table in _CLASSES_BY_NAME.items():
        if key in arguments:
            arguments[key] = table[arguments[key]]
    for key in _IRREPS:
        if arguments.get(key) is not None:
            arguments[key] = Irreps(arguments[key])
    for key, fill in zip(_ARRAYS, (0.0, 1.0, 0.0), strict=True):
        if key in arguments:
            arguments[key] = np.full(arguments[key], fill)
    with default_dtype(torch.float64), without_warnings(*_NOISE):
        return _CLASSES[architecture["class"]](**arguments)


def _loaded(path: Path) -> nn.Module:
    try:
        with without_warnings(*_NOISE, "'torch.load' received a zip file"):
            module = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a pickle that no longer fits its program raises anything
        raise UserError(f"MACE cannot load {path}: {type(error).__name__}: {error}") from error
    if type(module) not in _CLASSES.values():
        raise UserError(
            f"{path} holds a {type(module).__name__}: dyntrain trains the modules {' and '.join(_CLASSES)}, "
            "which `mace_run_train` leaves as NAME.model (not the compiled one, nor one converted for LAMMPS)"
        )
    return module


def _architecture(module: nn.Module, path: Path) -> dict[str, Any]:
    """The arguments of a raw module as JSON."""
    name = type(module).__name__
    if type(module) is models.MACE:
        # MACE's own extraction knows only the scaled class: it is shown one with the same parts.
        parts = {**module._modules, "scale_shift": ScaleShiftBlock(1.0, 0.0)}
        module = copy.copy(module)
        module._modules = parts
        module.__class__ = models.ScaleShiftMACE
    found = extract_config_mace_model(module)
    for key in _FACTORS:
        if found.pop(key) is not None:
            raise UserError(
                f"{path} is a MACE model with a {key}, which dyntrain cannot train: give a plain one (one "
                "that was converted to cuEquivariance is converted back by `mace_cueq_to_e3nn`)"
            )
    for key, table in _CLASSES_BY_NAME.items():
        names = [name for name, known in table.items() if known is found[key]]
        if not names:
            raise UserError(f"{path} is a MACE model with an unknown {key} ({found[key]})")
        found[key] = names[0]
    for key in _IRREPS:
        found[key] = None if found[key] is None else str(found[key])
    for key in _ARRAYS:
        found[key] = list(np.shape(found[key]))
    found["atomic_numbers"] = [int(z) for z in found["atomic_numbers"]]
    found["num_polynomial_cutoff"] = int(found["num_polynomial_cutoff"])
    found["distance_transform"] = found["distance_transform"] or "None"
    if name == "MACE":
        del found["atomic_inter_scale"], found["atomic_inter_shift"]
    return {"class": name, **found}


def _require_same_network(module: nn.Module, rebuilt: MACEModel, path: Path) -> None:
    """Refuse a file that our model.pt could not bring back: it may be of a MACE of another make.

    ``rebuilt`` takes over the weights of ``module``.
    """
    try:
        rebuilt.module.to(next(module.parameters()).dtype).load_state_dict(module.state_dict())
    except RuntimeError as error:
        raise UserError(
            f"{path} is a MACE model whose parts this MACE does not build ({str(error).splitlines()[0]}): "
            "use the MACE it was made with"
        ) from error
    state = State.from_ase(sample_structure(rebuilt))
    neighbors = neighbor_list(state, rebuilt.cutoff)
    other = copy.copy(rebuilt)
    other._modules = {**rebuilt._modules, "module": module}
    with torch.no_grad():
        found, expected = rebuilt(state, neighbors), other(state, neighbors)
    if not torch.allclose(found, expected, rtol=1e-5):
        raise UserError(
            f"{path} is a MACE model that this MACE builds differently (a test structure has "
            f"{float(found):.6f} eV instead of {float(expected):.6f}): use the MACE it was made with"
        )
