"""Structures made of the one given: copies, companions of other kinds, and random numbers on its device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dyntrain.potential import Prediction
from dyntrain.state import State


def without_images(system: State) -> State:
    """The same atoms without periodic images."""
    return system.replace(cell=torch.zeros_like(system.cell), pbc=torch.zeros_like(system.pbc))


def fields(state: State) -> dict[str, Tensor]:
    """Fields of the state by name, without those that are absent."""
    return {name: tensor for name, tensor in vars(state).items() if tensor is not None}


def with_atoms(state: State, atoms: Tensor) -> State:
    """The state with these of its atoms, in this order, each as often as it is named."""
    per_atom = ("positions", "velocities", "masses", "atomic_numbers", "system_idx", "fixed")
    found = fields(state)
    return state.replace(**{name: found[name][atoms] for name in per_atom if name in found})


def two_copies(system: State, offset: Tensor) -> State:
    """One system that holds the atoms of ``system`` twice, the second time moved by ``offset`` [3]."""
    atoms = torch.arange(system.n_atoms, device=system.device)
    twice = with_atoms(system, atoms.repeat(2))
    return twice.replace(positions=torch.cat([system.positions, system.positions + offset]))


def doubled(prediction: Prediction) -> Prediction:
    return Prediction(2.0 * prediction.energy, prediction.forces.repeat(2, 1))


def companions(system: State, random: Random) -> list[State]:
    """Systems of other size, elements, cell and periodicity than ``system``."""
    strained = system.replace(positions=1.03 * system.positions, cell=1.03 * system.cell)
    moved = system.positions + 0.02 * random.like(system.positions)
    exchanged = without_images(system).replace(positions=moved, atomic_numbers=system.atomic_numbers.flip(0))
    if system.n_atoms == 1:
        return [strained, exchanged]
    smaller = with_atoms(system, torch.arange(system.n_atoms - 1, device=system.device))
    return [smaller, strained, exchanged]


def contact_distance(cluster: State, direction: Tensor, cutoff: float) -> float:
    """How far a copy is moved along ``direction`` when its first pair with the original is at the cutoff.

    |r + t e| = cutoff for r = r_j − r_i has the later root t = −r·e + √((r·e)² + cutoff² − r²).
    """
    r = (cluster.positions[None, :] - cluster.positions[:, None]).reshape(-1, 3)
    along = r @ direction
    inside_root = along**2 + cutoff**2 - (r**2).sum(-1)
    meets = inside_root >= 0
    return float((-along[meets] + inside_root[meets].sqrt()).max())


class Random:
    """Reproducible random numbers on the device of a state."""

    def __init__(self, state: State, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._device = state.device

    def _normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64).to(self._device)

    def like(self, tensor: Tensor) -> Tensor:
        return self._normal(tensor.shape)

    def like_parameter(self, parameter: Tensor) -> Tensor:
        """Of the size of the parameter's numbers, so that one step suits all parameters."""
        size = float(parameter.detach().double().square().mean().sqrt()) or 1.0
        return (size * self._normal(parameter.shape)).to(parameter.dtype)

    def fractions(self, n: int) -> Tensor:
        return torch.rand(n, generator=self._generator, dtype=torch.float64).to(self._device)

    def whole_numbers(self, *shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=self._generator).double().to(self._device)

    def rotation(self) -> Tensor:
        q, _ = torch.linalg.qr(self._normal((3, 3)))
        return q * torch.linalg.det(q)  # det is ±1, and −1 to the third power turns it
