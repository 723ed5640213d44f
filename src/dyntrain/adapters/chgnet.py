"""CHGNet (package ``chgnet``; Deng et al., Nature Machine Intelligence 5, 1031 (2023)) as a potential."""

from __future__ import annotations

import inspect
import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from chgnet.model.model import BatchedGraph, CHGNet
from torch import Tensor

from dyntrain.adapters.base import AdapterModel, require_version
from dyntrain.atomic import atomic_path
from dyntrain.errors import UserError
from dyntrain.models.species import SpeciesIndex
from dyntrain.neighbors import NeighborList, pair_vectors
from dyntrain.state import State

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from dyntrain.models.native import FileContents

require_version("chgnet", "0.4")

_N_ELEMENTS = 94
_SHIPPED = {"chgnet-0.3.0": "0.3.0", "chgnet-r2scan": "r2scan"}
"""CHGNet's own names of the models in the wheel, by the names one asks for them with."""

_OTHER_ARGUMENTS = ("mlp_out_bias", "conv_norm", "final_mlp", "num_heads", "converter_verbose")
"""Of CHGNet's constructor, taken from its ``**kwargs``."""


class CHGNetModel(AdapterModel):
    """CHGNet's module without its force, stress and magmom heads.

    Edges and angles come from our neighbour list, so molecules need no box, and the module runs in either
    precision (the package itself only in float32).

    Args:
        elements: atomic numbers up to 94.
        cutoff: of the atom graph, Å.
        bond_graph_cutoff: of the bonds that form angles, Å.
        width: of all features and hidden layers.
        n_conv: interaction blocks.
        architecture: any other argument of ``chgnet.model.CHGNet``; it goes before the ones above.

    Raises:
        UserError: an element beyond 94, or a kind of CHGNet that is no potential for dynamics.
    """

    family: ClassVar[str] = "chgnet"
    native_precisions = ("float32",)
    module: CHGNet

    def __init__(
        self,
        elements: Sequence[int],
        cutoff: float = 6.0,
        bond_graph_cutoff: float = 3.0,
        width: int = 64,
        n_conv: int = 4,
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.species = SpeciesIndex(elements)
        if self.species.elements[-1] > _N_ELEMENTS:
            raise UserError(f"CHGNet knows elements up to {_N_ELEMENTS} (Pu), got {list(elements)}")
        self.cutoff = float(cutoff)
        self.config = {
            "elements": list(self.species.elements),
            "cutoff": self.cutoff,
            "bond_graph_cutoff": float(bond_graph_cutoff),
            "width": width,
            "n_conv": n_conv,
            "architecture": dict(architecture or {}),
        }
        widths = ("atom_fea_dim", "bond_fea_dim", "angle_fea_dim", "atom_conv_hidden_dim")
        arguments = {
            **dict.fromkeys((*widths, "bond_conv_hidden_dim"), width),
            "mlp_hidden_dims": [width] * 3,
            **self.config["architecture"],
            "n_conv": n_conv,
            "atom_graph_cutoff": self.cutoff,
            "bond_graph_cutoff": float(bond_graph_cutoff),
        }
        known = {*inspect.signature(CHGNet).parameters, *_OTHER_ARGUMENTS}
        if unknown := sorted(set(arguments) - known):
            raise UserError(f"CHGNet has no setting `{unknown[0]}`; it has {', '.join(sorted(known))}")
        if obstacle := _obstacle(arguments):
            raise UserError(f"this CHGNet cannot be trained on dynamics: {obstacle}")
        with redirect_stdout(io.StringIO()):
            self.module = CHGNet(**arguments)
        self._scale = 1.0

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        columns = self.species(state.atomic_numbers)
        # Per atom and without the elements' energies, which are added in float64.
        energy = self.module._compute(self._graph(state, neighbors))["e"].double()
        per_atom = energy[state.system_idx] + self._element_energies()[columns]
        zeros = torch.zeros(state.n_systems, dtype=torch.float64, device=state.device)
        return zeros.index_add(0, state.system_idx, per_atom)

    def _graph(self, state: State, neighbors: NeighborList) -> BatchedGraph:
        """CHGNet's input: one length a pair, two directions, and all angles between short bonds."""
        module, n_pairs = self.module, neighbors.n_pairs
        vectors = pair_vectors(state, neighbors).to(self.dtype)
        lengths = vectors.norm(dim=-1)
        directions = vectors / lengths[:, None]
        directions = torch.cat([directions, -directions])
        centre, neighbor, _ = neighbors.both_directions()
        pair_of_edge = torch.arange(n_pairs, device=state.device).repeat(2)
        short = (lengths < self.config["bond_graph_cutoff"]).repeat(2).nonzero().squeeze(1)
        first, second = (short[edges] for edges in _angles(centre[short], state.n_atoms))
        return BatchedGraph(
            atomic_numbers=state.atomic_numbers,
            bond_bases_ag=module.bond_basis_expansion.rbf_expansion_ag(lengths),
            bond_bases_bg=module.bond_basis_expansion.rbf_expansion_bg(lengths),
            angle_bases=module.angle_basis_expansion(directions[first], directions[second]),
            batched_atom_graph=torch.stack([centre, neighbor], dim=1),
            batched_bond_graph=torch.stack([centre[first], pair_of_edge[first], pair_of_edge[second]], dim=1),
            atom_owners=state.system_idx,
            directed2undirected=pair_of_edge,
            # Only the heads that are left out need these.
            atom_positions=[],
            strains=[],
            volumes=[],
        )

    def _element_energies(self) -> Tensor:
        """Of one atom of each of ``elements``, [n_elements] eV."""
        return self.module.composition_model.fc.weight[0, self._rows()].double()

    def _rows(self) -> list[int]:
        return [z - 1 for z in self.species.elements]

    # --- the data's statistics ------------------------------------------------------------------------

    def set_statistics(self, energy_shifts: Tensor, force_scale: float, mean_neighbors: float) -> None:
        """Energies per element, the last layer times the scale; CHGNet divides by no number of neighbours."""
        with torch.no_grad():
            self.module.composition_model.fc.weight.zero_()
            last = self.module.mlp.layers[-1]
            last.weight.mul_(force_scale / self._scale)
            last.bias.mul_(force_scale / self._scale)
        self._scale = force_scale
        self.shift_energies(energy_shifts)

    def shift_energies(self, shifts: Tensor) -> None:
        weight = self.module.composition_model.fc.weight
        with torch.no_grad():
            weight[0, self._rows()] += shifts.to(weight)

    # --- CHGNet's files -------------------------------------------------------------------------------

    @classmethod
    def recognises(cls, contents: FileContents) -> bool:
        return {"state_dict", "model_args", "atom_graph_cutoff"} <= contents.strings

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """A file that CHGNet's trainer (or ``export``) wrote."""
        record = torch.load(path, map_location="cpu", weights_only=False)
        if not (isinstance(record, dict) and {"model_args", "state_dict"} <= set(record.get("model", {}))):
            raise UserError(f"{path} holds no CHGNet model: no `model` with `model_args` and `state_dict`")
        return cls._from_record(record["model"])

    @classmethod
    def _from_record(cls, record: Mapping[str, Any]) -> Self:
        arguments = dict(record["model_args"])
        model = cls(
            elements=range(1, _N_ELEMENTS + 1),
            cutoff=arguments.pop("atom_graph_cutoff", 6.0),
            bond_graph_cutoff=arguments.pop("bond_graph_cutoff", 3.0),
            n_conv=arguments.pop("n_conv", 4),
            architecture=arguments,
        )
        model.module.load_state_dict(record["state_dict"])
        return model

    @classmethod
    def pretrained_names(cls) -> tuple[str, ...]:
        return tuple(_SHIPPED)

    @classmethod
    def pretrained(cls, name: str) -> Self:
        if name not in _SHIPPED:
            return super().pretrained(name)
        with redirect_stdout(io.StringIO()):
            module = CHGNet.load(model_name=_SHIPPED[name], use_device="cpu", verbose=False)
        return cls._from_record(module.as_dict())

    def export(self, path: Path) -> None:
        """What ``CHGNet.from_file`` loads, in float32: the only precision that CHGNet computes in."""
        record = self.module.as_dict()
        tensors = {name: tensor.detach().cpu().float() for name, tensor in record["state_dict"].items()}
        with atomic_path(path) as part:
            torch.save({"model": {"state_dict": tensors, "model_args": record["model_args"]}}, part)

    @staticmethod
    def native_calculator(path: Path, device: str = "cpu", precision: str = "float32") -> Calculator:
        """It needs a periodic cell: put a molecule into a box wider than itself plus the cutoff."""
        from chgnet.model.dynamics import CHGNetCalculator

        if precision != "float32":
            raise UserError("CHGNet's own calculator computes in float32 only")
        with redirect_stdout(io.StringIO()):
            return CHGNetCalculator.from_file(str(path), use_device=device)


def _obstacle(arguments: Mapping[str, Any]) -> str | None:
    """Why a CHGNet built from such arguments cannot be used, or None."""
    if arguments.get("mlp_out_bias"):
        # As version 0.2.0: https://github.com/CederGroupHub/chgnet/issues/79
        return "its layers have a bias (mlp_out_bias), so its energy jumps as the first angle appears"
    if not arguments.get("mlp_first", True):
        return "it reads out a mean over all atoms (mlp_first: false), which makes atoms far apart interact"
    if not arguments.get("is_intensive", True):
        return "its energies of elements are per atom, its others are not (is_intensive: false)"
    if not isinstance(arguments.get("composition_model", "MPtrj"), str):
        return "it has a composition model of its own"
    return None


def _angles(centre: Tensor, n_atoms: int) -> tuple[Tensor, Tensor]:
    """Every ordered pair of different edges with the same centre, as two index tensors [n_angles].

    Args:
        centre: atom that each edge starts from, [n_edges].
    """
    order = centre.argsort(stable=True)
    count = torch.bincount(centre, minlength=n_atoms)
    begin = count.cumsum(0) - count
    partners = count[centre]
    first = torch.arange(len(centre), device=centre.device).repeat_interleave(partners)
    rank = torch.arange(len(first), device=centre.device) - (partners.cumsum(0) - partners)[first]
    second = order[begin[centre[first]] + rank]
    different = (first != second).nonzero().squeeze(1)
    return first[different], second[different]
