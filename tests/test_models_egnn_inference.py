"""The default network without autograd, compiled or not, against its plain form: energies, forces, stress."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ase.build import molecule
from torch import Tensor

from dyntrain import kernel
from dyntrain.models import egnn_pairs
from dyntrain.models.egnn import EGNN
from dyntrain.models.pair_basis import RadialBasis
from dyntrain.neighbors import NeighborList, neighbor_list
from dyntrain.potential import Conservative
from dyntrain.state import State, concatenate
from systems import argon_crystal


@pytest.fixture(autouse=True, params=["compiled", "by PyTorch's operations"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "compiled":
        pytest.importorskip("numba")
    monkeypatch.setattr(kernel, "is_of_use", lambda like: request.param == "compiled")


def ethanol() -> State:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return State.from_ase(atoms)


def water(pbc: tuple[bool, bool, bool] = (True, True, False)) -> State:
    """Every atom sees its own images."""
    atoms = molecule("H2O", cell=[3.1, 3.4, 9.0], pbc=pbc)
    atoms.rattle(0.05, seed=3)
    return State.from_ase(atoms)


def crystal() -> State:
    """Atoms that are their own neighbours, in a skewed cell."""
    return State.from_arrays(
        [[0.1, 0.2, 0.0], [1.3, 1.1, 1.2]],
        [6, 14],
        [12.0, 28.0],
        cell=[[2.9, 0.2, 0.0], [-0.4, 3.1, 0.3], [0.1, 0.0, 2.7]],
        pbc=[True, True, True],
    )


SYSTEMS = {
    "molecule": ethanol,
    "its own images": crystal,
    "one atom": lambda: State.from_arrays([[0.0, 0.0, 0.0]], [6], [12.0]),
    "mixed batch": lambda: concatenate([water(), ethanol(), crystal()]),
}
every_system = pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS.keys())


def network(**settings: int) -> EGNN:
    """In double precision, with all of its weights away from where they start."""
    torch.manual_seed(0)
    model = EGNN([1, 6, 8, 14], cutoff=4.5, **{"width": 16, "n_channels": 8, **settings})
    model.set_precision("float64")
    model.set_statistics(torch.linspace(-5.0, -30.0, 4, dtype=torch.float64), 1.3, 12.0)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def both(model: EGNN, state: State) -> tuple[Any, Any]:
    """Energies and forces by autograd, and without."""
    potential = Conservative(model)
    neighbors = neighbor_list(state, model.cutoff)
    plain = potential(state, neighbors)
    with torch.no_grad():
        return plain, potential(state, neighbors)


def agree(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)


@every_system
def test_energies_and_forces_are_those_of_the_plain_form(system: Any) -> None:
    plain, fast = both(network(), system())
    agree(fast.energy, plain.energy)
    agree(fast.forces, plain.forces)
    assert system().n_atoms == 1 or float(fast.forces.abs().max()) > 0.01


@pytest.mark.parametrize(
    "state", [crystal(), argon_crystal(), water((True, True, True))], ids=["skewed", "fcc", "water"]
)
def test_the_stress_is_that_of_the_plain_form(state: State) -> None:
    model = network()
    state = state.replace(atomic_numbers=torch.full_like(state.atomic_numbers, 14))
    neighbors = neighbor_list(state, model.cutoff)
    plain = Conservative(model).stress(state, neighbors)
    with torch.no_grad():
        agree(Conservative(model).stress(state, neighbors), plain)


@pytest.mark.parametrize("settings", [{"n_radial": 5}, {"width": 7}, {"n_channels": 3}], ids=str)
def test_any_size(settings: dict[str, int]) -> None:
    plain, fast = both(network(**settings), water())
    agree(fast.forces, plain.forces)


def test_single_precision_is_as_exact_as_the_plain_form() -> None:
    model, state = network(), SYSTEMS["mixed batch"]()
    exact, _ = both(model, state)
    model.set_precision("float32")
    plain, fast = both(model, state)
    wrong = [float((prediction.forces - exact.forces).abs().max().detach()) for prediction in (plain, fast)]
    assert wrong[1] < max(3.0 * wrong[0], 1e-5)


def test_blocks_of_pairs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, state = network(), water()
    _, whole = both(model, state)
    monkeypatch.setattr(egnn_pairs, "PAIRS_AT_A_TIME", 7)
    _, parts = both(model, state)
    agree(parts.forces, whole.forces)


def test_changed_weights_count_at_once() -> None:
    """Nothing made of the weights is kept: however they were changed, the next evaluation has them."""
    model, state = network(), ethanol()
    _, before = both(model, state)
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    plain, after = both(model, state)
    agree(after.forces, plain.forces)
    assert not torch.equal(after.forces, before.forces)


def test_a_subclass_with_another_energy_has_the_forces_of_that_energy() -> None:
    class Doubled(EGNN):
        def forward(self, state: State, neighbors: NeighborList) -> Tensor:
            return 2.0 * super().forward(state, neighbors)

    model = Doubled([1, 6, 8], width=8, n_channels=4)
    model.set_precision("float64")
    plain, without = both(model, ethanol())
    agree(without.forces, plain.forces)
    agree(without.energy, plain.energy)


def test_what_comes_out_can_be_worked_with() -> None:
    """Forces without autograd are ordinary tensors: a loss may be made of them, and they may be changed."""
    _, fast = both(network(), ethanol())
    weight = torch.ones_like(fast.forces, requires_grad=True)
    ((weight * fast.forces).sum() + fast.energy.sum()).backward()
    assert weight.grad is not None and torch.equal(weight.grad, fast.forces)
    fast.forces.mul_(2.0)
    fast.energy.add_(1.0)


def test_slopes_of_the_radial_basis() -> None:
    basis = RadialBasis(6, 5.0)
    distances = torch.linspace(0.4, 5.0, 50, dtype=torch.float64, requires_grad=True)
    plain = basis(distances)
    values, slopes = basis.with_slopes(distances.detach(), torch.tensor(0.7, dtype=torch.float64))
    agree(values, 0.7 * plain.T)
    for n in range(6):
        (expected,) = torch.autograd.grad(plain[:, n].sum(), distances, retain_graph=True)
        agree(slopes[n], 0.7 * expected)
