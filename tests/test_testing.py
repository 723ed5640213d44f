"""The contract passes what is right and names what is wrong: one broken potential for each of its checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ase import Atoms
from ase.build import molecule
from torch import Tensor, nn

from dyntrain.errors import UserError
from dyntrain.models.analytic import Harmonic, LennardJones, Morse, pair_sum
from dyntrain.neighbors import NeighborList, pair_vectors
from dyntrain.potential import Conservative, EnergyModel, Potential, Prediction
from dyntrain.state import State, concatenate
from dyntrain.testing import (
    FLOAT32,
    FLOAT64,
    Tolerances,
    check_adjoint,
    check_potential,
    check_rollout_gradient,
)
from systems import argon_cluster, argon_crystal, hydrogen


def mixed_batch() -> State:
    """Periodic and not, of several elements."""
    slab = Atoms("Ar2KrAr", positions=[[0, 0, 0], [3.7, 0, 0.2], [0, 3.9, 0], [3.8, 3.9, 0.4]])
    slab.set_cell([[7.8, 0, 0], [1.0, 7.6, 0], [0, 0, 0]])
    slab.pbc = (True, True, False)
    return concatenate([argon_crystal(), State.from_ase(slab), argon_cluster(4)])


# --- what is right passes -----------------------------------------------------------------------------


class _Network(EnergyModel):
    """A small smooth network of pair distances and elements, of any precision."""

    cutoff = 5.0

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(2, 8, generator=random, dtype=torch.float64).to(dtype))
        self.second = nn.Parameter(torch.randn(8, generator=random, dtype=torch.float64).to(dtype))

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        i, j, _ = neighbors.both_directions()
        vectors = pair_vectors(state, neighbors).to(self.first.dtype)
        distances = vectors.norm(dim=-1)
        envelope = (1.0 - (distances / self.cutoff) ** 2) ** 4
        charge = state.atomic_numbers.to(self.first.dtype) / 18.0
        inputs = torch.stack([distances.repeat(2), charge[j]], -1)
        messages = torch.tanh(inputs @ self.first) * envelope.repeat(2)[:, None]
        density = messages.new_zeros(state.n_atoms, 8).index_add(0, i, messages)
        per_atom = (torch.tanh(density) @ self.second * charge).double()
        return per_atom.new_zeros(state.n_systems).index_add(0, state.system_idx, per_atom)


@pytest.mark.parametrize(
    ("potential", "state", "options"),
    [
        (Conservative(LennardJones(cutoff=7.0)), mixed_batch(), {}),
        (Conservative(LennardJones(cutoff=7.0)), argon_crystal(), {}),
        (Conservative(LennardJones(cutoff=7.0)).requires_grad_(False), argon_cluster(3), {}),
        # These two have a cutoff beyond every pair and no envelope.
        (Conservative(Harmonic()), State.from_ase(molecule("CH3CH2OH")), {"smooth_cutoff": False}),
        (Conservative(Morse()), hydrogen(), {"smooth_cutoff": False}),
        (Conservative(_Network(torch.float64)), mixed_batch(), {}),
        (Conservative(_Network(torch.float32)), mixed_batch(), {}),
    ],
    ids=["batch", "crystal", "no parameters", "Harmonic", "Morse", "float64 network", "float32 network"],
)
def test_a_right_potential_passes(potential: Potential, state: State, options: dict[str, bool]) -> None:
    before = {name: tensor.clone() for name, tensor in potential.state_dict().items()}
    positions = state.positions.clone()
    check_potential(potential, state, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in potential.state_dict().items())
    assert all(parameter.grad is None for parameter in potential.parameters())
    assert torch.equal(state.positions, positions)


def test_tolerances_follow_the_coarsest_parameter() -> None:
    assert Tolerances.of(Conservative(LennardJones())) == FLOAT64
    assert Tolerances.of(Conservative(_Network(torch.float32))) == FLOAT32
    mixed = Conservative(_Network(torch.float64))
    mixed.energy_model.second.data = mixed.energy_model.second.data.float()
    assert Tolerances.of(mixed) == FLOAT32


def test_float32_does_not_pass_as_float64() -> None:
    with pytest.raises(AssertionError, match="differ by"):
        check_potential(Conservative(_Network(torch.float32)), argon_cluster(5), tolerances=FLOAT64)


# --- what is wrong is named ---------------------------------------------------------------------------


class _Wrong(Potential):
    """Lennard-Jones with something done to its result."""

    cutoff = 7.0

    def __init__(self) -> None:
        super().__init__()
        self.right = Conservative(LennardJones(cutoff=self.cutoff))

    def forward(self, state: State, neighbors: NeighborList) -> Prediction:
        return self.wrong(state, neighbors, self.right(state, neighbors))

    def wrong(self, state: State, neighbors: NeighborList, right: Prediction) -> Prediction:
        raise NotImplementedError


class TotalEnergy(_Wrong):
    def wrong(self, state, neighbors, right):
        return Prediction(right.energy.sum(), right.forces)


class SinglePrecisionForces(_Wrong):
    def wrong(self, state, neighbors, right):
        return Prediction(right.energy, right.forces.float())


class NoNumber(_Wrong):
    def wrong(self, state, neighbors, right):
        return Prediction(right.energy, right.forces / (state.positions[:1] - state.positions[:1]))


class WrapsPositions(_Wrong):
    def wrong(self, state, neighbors, right):
        with torch.no_grad():
            state.positions.remainder_(5.3)
        return right


class TurnsOnGradients(_Wrong):
    def wrong(self, state, neighbors, right):
        state.positions.requires_grad_(True)
        return right


class CallsBackward(_Wrong):
    def wrong(self, state, neighbors, right):
        if right.energy.requires_grad:
            right.energy.sum().backward(retain_graph=True)
        return right


class KeepsTheGraph(_Wrong):
    def wrong(self, state, neighbors, right):
        with torch.enable_grad():
            return self.right(state, neighbors)


class DropsTheGraph(_Wrong):
    def wrong(self, state, neighbors, right):
        return Prediction(right.energy, right.forces.detach())


class ForgetsTheParameters(_Wrong):
    """Has a graph only where the positions ask for one."""

    def wrong(self, state, neighbors, right):
        return right if state.positions.requires_grad else Prediction(*(t.detach() for t in right))


class WeakForces(_Wrong):
    def wrong(self, state, neighbors, right):
        return Prediction(right.energy, right.forces * (1.0 + 1e-5))


class DetachesPositions(_Wrong):
    """The published code's: right forces, trained as if the positions were fixed."""

    def forward(self, state: State, neighbors: NeighborList) -> Prediction:
        energy, forces = self.right(state.detach(), neighbors)
        return Prediction(energy + 0.0 * state.positions.sum(), forces)


class HalfDetached(_Wrong):
    """A second derivative that leaves a part out."""

    def wrong(self, state, neighbors, right):
        return Prediction(right.energy, 0.5 * right.forces + 0.5 * right.forces.detach())


class BlindToItsParameters(_Wrong):
    """A part of the forces that the parameters do not reach."""

    def wrong(self, state, neighbors, right):
        parameters = {name: tensor.detach() for name, tensor in self.right.named_parameters()}
        fixed = torch.func.functional_call(self.right, parameters, (state, neighbors))
        return Prediction(right.energy, 0.5 * right.forces + 0.5 * fixed.forces)


class _WrongEnergy(EnergyModel):
    """Lennard-Jones plus an energy that breaks one law of physics."""

    cutoff = 7.0

    def __init__(self, extra: Callable[[State, NeighborList], Tensor]) -> None:
        super().__init__()
        self.right = LennardJones(cutoff=self.cutoff)
        self.extra = extra

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        return self.right(state, neighbors) + self.extra(state, neighbors)


def by_system(state: State, per_atom: Tensor) -> Tensor:
    return per_atom.new_zeros(state.n_systems).index_add(0, state.system_idx, per_atom)


def pairs_along_z(state: State, neighbors: NeighborList) -> Tensor:
    vectors = pair_vectors(state, neighbors)
    inside = (1.0 - vectors.pow(2).sum(-1) / 49.0) ** 4
    return pair_sum(state, neighbors, 1e-3 * vectors[:, 2] ** 2 * inside)


def centre_of_the_box(state: State, _: NeighborList) -> Tensor:
    return by_system(state, 1e-3 * state.positions.pow(2).sum(-1))


def size_of_the_cloud(state: State, _: NeighborList) -> Tensor:
    """Knows neither origin nor direction, but which image of an atom is given."""
    weight = 1.0 / state.n_atoms_per_system()[state.system_idx, None]
    middle = state.positions.new_zeros(state.n_systems, 3)
    middle = middle.index_add(0, state.system_idx, weight * state.positions)
    return by_system(state, 1e-3 * (state.positions - middle[state.system_idx]).pow(2).sum(-1))


def first_atom(state: State, neighbors: NeighborList) -> Tensor:
    """Atoms weigh by their place in the list."""
    place = torch.arange(state.n_atoms, dtype=torch.float64)
    place = place - place[torch.searchsorted(state.system_idx, state.system_idx)]
    squares = pair_vectors(state, neighbors).pow(2).sum(-1)
    return pair_sum(state, neighbors, 1e-4 * place[neighbors.i] * (1.0 - squares / 49.0) ** 4)


def batch_mean(state: State, neighbors: NeighborList) -> Tensor:
    """A normalisation over the batch."""
    density = pair_sum(state, neighbors, (1.0 - pair_vectors(state, neighbors).pow(2).sum(-1) / 49.0) ** 4)
    return 1e-3 * (density - density.mean())


def first_cell(state: State, neighbors: NeighborList) -> Tensor:
    """The published code's: the first structure's cell for all."""
    cell = state.cell[:1].expand_as(state.cell)
    squares = pair_vectors(state.replace(cell=cell), neighbors).pow(2).sum(-1)
    return pair_sum(state, neighbors, 1e-3 * (1.0 - squares.clamp(max=49.0) / 49.0) ** 4)


def cut_off_hard(state: State, neighbors: NeighborList) -> Tensor:
    return pair_sum(state, neighbors, -1.0 / pair_vectors(state, neighbors).norm(dim=-1) ** 6)


def cut_off_with_a_kink(state: State, neighbors: NeighborList) -> Tensor:
    """A continuous energy, forces that jump."""
    distances = pair_vectors(state, neighbors).norm(dim=-1)
    return pair_sum(state, neighbors, 1e-2 * (distances / 7.0 - 1.0))


def pooled(state: State, neighbors: NeighborList) -> Tensor:
    inside = (1.0 - pair_vectors(state, neighbors).pow(2).sum(-1) / 49.0) ** 4
    return 1e-3 * torch.tanh(pair_sum(state, neighbors, inside))


def per_cell(state: State, neighbors: NeighborList) -> Tensor:
    """Extensive in clusters, but each periodic cell adds a constant."""
    return 1e-3 * state.pbc.any(-1).double() + 0.0 * by_system(state, state.positions[:, 0])


WRONG = [
    (TotalEnergy(), r"^output: energy must have shape \(1,\), got \(\)"),
    (SinglePrecisionForces(), r"^output: forces must be float64, got torch\.float32"),
    (NoNumber(), r"^output: \d+ of 24 numbers of forces are not finite"),
    (WrapsPositions(), r"^input untouched: state\.positions was changed in place"),
    (TurnsOnGradients(), r"^input untouched: state\.positions was made to require a gradient"),
    (CallsBackward(), r"^input untouched: \.grad of parameter .*epsilon was changed"),
    (KeepsTheGraph(), r"^graph: energy keeps one under torch\.no_grad\(\)"),
    (DropsTheGraph(), r"^graph: forces has none where gradients are enabled"),
    (ForgetsTheParameters(), r"^graph: at detached positions the forces do not reach the parameters"),
    (WeakForces(), r"^finite-difference forces: .* differ by .* \(allowed .*\) eV/Å"),
    (DetachesPositions(), r"^second derivatives: the forces have no graph to the positions"),
    (HalfDetached(), r"^second derivatives: autograd and finite differences"),
    (BlindToItsParameters(), r"^parameter gradients: .* of a loss of the forces"),
    (Conservative(_WrongEnergy(pairs_along_z)), r"^rotation: of the turned system"),
    (Conservative(_WrongEnergy(centre_of_the_box)), r"^translation: of the shifted system"),
    (Conservative(_WrongEnergy(size_of_the_cloud)), r"^translation: of other periodic images"),
    (Conservative(_WrongEnergy(first_atom)), r"^permutation: of reordered atoms"),
    (Conservative(_WrongEnergy(batch_mean)), r"^batch: of system 0 of 4 and of it alone"),
    (Conservative(_WrongEnergy(first_cell)), r"^batch: of system 2 of 4 and of it alone"),
    (Conservative(_WrongEnergy(cut_off_hard)), r"^smooth cutoff: .* through 7 Å: the energies"),
    (Conservative(_WrongEnergy(cut_off_with_a_kink)), r"^smooth cutoff: .* through 7 Å: the forces"),
    (Conservative(_WrongEnergy(pooled)), r"^extensive: of two far copies of system 0"),
    (Conservative(_WrongEnergy(per_cell)), r"^extensive: of system 0 doubled along its cell vector a"),
]


def name(potential: Potential) -> str:
    model = getattr(potential, "energy_model", None)
    return type(potential).__name__ if model is None else model.extra.__name__


@pytest.mark.parametrize(("potential", "complaint"), WRONG, ids=[name(wrong) for wrong, _ in WRONG])
def test_a_wrong_potential_is_told_what_is_wrong(potential: Potential, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_potential(potential, argon_crystal())


def test_what_cannot_hold_for_a_model_may_be_left_out() -> None:
    check_potential(Conservative(_WrongEnergy(cut_off_hard)), argon_crystal(), smooth_cutoff=False)
    check_potential(Conservative(_WrongEnergy(pooled)), argon_crystal(), extensive=False)


class StrongWithoutGraph(_Wrong):
    """Other numbers where no graph is kept: what goes forward is not what goes backward."""

    def wrong(self, state, neighbors, right):
        return right if torch.is_grad_enabled() else Prediction(right.energy, 1.001 * right.forces)


# What these two find, an earlier check finds first; they must find it alone, too.


@pytest.mark.parametrize(
    ("potential", "state", "sentence"),
    [
        (Conservative(Morse()), molecule("H2"), r"expects a State, got Atoms; State\.from_ase\(atoms\)"),
        (Morse(), hydrogen(), r"expects a Potential, got Morse; Conservative\(network\)"),
        (molecule("H2"), hydrogen(), "expects a Potential, got Atoms"),
    ],
)
def test_what_is_no_potential_and_no_state_is_refused(potential: Any, state: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_potential(potential, state)


def test_a_gradient_that_stops_in_a_roll_out_is_found() -> None:
    start = argon_cluster(4)
    with pytest.raises(AssertionError, match=r"^roll-out gradient: .* over 3 steps in the start positions"):
        check_rollout_gradient(DetachesPositions(), start)
    with pytest.raises(AssertionError, match=r"^roll-out gradient: .* over 2 steps in the start positions"):
        check_rollout_gradient(HalfDetached(), start, n_steps=2)


def test_a_backward_pass_that_sees_another_potential_is_found() -> None:
    with pytest.raises(AssertionError, match=r"^adjoint: the gradients of Adjoint and Full in the "):
        check_adjoint(StrongWithoutGraph(), argon_cluster(4))
    with pytest.raises(AssertionError, match=r"^graph: with and without it: the forces"):
        check_potential(StrongWithoutGraph(), argon_cluster(4))
