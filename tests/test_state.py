"""State: shapes are checked, selecting undoes concatenating, energies and temperatures are ASE's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from dyntrain.state import State, concatenate
from systems import argon_cluster, argon_crystal, hydrogen

FIELDS = [field.name for field in dataclasses.fields(State)]


TENSORS = [name for name in FIELDS if name != "fixed"]


def assert_equal(a: State, b: State) -> None:
    for name in TENSORS:
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.fixture
def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH", vacuum=3.0)
    atoms.pbc = (True, False, True)
    atoms.set_velocities(np.random.default_rng(0).normal(scale=0.03, size=(9, 3)))
    return atoms


@pytest.mark.parametrize("name", FIELDS)
def test_a_wrong_shape_is_refused(name: str) -> None:
    state = hydrogen().replace(fixed=torch.tensor([True, False]))
    wrong = getattr(state, name)[None]
    with pytest.raises(ValueError, match=r"State\.(\w+) must have shape \(.*\), got \("):
        state.replace(**{name: wrong})


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        hydrogen().positions = torch.zeros(2, 3)


def test_replace_leaves_the_original_alone() -> None:
    state = hydrogen()
    before = state.positions.clone()
    moved = state.replace(positions=state.positions + 1.0)
    assert torch.equal(state.positions, before)
    assert torch.equal(moved.positions, before + 1.0)
    assert moved.masses is state.masses


def test_atoms_are_counted_once_and_again_for_another_numbering() -> None:
    batch = concatenate([hydrogen(), argon_crystal()])
    counted = batch.n_atoms_per_system()
    assert batch.replace(positions=batch.positions + 1.0).n_atoms_per_system() is counted
    others = batch.system_idx.clone()
    others[2] = 0
    assert batch.replace(system_idx=others).n_atoms_per_system().tolist() == [3, 7]


def test_detach_copies_only_what_carries_a_gradient() -> None:
    state = hydrogen()
    assert state.detach() is state
    for name in ("positions", "velocities", "masses", "cell"):
        carries = state.replace(**{name: getattr(state, name).clone().requires_grad_()})
        assert not getattr(carries.detach(), name).requires_grad


def test_select_undoes_concatenate() -> None:
    parts = [hydrogen(), argon_crystal(), argon_cluster(5)]
    batch = concatenate(parts)
    assert batch.n_systems == 3
    assert batch.n_atoms_per_system().tolist() == [2, 8, 5]
    for number, part in enumerate(parts):
        assert_equal(batch.select([number]), part)
    assert_equal(batch.select([0, 2]), concatenate([parts[0], parts[2]]))
    assert_equal(concatenate([batch.select([0]), batch.select([1, 2])]), batch)
    assert batch.atoms_of(torch.tensor([0, 2])).tolist() == [0, 1, 10, 11, 12, 13, 14]


def test_select_refuses_another_order() -> None:
    batch = concatenate([hydrogen(), hydrogen()])
    for systems in ([1, 0], [0, 0]):
        with pytest.raises(ValueError, match="ascending system numbers"):
            batch.select(systems)


def test_concatenate_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="at least one State"):
        concatenate([])


def test_from_ase_keeps_everything(ethanol: Atoms) -> None:
    state = State.from_ase(ethanol)
    np.testing.assert_array_equal(state.positions, ethanol.positions)
    np.testing.assert_array_equal(state.velocities, ethanol.get_velocities())
    np.testing.assert_array_equal(state.masses, ethanol.get_masses())
    np.testing.assert_array_equal(state.atomic_numbers, ethanol.numbers)
    np.testing.assert_array_equal(state.cell[0], ethanol.cell.array)
    assert state.pbc.tolist() == [[True, False, True]]
    floating = (state.positions, state.velocities, state.masses, state.cell)
    assert all(tensor.dtype == torch.float64 for tensor in floating)


def test_kinetic_energy_and_temperature_are_those_of_ase(ethanol: Atoms) -> None:
    batch = concatenate([State.from_ase(ethanol), hydrogen(), argon_cluster(4)])
    assert batch.kinetic_energy()[0].item() == pytest.approx(ethanol.get_kinetic_energy(), rel=1e-14)
    assert batch.temperature()[0].item() == pytest.approx(ethanol.get_temperature(), rel=1e-14)
    assert batch.kinetic_energy()[1].item() == 0.0


def test_detach_cuts_the_graph_and_keeps_the_numbers() -> None:
    state = hydrogen()
    moving = state.replace(positions=(2.0 * state.positions.clone().requires_grad_()))
    assert moving.positions.requires_grad
    assert not moving.detach().positions.requires_grad
    assert torch.equal(moving.detach().positions, 2.0 * state.positions)


def test_to_moves_all_fields() -> None:
    on_meta = hydrogen().to("meta")
    assert {getattr(on_meta, name).device.type for name in TENSORS} == {"meta"}


def test_fixed_atoms_survive_batching_and_selecting() -> None:
    held = hydrogen().replace(fixed=torch.tensor([True, False]))
    batch = concatenate([hydrogen(), held, argon_cluster(3)])
    assert batch.fixed is not None
    assert batch.fixed.tolist() == [False, False, True, False, False, False, False]
    chosen = batch.select([1]).fixed
    assert chosen is not None
    assert chosen.tolist() == [True, False]
    assert concatenate([hydrogen(), hydrogen()]).fixed is None
    assert torch.isinf(held.inertia()).tolist() == [True, False]
    assert torch.equal(held.kinetic_energy(), hydrogen().kinetic_energy())
