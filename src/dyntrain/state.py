"""State: a frozen batch of atomic systems; it holds what moves, never labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dyntrain.units import KB


@dataclass(frozen=True, eq=False)
class State:
    """Atoms of one or more systems, one after the other.

    ```text
    field           shape              dtype    unit
    positions       [n_atoms, 3]       float64  Å (unwrapped)
    velocities      [n_atoms, 3]       float64  Å / ASE time
    masses          [n_atoms]          float64  u
    atomic_numbers  [n_atoms]          int64
    system_idx      [n_atoms]          int64    ascending, one number per system
    cell            [n_systems, 3, 3]  float64  Å, lattice vectors are rows
    pbc             [n_systems, 3]     bool
    fixed           [n_atoms]          bool     atoms that never move; None: all may move
    ```
    """

    positions: Tensor
    velocities: Tensor
    masses: Tensor
    atomic_numbers: Tensor
    system_idx: Tensor
    cell: Tensor
    pbc: Tensor
    fixed: Tensor | None = None

    def __post_init__(self) -> None:
        n_atoms, n_systems = self.n_atoms, self.n_systems
        for name, shape in (
            ("positions", (n_atoms, 3)),
            ("velocities", (n_atoms, 3)),
            ("masses", (n_atoms,)),
            ("atomic_numbers", (n_atoms,)),
            ("system_idx", (n_atoms,)),
            ("cell", (n_systems, 3, 3)),
            ("pbc", (n_systems, 3)),
            ("fixed", (n_atoms,)),
        ):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != shape:
                raise ValueError(f"State.{name} must have shape {shape}, got {tuple(tensor.shape)}")

    @property
    def n_atoms(self) -> int:
        return int(self.atomic_numbers.shape[0])

    @property
    def n_systems(self) -> int:
        return int(self.cell.shape[0])

    @property
    def device(self) -> torch.device:
        return self.positions.device

    def replace(self, **changes: Tensor) -> State:
        """The same state with some fields exchanged."""
        other = dataclasses.replace(self, **changes)
        if "system_idx" not in changes and "_n_atoms_per_system" in self.__dict__:
            other.__dict__["_n_atoms_per_system"] = self._n_atoms_per_system  # counted already
        return other

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> State:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return self.replace(**{name: function(value) for name, value in fields.items() if value is not None})

    def detach(self) -> State:
        """The same numbers, cut from any autograd graph."""
        of_numbers = self.positions, self.velocities, self.masses, self.cell
        if not any(tensor.requires_grad for tensor in of_numbers):
            return self
        return self._mapped(Tensor.detach)

    def to(self, device: torch.device | str) -> State:
        return self._mapped(lambda tensor: tensor.to(device))

    def atoms_of(self, systems: Tensor) -> Tensor:
        """Indices [m] of the atoms of the given systems (ascending system numbers)."""
        keep = torch.zeros(self.n_systems, dtype=torch.bool, device=self.device)
        keep[systems] = True
        return keep[self.system_idx].nonzero().squeeze(1)

    def select(self, systems: Tensor | Sequence[int]) -> State:
        """The state of some systems only, renumbered from zero.

        Args:
            systems: ascending system numbers, int64 [m].
        """
        systems = torch.as_tensor(systems, dtype=torch.int64, device=self.device)
        if systems.numel() > 1 and not bool((systems[1:] > systems[:-1]).all()):
            raise ValueError("State.select needs ascending system numbers")
        atoms = self.atoms_of(systems)
        new_number = torch.full((self.n_systems,), -1, dtype=torch.int64, device=self.device)
        new_number[systems] = torch.arange(systems.numel(), device=self.device)
        return State(
            positions=self.positions[atoms],
            velocities=self.velocities[atoms],
            masses=self.masses[atoms],
            atomic_numbers=self.atomic_numbers[atoms],
            system_idx=new_number[self.system_idx[atoms]],
            cell=self.cell[systems],
            pbc=self.pbc[systems],
            fixed=None if self.fixed is None else self.fixed[atoms],
        )

    def inertia(self) -> Tensor:
        """Masses that an acceleration is divided by, [n_atoms] u: infinite for fixed atoms."""
        return self.masses if self.fixed is None else self.masses.masked_fill(self.fixed, torch.inf)

    def kinetic_energy(self) -> Tensor:
        """½ Σ m v² of each system, eV, [n_systems]."""
        per_atom = 0.5 * self.masses * (self.velocities**2).sum(-1)
        zeros = torch.zeros(self.n_systems, dtype=per_atom.dtype, device=self.device)
        return zeros.index_add(0, self.system_idx, per_atom)

    def n_atoms_per_system(self) -> Tensor:
        """Atoms in each system, int64 [n_systems]."""
        return self._n_atoms_per_system

    @cached_property
    def _n_atoms_per_system(self) -> Tensor:
        return torch.bincount(self.system_idx, minlength=self.n_systems)

    def temperature(self) -> Tensor:
        """Kinetic temperature 2 E_kin / (3 N k_B) of each system, K, [n_systems]."""
        # Divided twice: 3.0 × whole numbers would be a float32 tensor.
        return 2.0 * self.kinetic_energy() / (3.0 * KB) / self.n_atoms_per_system()

    @classmethod
    def from_arrays(
        cls,
        positions: Any,
        atomic_numbers: Any,
        masses: Any,
        *,
        velocities: Any = None,
        cell: Any = None,
        pbc: Any = (False, False, False),
        fixed: Any = None,
    ) -> State:
        """One system from arrays or lists (velocities default to rest, cell to none, fixed atoms to none)."""
        positions = torch.as_tensor(positions, dtype=torch.float64)
        n_atoms = positions.shape[0]
        if velocities is None:
            velocities = torch.zeros_like(positions)
        if cell is None:
            cell = torch.zeros(3, 3)
        return cls(
            positions=positions,
            velocities=torch.as_tensor(velocities, dtype=torch.float64),
            masses=torch.as_tensor(masses, dtype=torch.float64),
            atomic_numbers=torch.as_tensor(atomic_numbers, dtype=torch.int64),
            system_idx=torch.zeros(n_atoms, dtype=torch.int64),
            cell=torch.as_tensor(cell, dtype=torch.float64).reshape(1, 3, 3),
            pbc=torch.as_tensor(pbc, dtype=torch.bool).reshape(1, 3),
            fixed=None if fixed is None else torch.as_tensor(fixed, dtype=torch.bool),
        )

    @classmethod
    def from_ase(cls, atoms: Any) -> State:
        """One system from an ``ase.Atoms`` (its velocities, masses, cell and pbc)."""
        return cls.from_arrays(
            atoms.get_positions(),
            atoms.get_atomic_numbers(),
            atoms.get_masses(),
            velocities=atoms.get_velocities(),
            cell=atoms.cell.array,
            pbc=atoms.get_pbc(),
        )


def concatenate(states: Sequence[State]) -> State:
    """One batch of all systems of the given states, in order."""
    if not states:
        raise ValueError("concatenate needs at least one State")
    offsets, total = [], 0
    for state in states:
        offsets.append(total)
        total += state.n_systems
    fields = {
        name: torch.cat([getattr(state, name) for state in states])
        for name in (f.name for f in dataclasses.fields(State))
        if name not in ("system_idx", "fixed")
    }
    numbers = [state.system_idx + offset for state, offset in zip(states, offsets, strict=True)]
    fixed = None
    if any(state.fixed is not None for state in states):
        none_fixed = (torch.zeros_like(state.atomic_numbers, dtype=torch.bool) for state in states)
        fixed = torch.cat(
            [z if s.fixed is None else s.fixed for s, z in zip(states, none_fixed, strict=True)]
        )
    return State(system_idx=torch.cat(numbers), fixed=fixed, **fields)
