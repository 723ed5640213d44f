"""Your own network as a potential: any function or module of positions, elements and pairs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from dyntrain.adapters.base import directed_edges
from dyntrain.errors import UserError
from dyntrain.models.species import SpeciesIndex
from dyntrain.neighbors import NeighborList
from dyntrain.potential import Conservative, EnergyModel, Potential, Prediction
from dyntrain.state import State

INPUTS = {
    "positions": "[n_atoms, 3] Å, float64",
    "atomic_numbers": "[n_atoms]",
    "system_idx": "[n_atoms], the system of each atom",
    "n_systems": "how many systems the batch holds",
    "cell": "[n_systems, 3, 3] Å, rows are lattice vectors",
    "i": "[n_pairs], centre of each pair; both directions of every pair within the cutoff",
    "j": "[n_pairs], neighbour of each pair",
    "vectors": "[n_pairs, 3] Å, from i to the right periodic image of j",
    "distances": "[n_pairs] Å",
}
"""What a function may ask for, by the name of its argument."""


def potential_from(
    energy: Callable[..., Tensor], *, cutoff: float, elements: Sequence[int] | None = None
) -> Conservative:
    """A potential from a function or ``nn.Module`` that gives energies; forces follow by differentiation.

    Its arguments are taken by name, any of ``INPUTS``::

        def springs(distances, i, n_systems, system_idx):
            pair_energies = 0.5 * (distances - 1.0) ** 2
            return pair_energies.new_zeros(n_systems).index_add(0, system_idx[i], 0.5 * pair_energies)

        potential = potential_from(springs, cutoff=3.0)

    Args:
        energy: gives an energy per system [n_systems], or per atom [n_atoms] (then summed here), eV. The
            parameters of a module are what is trained.
        cutoff: range of the pairs it sees, Å.
        elements: atomic numbers it is made for; None: any.

    Raises:
        UserError: it asks for an argument that is not among ``INPUTS``, or the cutoff is no length; later,
            what it gives has another shape, half precision, or does not depend on the positions.
    """
    return Conservative(FunctionModel(energy, cutoff, elements))


def potential_from_forces(
    model: Callable[..., tuple[Tensor, Tensor]], *, cutoff: float, elements: Sequence[int] | None = None
) -> Potential:
    """A potential from a model that gives energies *and* forces, which then are no derivative of an energy.

    It is marked ``conservative = False``: no integrator can conserve its energy, and ``check_potential`` does
    not ask for it. Arguments as in ``potential_from``, but the model returns (energy, forces [n_atoms, 3]).
    """
    return DirectForces(model, cutoff, elements)


class _Inputs(nn.Module):
    """The function, and what it asks for of a structure."""

    def __init__(self, function: Callable[..., Any], elements: Sequence[int] | None) -> None:
        super().__init__()
        if not callable(function):
            raise UserError(f"a function or nn.Module is expected, got {function!r}")
        self.function = function
        self.species = None if elements is None else SpeciesIndex(elements)
        called = function.forward if isinstance(function, nn.Module) else function
        parameters = inspect.signature(called).parameters.values()
        self.names = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        if unknown := [name for name in self.names if name not in INPUTS]:
            raise UserError(
                f"a model may ask for {', '.join(INPUTS)}; {_name(function)} has the argument `{unknown[0]}`"
            )

    def forward(self, state: State, neighbors: NeighborList) -> Any:
        if self.species is not None:
            self.species(state.atomic_numbers)
        edges = directed_edges(state, neighbors)
        vectors = edges.vectors(state.positions)
        offered: dict[str, Any] = {
            "positions": state.positions,
            "atomic_numbers": state.atomic_numbers,
            "system_idx": state.system_idx,
            "n_systems": state.n_systems,
            "cell": state.cell,
            "i": edges.source,
            "j": edges.target,
            "vectors": vectors,
            "distances": vectors.norm(dim=-1),
        }
        return self.function(**{name: offered[name] for name in self.names})


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _checked(cutoff: float) -> float:
    if not (isinstance(cutoff, Real) and 0 < cutoff < math.inf):
        raise UserError(f"cutoff must be a length above 0 in Å, got {cutoff!r}")
    return float(cutoff)


def _check_precision(values: Tensor, what: str, name: str) -> None:
    """Half precision knows 100 eV to 0.06 eV at best: neither forces nor drift can be told from it."""
    if values.dtype in (torch.float16, torch.bfloat16):
        raise UserError(f"{name} must give its {what} in float32 or float64, got {values.dtype}")


def _per_system(energy: Any, state: State, name: str) -> Tensor:
    """Energies [n_systems] float64 of what a model gave.

    Where every system is a single atom the two readings of [n_atoms] are the same.
    """
    if isinstance(energy, Tensor):
        _check_precision(energy, "energies", name)
        energy = energy.double()
        if energy.shape in ((state.n_atoms,), (state.n_atoms, 1)):
            return energy.new_zeros(state.n_systems).index_add(0, state.system_idx, energy.reshape(-1))
        if energy.shape in ((state.n_systems,), (state.n_systems, 1)):
            return energy.reshape(-1)
    found = tuple(energy.shape) if isinstance(energy, Tensor) else type(energy).__name__
    raise UserError(
        f"{name} must give one energy per system [{state.n_systems}] or per atom [{state.n_atoms}], "
        f"got {found}"
    )


class FunctionModel(EnergyModel):
    """See ``potential_from``."""

    def __init__(
        self, energy: Callable[..., Tensor], cutoff: float, elements: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.cutoff = _checked(cutoff)
        self.config = {}
        self.inputs = _Inputs(energy, elements)

    @property
    def elements(self) -> tuple[int, ...] | None:
        return None if self.inputs.species is None else self.inputs.species.elements

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        return _per_system(self.inputs(state, neighbors), state, _name(self.inputs.function))


class DirectForces(Potential):
    """See ``potential_from_forces``."""

    conservative = False

    def __init__(
        self,
        model: Callable[..., tuple[Tensor, Tensor]],
        cutoff: float,
        elements: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.cutoff = _checked(cutoff)
        self.inputs = _Inputs(model, elements)

    @property
    def elements(self) -> tuple[int, ...] | None:
        return None if self.inputs.species is None else self.inputs.species.elements

    def forward(self, state: State, neighbors: NeighborList) -> Prediction:
        given = self.inputs(state, neighbors)
        name = _name(self.inputs.function)
        energy, forces = given if isinstance(given, tuple | list) and len(given) == 2 else (given, None)
        if not isinstance(forces, Tensor) or forces.shape != state.positions.shape:
            raise UserError(f"{name} must give (energy, forces), the forces of shape [{state.n_atoms}, 3]")
        _check_precision(forces, "forces", name)
        learns = any(parameter.requires_grad for parameter in self.parameters())
        if torch.is_grad_enabled() and learns and not forces.requires_grad:
            raise UserError(
                f"the forces of {name} do not depend on its parameters through autograd, so it cannot be "
                "trained: it detached its output"
            )
        return Prediction(_per_system(energy, state, name), forces.double())
