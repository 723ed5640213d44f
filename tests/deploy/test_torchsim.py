"""TorchSim moves a batch with our potential as our own loop does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

ts = pytest.importorskip("torch_sim", reason="needs `pip install torch-sim-atomistic`")

from engines import ARGON, apart, argon  # noqa: E402
from torch_sim.models.interface import validate_model_outputs  # noqa: E402

from dyntrain.adapters.torchsim import TorchSimModel, sim_state_of, state_of  # noqa: E402
from dyntrain.calculator import Calculator  # noqa: E402
from dyntrain.simulate import simulate  # noqa: E402
from dyntrain.state import State, concatenate  # noqa: E402
from dyntrain.units import FS  # noqa: E402


def batch() -> State:
    return concatenate([State.from_ase(argon()), State.from_ase(argon()[:20])])


def test_states_go_there_and_back() -> None:
    there = sim_state_of(batch())
    np.testing.assert_allclose(there.cell[0].T, argon().cell.array)
    back = state_of(there)
    for name in ("positions", "masses", "atomic_numbers", "system_idx", "cell", "pbc"):
        assert torch.equal(getattr(back, name), getattr(batch(), name)), name
    molecule = batch().replace(pbc=torch.tensor([[False] * 3, [True] * 3]))
    with pytest.raises(ValueError, match="periodic in all directions, or in none"):
        sim_state_of(molecule)


def test_it_is_a_model_by_torchsims_own_check() -> None:
    validate_model_outputs(TorchSimModel(ARGON), torch.device("cpu"), torch.float64)


def test_energies_forces_and_stresses_are_the_calculators() -> None:
    found = TorchSimModel(ARGON, compute_stress=True)(sim_state_of(batch()))
    atoms = argon()
    atoms.calc = Calculator(ARGON)
    assert float(found["energy"][0]) == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
    np.testing.assert_allclose(found["forces"][:27], atoms.get_forces(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["stress"][0], atoms.get_stress(voigt=False), rtol=0, atol=1e-12)


def test_nve_follows_our_own_step_by_step() -> None:
    """TorchSim's velocity Verlet (metal units) from the same momenta."""
    from torch_sim.integrators.nve import nve

    start, dt = batch(), torch.tensor(2 * FS, dtype=torch.float64)
    init, step = nve(model=TorchSimModel(ARGON), dt=dt, kT=torch.tensor(0.0))
    theirs = init(sim_state_of(start), seed=0)
    theirs.momenta = start.masses[:, None] * start.velocities
    for frame in simulate(ARGON, start, dt, 40):
        for atoms in (slice(27), slice(27, None)):  # TorchSim wraps
            ours = frame.state.positions[atoms].numpy()
            assert apart(theirs.positions[atoms].numpy(), ours, argon().cell.array) < 1e-9
        theirs = step(theirs)
