"""A third party's package as small as can be: a pickled module as its format, a calculator of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from ase.calculators.calculator import Calculator, all_changes
from torch import Tensor, nn

from dyntrain.adapters.base import AdapterModel, directed_edges
from dyntrain.atomic import atomic_path
from dyntrain.models.native import FileContents
from dyntrain.models.species import SpeciesIndex
from dyntrain.neighbors import NeighborList
from dyntrain.state import State


class RawSprings(nn.Module):
    """Energy of each atom: half of its springs', and one of its element. The package's own code."""

    def __init__(self, elements: Sequence[int], cutoff: float) -> None:
        super().__init__()
        self.elements, self.cutoff = list(elements), cutoff
        self.stiffness = nn.Parameter(torch.tensor(1.0))
        self.length = nn.Parameter(torch.tensor(1.2))
        self.register_buffer("energies", torch.zeros(len(elements), dtype=torch.float64))

    def forward(self, vectors: Tensor, centre: Tensor, columns: Tensor) -> Tensor:
        d = vectors.norm(dim=-1)
        smooth = (1.0 - (d / self.cutoff) ** 2) ** 3
        springs = 0.25 * self.stiffness * (d - self.length) ** 2 * smooth
        return self.energies[columns].to(springs.dtype).index_add(0, centre, springs)


class Springs(AdapterModel):
    """The package's module as a family of ours."""

    family: ClassVar[str] = "springs"

    def __init__(self, elements: Sequence[int], cutoff: float = 3.0, stiffness: float = 1.0) -> None:
        super().__init__()
        self.species = SpeciesIndex(elements)
        self.cutoff = cutoff
        self.config = {"elements": list(self.elements), "cutoff": cutoff}
        self.module = RawSprings(self.elements, cutoff)
        self.module.stiffness.data.fill_(stiffness)

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        edges = directed_edges(state, neighbors)
        vectors = edges.vectors(state.positions).to(self.dtype)
        per_atom = self.module(vectors, edges.source, self.species(state.atomic_numbers)).double()
        return per_atom.new_zeros(state.n_systems).index_add(0, state.system_idx, per_atom)

    def set_statistics(self, energy_shifts: Tensor, force_scale: float, mean_neighbors: float) -> None:
        self.module.energies.copy_(energy_shifts)
        self.module.stiffness.data.fill_(force_scale)

    def shift_energies(self, shifts: Tensor) -> None:
        self.module.energies.add_(shifts)

    @classmethod
    def recognises(cls, contents: FileContents) -> bool:
        return "fake_family.RawSprings" in contents.globals

    @classmethod
    def from_file(cls, path: Path) -> Self:
        module = torch.load(path, weights_only=False)
        model = cls(module.elements, module.cutoff)
        model.module = module
        return model

    @classmethod
    def pretrained_names(cls) -> tuple[str, ...]:
        return ("springs-1",)

    @classmethod
    def pretrained(cls, name: str) -> Self:
        if name not in cls.pretrained_names():
            return super().pretrained(name)
        return cls([1, 6, 8], stiffness=2.0)

    def export(self, path: Path) -> None:
        with atomic_path(path) as part:
            torch.save(self.module, part)

    @staticmethod
    def native_calculator(path: Path, device: str = "cpu", precision: str = "float64") -> Calculator:
        return SpringsCalculator(torch.load(path, weights_only=False))


class SpringsCalculator(Calculator):
    """The package's own calculator, for atoms without periodic images."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def __init__(self, module: RawSprings, wrong_by: float = 0.0) -> None:
        super().__init__()
        self.module, self.wrong_by = module, wrong_by

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        positions = torch.tensor(atoms.positions, requires_grad=True)
        separation = torch.cdist(positions.detach(), positions.detach())
        i, j = ((separation < self.module.cutoff) & (separation > 0)).nonzero().T
        columns = torch.tensor([self.module.elements.index(z) for z in atoms.numbers])
        dtype = self.module.stiffness.dtype
        energy = self.module((positions[j] - positions[i]).to(dtype), i, columns).sum()
        (gradient,) = torch.autograd.grad(energy, positions)
        self.results = {"energy": float(energy.detach()) + self.wrong_by, "forces": -gradient.numpy()}


class NoModel:
    """What an entry point must not name."""
