"""ANI models (package ``torchani``; Gao et al., J. Chem. Inf. Model. 60, 3408 (2020)) as potentials."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from ase.data import chemical_symbols
from ase.units import Hartree
from torch import Tensor

from dyntrain.adapters.base import AdapterModel, require_version, without_warnings
from dyntrain.atomic import atomic_path
from dyntrain.errors import UserError
from dyntrain.models.family import DTYPES
from dyntrain.models.species import SpeciesIndex
from dyntrain.neighbors import NeighborList, pair_vectors
from dyntrain.state import State

with without_warnings("The extensions"):  # its advice to build CUDA extensions
    from torchani.arch import ANI, simple_ani
    from torchani.neighbors import Neighbors, discard_outside_cutoff
    from torchani.nn import AtomicNetwork

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from dyntrain.models.native import FileContents

require_version("torchani", "2.8")

_OWN_ARGUMENTS = ("angular_cutoff", "radial_shifts", "angular_shifts", "sections")
_ARCHITECTURE = (
    "activation",
    "angular_precision",
    "angular_start",
    "angular_zeta",
    "bias",
    "container_ctor",
    "cutoff_fn",
    "ensemble_size",
    "radial_precision",
    "radial_start",
    "repulsion",
)
_MARK = "dyntrain_config"
"""Attribute of an exported module: what to build it from again."""


class TorchANIModel(AdapterModel):
    """TorchANI's module of atomic environment vectors and one network an element, energies in eV.

    TorchANI's wheel ships no weights (its published models are downloaded as they are first asked for), so
    these are new models.

    Args:
        elements: atomic numbers, in the order of the module's columns.
        cutoff: of the radial part, Å.
        angular_cutoff: of the angular part, Å.
        radial_shifts, angular_shifts, sections: sizes of the radial and angular bases.
        architecture: other arguments of ``torchani.arch.simple_ani``.

    Raises:
        UserError: an entry of ``architecture`` that there is not.
    """

    family: ClassVar[str] = "torchani"
    module: ANI
    _columns: Tensor

    def __init__(
        self,
        elements: Sequence[int],
        cutoff: float = 5.2,
        angular_cutoff: float = 3.5,
        radial_shifts: int = 16,
        angular_shifts: int = 8,
        sections: int = 4,
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.species = SpeciesIndex(elements)
        self.config = {
            "elements": [int(z) for z in elements],
            "cutoff": self.cutoff,
            "angular_cutoff": float(angular_cutoff),
            "radial_shifts": radial_shifts,
            "angular_shifts": angular_shifts,
            "sections": sections,
            "architecture": dict(architecture or {}),
        }
        if unknown := sorted(set(self.config["architecture"]) - set(_ARCHITECTURE)):
            raise UserError(
                f"TorchANI has no setting `{unknown[0]}` in `architecture`; it has {', '.join(_ARCHITECTURE)}"
            )
        if angular_cutoff >= cutoff:
            raise UserError(f"TorchANI needs angular_cutoff below cutoff, got {angular_cutoff} and {cutoff}")
        self.module = _built(self.config)
        self._scale = Hartree
        columns = [self.config["elements"].index(z) for z in self.species.elements]
        self.register_buffer("_columns", torch.tensor(columns), persistent=False)

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        columns = self._columns[self.species(state.atomic_numbers)]
        # All systems as one molecule: no pair of the list joins two of them. TorchANI's vectors point back.
        vectors = -pair_vectors(state, neighbors).to(self.dtype)
        pairs = Neighbors(torch.stack([neighbors.i, neighbors.j]), vectors.norm(dim=-1), vectors)
        per_atom = self.module.energy_shifter.self_energies.double()[columns]
        for part in self.module.potentials.values():
            found = part.compute_from_neighbors(
                columns[None],
                state.positions[None].to(self.dtype),
                discard_outside_cutoff(pairs, part.cutoff),
                atomic=True,
            )
            per_atom = per_atom + found.energies[0].double()
        zeros = torch.zeros(state.n_systems, dtype=torch.float64, device=state.device)
        return zeros.index_add(0, state.system_idx, Hartree * per_atom)

    # --- the data's statistics ------------------------------------------------------------------------

    def set_statistics(self, energy_shifts: Tensor, force_scale: float, mean_neighbors: float) -> None:
        """Energies per element, and the last layers multiplied by the scale; there are no sums to divide."""
        with torch.no_grad():
            self.module.energy_shifter.self_energies.zero_()
            for layer in self.module.modules():
                if isinstance(layer, AtomicNetwork):
                    for parameter in layer.final_layer.parameters():
                        parameter.mul_(force_scale / self._scale)
        self._scale = force_scale
        self.shift_energies(energy_shifts)

    def shift_energies(self, shifts: Tensor) -> None:
        energies = self.module.energy_shifter.self_energies
        energies.index_add_(0, self._columns, shifts.to(energies) / Hartree)

    # --- TorchANI's files -----------------------------------------------------------------------------

    @classmethod
    def recognises(cls, contents: FileContents) -> bool:
        return "torchani.arch.ANI" in contents.globals

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """A pickled module that ``export`` wrote: only these say what they are built from."""
        module = torch.load(path, map_location="cpu", weights_only=False)
        if not (isinstance(module, ANI) and hasattr(module, _MARK)):
            raise UserError(
                f"{path} holds a {type(module).__name__}: of TorchANI's models dyntrain reads only those "
                "that it exported itself"
            )
        model = cls(**getattr(module, _MARK))
        model.set_precision(str(next(module.parameters()).dtype).removeprefix("torch."))
        model.module.load_state_dict(module.state_dict())
        return model

    def export(self, path: Path) -> None:
        """The pickled module, as TorchANI has no other format; ``torch.load`` it and call ``ase()``."""
        module = copy.deepcopy(self.module).cpu().eval()
        setattr(module, _MARK, self.config)
        with atomic_path(path) as part:
            torch.save(module, part)

    @staticmethod
    def native_calculator(path: Path, device: str = "cpu", precision: str = "float64") -> Calculator:
        module = torch.load(path, map_location=device, weights_only=False)
        return module.to(DTYPES[precision]).ase()


def _built(config: Mapping[str, Any]) -> ANI:
    symbols = [chemical_symbols[z] for z in config["elements"]]
    return simple_ani(
        symbols,
        lot="",
        radial_cutoff=config["cutoff"],
        strategy="pyaev",
        self_energies=dict.fromkeys(symbols, 0.0),
        **{key: config[key] for key in _OWN_ARGUMENTS},
        **config["architecture"],
    )
