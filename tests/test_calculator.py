"""The ASE calculator: ASE's own finite differences, and structures that change between calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

import dyntrain
from dyntrain.calculator import Calculator
from dyntrain.errors import UserError
from dyntrain.models.analytic import Harmonic, LennardJones, Morse
from dyntrain.models.files import build_model, save_model
from dyntrain.potential import Conservative
from dyntrain.simulate import simulate
from dyntrain.state import State
from dyntrain.units import FS

LJ = Conservative(LennardJones(cutoff=6.0))


def argon(**cell: object) -> Atoms:
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    atoms.rattle(0.1, seed=0)
    return atoms


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    network = build_model("egnn", elements=[1, 6, 8], width=8, n_channels=4).double()
    save_model(Conservative(network), path)
    return path


@pytest.mark.parametrize("atoms", [molecule("CH3CH2OH"), molecule("H2O", cell=[3.1] * 3, pbc=True)])
def test_forces_of_a_model_file_are_ases_finite_differences(model: Path, atoms: Atoms) -> None:
    atoms.calc = dyntrain.Calculator(model)
    atoms.rattle(0.05, seed=1)
    numerical = calculate_numerical_forces(atoms, eps=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), numerical, atol=1e-6)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()


def test_forces_in_a_cell_smaller_than_the_cutoff() -> None:
    atoms = argon()
    atoms.calc = Calculator(LJ)
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), atol=1e-8)


def test_agrees_with_ases_own_lennard_jones() -> None:
    # Inside the cutoff's smoothing both are the same pair energy; compare one dimer, undone by hand.
    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 3.7]])
    atoms.calc = Calculator(LJ)
    smooth = (1 - (3.7 / 6.0) ** 2) ** 4
    plain = AseLennardJones(epsilon=0.0104, sigma=3.40, rc=100.0)
    assert atoms.get_potential_energy() == pytest.approx(plain.get_potential_energy(atoms) * smooth, rel=1e-6)


def test_the_stress_is_ases_finite_difference(model: Path) -> None:
    crystal = argon()
    crystal.calc = Calculator(LJ)
    water = molecule("H2O", cell=[[3.1, 0, 0], [0.4, 3.0, 0], [0, 0.2, 3.3]], pbc=True)
    water.calc = Calculator(model)
    for atoms in (crystal, water):
        numerical = calculate_numerical_stress(atoms, eps=1e-5)
        assert np.abs(numerical).max() > 5e-5
        np.testing.assert_allclose(atoms.get_stress(), numerical, atol=1e-8)
    water.pbc = [True, True, False]
    with pytest.raises(UserError, match="not periodic in all directions"):
        water.get_stress()


def test_a_crystal_relaxes_to_its_equilibrium_volume() -> None:
    atoms = bulk("Ar", "fcc", a=5.5)
    atoms.calc = Calculator(LJ)
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=100)
    assert np.abs(atoms.get_stress()).max() < 1e-5


def test_is_right_whatever_changes_between_calls() -> None:
    calculator = Calculator(LJ, skin=0.5)
    atoms = argon()
    atoms.calc = calculator

    def agrees() -> None:
        fresh = atoms.copy()
        fresh.calc = Calculator(LJ, skin=0.0)
        assert atoms.get_potential_energy() == fresh.get_potential_energy()
        assert np.array_equal(atoms.get_forces(), fresh.get_forces())

    agrees()
    atoms.positions[0] += 0.05  # within the skin
    agrees()
    atoms.positions[1] += 1.5  # beyond it
    agrees()
    atoms.set_cell(atoms.cell * 1.02)  # cell alone
    agrees()
    atoms.wrap()
    agrees()
    atoms.pbc = [True, False, True]
    agrees()
    del atoms[0]
    agrees()
    other = molecule("CH3CH2OH")
    other.calc = calculator  # another structure on the same calculator
    fresh = other.copy()
    fresh.calc = Calculator(LJ)
    assert other.get_potential_energy() == fresh.get_potential_energy()


def test_is_right_after_a_structure_that_was_refused(model: Path) -> None:
    atoms = molecule("H2O")
    atoms.calc = Calculator(model)
    before = atoms.get_potential_energy()
    atoms.numbers[0] = 79
    for _ in range(2):
        with pytest.raises(UserError, match="Au"):
            atoms.get_forces()
        atoms.positions[0] += 0.01
    atoms.numbers[0] = 8
    atoms.positions[0] -= 0.02
    assert atoms.get_potential_energy() == pytest.approx(before, abs=1e-5)


def test_numbers_matter_to_a_model_that_knows_elements(model: Path) -> None:
    atoms = molecule("H2O")
    atoms.calc = Calculator(model)
    before = atoms.get_potential_energy()
    atoms.numbers[0] = 6
    assert atoms.get_potential_energy() != before


def test_the_neighbour_list_is_kept_between_calls() -> None:
    atoms = argon()
    atoms.calc = Calculator(LJ, skin=1.0)
    for _ in range(5):
        atoms.positions[0] += 0.05
        atoms.get_forces()
    assert atoms.calc.neighbors.n_rebuilds == 1
    atoms.positions[0] += 0.6
    atoms.get_forces()
    assert atoms.calc.neighbors.n_rebuilds == 2


def test_ases_dynamics_is_ours() -> None:
    atoms = Atoms("OH2", [[0, 0, 0], [0, 0, 0.8], [0, 0.75, 0.1]])
    atoms.calc = Calculator(Conservative(Morse()))
    start = State.from_ase(atoms)
    VelocityVerlet(atoms, 0.5 * units.fs).run(100)
    *_, last = simulate(Conservative(Morse()), start, 0.5 * FS, 100)
    np.testing.assert_allclose(atoms.positions, last.state.positions, rtol=0, atol=1e-10)


def test_ases_optimiser_finds_the_minimum() -> None:
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.9]])
    atoms.calc = Calculator(Conservative(Harmonic(d0=0.74)))
    BFGS(atoms, logfile=None).run(fmax=1e-5)
    assert atoms.get_distance(0, 1) == pytest.approx(0.74, abs=1e-5)


def test_an_unknown_element_and_a_missing_file_are_refused(model: Path, tmp_path: Path) -> None:
    atoms = molecule("NH3")
    atoms.calc = Calculator(model)
    with pytest.raises(UserError, match="holds N, but the model knows only H, C, O"):
        atoms.get_potential_energy()
    with pytest.raises(UserError, match="there is no model file"):
        Calculator(tmp_path / "none.pt")


def test_arguments_that_cannot_be_are_refused(model: Path) -> None:
    with pytest.raises(TypeError, match="precison"):
        Calculator(model, precison="float64")  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"got Linear; .* dyntrain\.potential_from"):
        Calculator(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="there is no device 'gpu' here"):
        Calculator(model, "gpu")


def test_numbers_that_are_not_finite_are_no_result(model: Path) -> None:
    atoms = molecule("H2O")
    atoms.positions[1] = atoms.positions[0]
    atoms.calc = Calculator(model)
    with pytest.raises(UserError, match="not finite for this structure: look for atoms on top of each other"):
        atoms.get_forces()


@pytest.mark.parametrize("calculator", ["model", "analytic"])
def test_a_structure_without_atoms_is_refused(calculator: str, model: Path) -> None:
    atoms = Atoms(cell=[5.0] * 3, pbc=True)
    atoms.calc = Calculator(model if calculator == "model" else LJ)
    with pytest.raises(UserError, match="the structure has no atoms"):
        atoms.get_potential_energy()
