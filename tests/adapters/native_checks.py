"""What adapters do beside ``check_potential``: be their package's calculator, go out and come back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from dyntrain.data.readers import read_trajectories
from dyntrain.data.segments import Segment, collate
from dyntrain.loss import Loss, StepWeights, Term, counts
from dyntrain.models.family import FamilyModel
from dyntrain.models.files import build_model, load_model, save_model, set_precision
from dyntrain.neighbors import neighbor_list
from dyntrain.potential import Conservative, Prediction
from dyntrain.rollout import Adjoint
from dyntrain.state import State, concatenate
from dyntrain.training.step import loss_and_gradient

ELEMENTS = [1, 6, 8, 12, 29]
"""Those of the structures below."""

EXACT = 1e-10
FLOAT32_ENERGY, FLOAT32_FORCES = 1e-6, 1e-5
"""Relative; forces: to the largest of the structure."""


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return atoms


def water() -> Atoms:
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=2)
    return atoms


def magnesium_oxide() -> Atoms:
    atoms = bulk("MgO", "rocksalt", a=4.2)
    atoms.rattle(0.05, seed=2)
    return atoms


def copper() -> Atoms:
    """One atom in a cell smaller than any cutoff: all neighbours are its own images."""
    return bulk("Cu", a=3.7)


def write_labelled_molecules(path: Path) -> None:
    """Eight rattled molecules with energies and forces (of EMT), as packages' own commands read them."""
    random = np.random.default_rng(0)
    frames = []
    for number in range(8):
        atoms = molecule("CH3CH2OH" if number % 2 else "H2O")
        atoms.positions += random.normal(scale=0.05, size=atoms.positions.shape)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        # MACE's own keys, which cannot be mistaken for results of ASE's.
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = energy, forces.copy()
        frames.append(atoms)
    ase.io.write(path, frames)


def run_command(name: str, *arguments: str, folder: Path) -> None:
    """A command of a package in this environment, in a folder of its own."""
    command = [str(Path(sys.executable).with_name(name)), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def structures() -> list[Atoms]:
    return [ethanol(), magnesium_oxide(), copper()]


def slab(shared_data: Path) -> Atoms:
    """57 atoms: H2 on Pd6 on graphene, periodic in the plane or in all directions, as recorded."""
    return ase.io.read(shared_data / "data/h2pd6gra/h2pd6gra_000.traj", 10)


def in_a_box(atoms: Atoms) -> Atoms:
    """For a calculator that needs a cell: images farther away than any cutoff."""
    boxed = atoms.copy()
    if not boxed.pbc.any():
        boxed.center(vacuum=4.0)
        boxed.pbc = True
    return boxed


def predict(model: FamilyModel, state: State) -> Prediction:
    with torch.no_grad():
        return Conservative(model)(state, neighbor_list(state, model.cutoff))


def assert_is_calculator(
    model: FamilyModel,
    calculator: Calculator,
    atoms: Sequence[Atoms],
    energy_tolerance: float,
    force_tolerance: float,
    prepare: Callable[[Atoms], Atoms] = Atoms.copy,
) -> None:
    """Energies and forces of each structure alone and of all in one batch are the calculator's.

    Args:
        prepare: what the structure has to go through before the calculator accepts it.
    """
    states = [State.from_ase(a) for a in atoms]
    batch = concatenate(states)
    together = predict(model, batch)
    for number, (structure, state) in enumerate(zip(atoms, states, strict=True)):
        native = prepare(structure)
        native.calc = calculator
        energy, forces = float(native.get_potential_energy()), native.get_forces()
        largest = max(float(np.abs(forces).max()), 1e-2)
        alone = predict(model, state)
        in_batch = Prediction(
            together.energy[number : number + 1], together.forces[batch.system_idx == number]
        )
        for found in (alone, in_batch):
            name = structure.get_chemical_formula()
            error = abs(float(found.energy) - energy) / abs(energy)
            assert error < energy_tolerance, f"{name}: energy off by {error:.1e}"
            error = float(np.abs(found.forces.numpy() - forces).max()) / largest
            assert error < force_tolerance, f"{name}: forces off by {error:.1e}"


def train_two_steps(model: FamilyModel, atoms: Atoms) -> None:
    """Two steps of Adam on some loss of the forces, so that no weight is as it was made."""
    state = State.from_ase(atoms)
    neighbors = neighbor_list(state, model.cutoff)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        prediction = Conservative(model)(state, neighbors)
        (prediction.forces.square().mean() + 1e-3 * prediction.energy.sum()).backward()
        optimizer.step()


def assert_round_trip(
    model: FamilyModel,
    native: Path,
    energy_tolerance: float,
    force_tolerance: float,
    prepare: Callable[[Atoms], Atoms] = Atoms.copy,
) -> None:
    """Trained, it comes back from our model file, from its native file, and as its own calculator.

    Args:
        native: where to export to.
    """
    before = predict(model, State.from_ase(ethanol()))
    train_two_steps(model, ethanol())
    model.shift_energies(torch.linspace(-1.0, 1.0, len(model.elements), dtype=torch.float64))
    trained = predict(model, State.from_ase(ethanol()))
    assert float((trained.forces - before.forces).abs().max()) > 1e-4
    ours = native.with_name("model.pt")
    save_model(Conservative(model), ours)
    again = load_model(ours).energy_model
    assert torch.equal(predict(again, State.from_ase(ethanol())).forces, trained.forces)
    model.export(native)
    precision = str(next(model.parameters()).dtype).removeprefix("torch.")
    calculator = type(model).native_calculator(native, "cpu", precision)
    assert_is_calculator(model, calculator, structures(), energy_tolerance, force_tolerance, prepare)
    back = type(model).from_file(native).eval()
    set_precision(back, precision)
    found = predict(back, State.from_ase(ethanol()))
    torch.testing.assert_close(found.energy, trained.energy, rtol=energy_tolerance, atol=0)
    json.dumps(back.config)
    # What the native file gives can be kept as ours, too.
    build_model(back.family, **back.config)


def assert_starts_at_the_scale_of_its_data(model: FamilyModel) -> None:
    """Atoms out of reach have their elements' energies; the rest is multiplied by the scale of the forces."""
    shifts = torch.linspace(-30.0, -10.0, len(model.elements), dtype=torch.float64)
    model.set_statistics(shifts, 1.0, 12.0)
    one = predict(model, State.from_ase(ethanol()))
    model.set_statistics(shifts, 3.0, 12.0)
    three = predict(model, State.from_ase(ethanol()))
    torch.testing.assert_close(three.forces, 3.0 * one.forces, rtol=1e-4, atol=1e-6)
    model.shift_energies(torch.ones_like(shifts))
    shifted = predict(model, State.from_ase(ethanol()))
    torch.testing.assert_close(shifted.energy, three.energy + 9.0, rtol=1e-6, atol=0)


def losses_of_fine_tuning(model: FamilyModel, shared_data: Path, lr: float) -> list[float]:
    """Losses of five updates through roll-outs of three steps, on the recorded ethanol, energies aligned."""
    path = next((shared_data / "data/ethanol_nvt_dft").glob("*.extxyz"))
    (run,) = read_trajectories([str(path)])
    model.train()
    potential = Conservative(model)
    batch = collate([Segment(0, 100, 4)], [run])
    gap = float(run.energies[100]) - float(predict(model, batch.state).energy)
    composition = torch.tensor([float((run.atomic_numbers == z).sum()) for z in model.elements])
    # The smallest shifts that close the gap, as a least-squares fit gives them.
    model.shift_energies(gap * composition.double() / composition.double().square().sum())
    assert abs(float(run.energies[100]) - float(predict(model, batch.state).energy)) < 1e-3
    loss = Loss([Term("forces"), Term("energy", weight=0.1)], StepWeights(1.0, 1.0))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        result = loss_and_gradient(potential, batch, loss, Adjoint(), counts(batch.state))
        losses.append(sum(result.parts.values()))
        optimizer.step()
    return losses
