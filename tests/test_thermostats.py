"""Thermostats: right ensembles, conserved energies, the textbook's steps, the same numbers in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.md.nose_hoover_chain import NoseHooverChainNVT
from scipy import stats

from dyntrain.integrators import VelocityVerlet
from dyntrain.models.analytic import LennardJones
from dyntrain.neighbors import NeighborList
from dyntrain.potential import Conservative, Potential, Prediction
from dyntrain.rollout import Full, rollout
from dyntrain.simulate import degrees_of_freedom, draw_velocities, simulate, without_rigid_motion
from dyntrain.state import State, concatenate
from dyntrain.thermostats import CSVR, Langevin, NoseHooverChain, Thermostat, Thermostatted
from dyntrain.units import FS, KB
from systems import argon_cluster, argon_crystal

ARGON = Conservative(LennardJones(epsilon=0.0104, sigma=3.4, cutoff=8.0))
# The seeds are fixed, so a test passes always or never. With other seeds a sound thermostat would fall below
# this probability once in a hundred thousand.
UNLIKELY = 1e-5


class Nothing(Potential):
    """No forces: an ideal gas."""

    cutoff = 1.0

    def forward(self, state: State, neighbors: NeighborList) -> Prediction:
        return Prediction(
            torch.zeros(state.n_systems, dtype=torch.float64), torch.zeros_like(state.positions)
        )


def gas(n_systems: int, n_atoms: int, temperature: float) -> State:
    """Atoms far apart, all systems at the same kinetic energy (far from canonical)."""
    start = State.from_arrays(
        [[4.0 * n, 0.1 * n * n, 0] for n in range(n_atoms)], [18] * n_atoms, np.linspace(10, 60, n_atoms)
    )
    return concatenate([draw_velocities(start, temperature, seed) for seed in range(n_systems)])


def thermostats(state: State, temperature: float, time_constant: float) -> dict[str, Thermostat]:
    seeds = list(range(state.n_systems))
    n_free = torch.tensor(
        [degrees_of_freedom(state.select([n])) for n in range(state.n_systems)], dtype=torch.float64
    )
    return {
        "langevin": Langevin(temperature, time_constant, seeds),
        "csvr": CSVR(temperature, time_constant, seeds, n_free),
        "nose-hoover": NoseHooverChain(temperature, time_constant, n_free),
    }


ALL = ("langevin", "csvr", "nose-hoover")

# --- the ensemble -------------------------------------------------------------------------------------


def test_langevin_makes_any_gas_maxwells() -> None:
    """Exact for any step: after 6 time constants all components are normal, and forget as exp(−t/τ)."""
    start = gas(300, 3, 900.0)
    bath = Langevin(300.0, 10 * FS, list(range(300)))
    frames = list(simulate(Nothing(), start, 5 * FS, 14, thermostat=bath))
    reduced = [f.state.velocities * torch.sqrt(f.state.masses / (KB * 300.0))[:, None] for f in frames[-3:]]
    assert stats.kstest(reduced[-1].flatten().numpy(), "norm").pvalue > UNLIKELY
    for later, expected in ((1, np.exp(-0.5)), (2, np.exp(-1.0))):
        product = (reduced[0] * reduced[later]).flatten().numpy()
        error = product.std() / np.sqrt(product.size)
        assert abs(product.mean() - expected) < stats.norm.isf(UNLIKELY / 2) * error


@pytest.mark.parametrize("n_atoms", [2, 3, 5])
def test_velocity_rescaling_makes_the_kinetic_energy_canonical(n_atoms: int) -> None:
    """Exact for any step: a gamma distribution, from a start in which all systems have the same energy.

    Two atoms have 1 internal degree of freedom (of 6), three atoms 3, five atoms 9.
    """
    start = gas(400, n_atoms, 900.0)
    n_free = degrees_of_freedom(start.select([0]))
    bath = CSVR(300.0, 10 * FS, list(range(400)), torch.full((400,), float(n_free)))
    *_, last = simulate(Nothing(), start, 5 * FS, 12, every=12, thermostat=bath)
    reduced = last.state.kinetic_energy().numpy() / (KB * 300.0)
    assert stats.kstest(reduced, "gamma", (0.5 * n_free,)).pvalue > UNLIKELY


def test_velocity_rescaling_relaxes_as_bussi_says() -> None:
    """The mean kinetic energy goes to its target as exp(−t/τ)."""
    start = gas(600, 3, 900.0)
    bath = CSVR(300.0, 20 * FS, list(range(600)), torch.full((600,), 3.0))
    frames = list(simulate(Nothing(), start, 5 * FS, 6, thermostat=bath))
    for frame in frames[1:]:
        kinetic = frame.state.kinetic_energy().numpy() / (0.5 * 3 * KB * 300.0)
        expected = 1.0 + 2.0 * np.exp(-frame.step * 5 / 20)
        error = kinetic.std() / np.sqrt(kinetic.size)
        assert abs(kinetic.mean() - expected) < stats.norm.isf(UNLIKELY / 2) * error


def test_temperatures_are_each_systems_own() -> None:
    start = concatenate([gas(1, 40, 300.0)] * 3)
    targets = torch.tensor([100.0, 300.0, 900.0], dtype=torch.float64)
    n_free = torch.full((3,), 117.0)
    for bath in (Langevin(targets, 10 * FS, [0, 1, 2]), CSVR(targets, 10 * FS, [0, 1, 2], n_free)):
        run = simulate(Nothing(), start, 5 * FS, 200, thermostat=bath)
        mean = np.mean([f.state.temperature().numpy() for f in run][40:], axis=0)
        np.testing.assert_allclose(mean, targets, rtol=0.08)


# --- the step -----------------------------------------------------------------------------------------


def test_the_chain_is_that_of_ase() -> None:
    """Step by step, with as many degrees of freedom as ASE counts (3N)."""
    start = argon_cluster(8)
    bath = NoseHooverChain(150.0, 40 * FS, torch.tensor([24.0]))
    frames = simulate(ARGON, start, 2 * FS, 60, thermostat=bath)
    from ase import Atoms

    from dyntrain.calculator import Calculator

    atoms = Atoms("Ar8", start.positions.numpy())
    atoms.set_masses(start.masses.numpy())
    atoms.set_velocities(start.velocities.numpy())
    atoms.calc = Calculator(ARGON)
    theirs = NoseHooverChainNVT(atoms, 2 * FS, temperature_K=150.0, tdamp=40 * FS, tchain=3, tloop=1)
    for frame in frames:
        np.testing.assert_allclose(atoms.positions, frame.state.positions, rtol=0, atol=1e-11)
        np.testing.assert_allclose(atoms.get_velocities(), frame.state.velocities, rtol=0, atol=1e-11)
        theirs.run(1)


def test_the_chain_is_reversible() -> None:
    """Velocities of atoms and chain turned round, a run goes back to its start."""
    start = concatenate([argon_cluster(6), argon_cluster(9, seed=1)])
    bath = thermostats(start, 200.0, 50 * FS)["nose-hoover"]
    there = simulate(ARGON, start, 4 * FS, 80, thermostat=bath)
    *_, end = there
    variables = there.state().variables
    assert variables is not None
    turned = torch.cat([variables[:, :3], -variables[:, 3:]], dim=1)
    back = Thermostatted(VelocityVerlet(4 * FS), bath, variables=turned)
    with torch.no_grad():
        *_, home = rollout(
            ARGON, end.state.replace(velocities=-end.state.velocities), back, 80, backprop=Full()
        )
    np.testing.assert_allclose(home.state.positions, start.positions, rtol=0, atol=1e-9)
    np.testing.assert_allclose(home.state.velocities, -start.velocities, rtol=0, atol=1e-10)
    np.testing.assert_allclose(back.variables, torch.zeros_like(turned), rtol=0, atol=1e-9)


@pytest.mark.parametrize("which", ALL)
def test_the_conserved_energy_is_conserved_to_second_order(which: str) -> None:
    """Its deviation over the same time falls fourfold when the step is halved; the energy's own does not."""
    start = concatenate([argon_cluster(6, seed=seed, speed=0.015) for seed in range(12)])
    start = concatenate([without_rigid_motion(start.select([n])) for n in range(12)])

    def deviation(dt_fs: float) -> tuple[float, float]:
        bath = thermostats(start, 120.0, 200 * FS)[which]
        run = simulate(ARGON, start, dt_fs * FS, round(400 / dt_fs), thermostat=bath)
        conserved, plain = [], []
        for frame in run:
            conserved.append(run.conserved_energy().numpy())
            plain.append((frame.prediction.energy + frame.state.kinetic_energy()).numpy())
        return tuple(float(np.sqrt(np.mean(np.std(e, axis=0) ** 2))) for e in (conserved, plain))  # type: ignore

    (coarse, moved), (fine, _) = deviation(8.0), deviation(4.0)
    assert coarse / fine == pytest.approx(4.0, rel=0.25)
    assert coarse < 0.05 * moved


# --- the same in any batch ----------------------------------------------------------------------------


@pytest.mark.parametrize("which", ALL)
def test_a_system_does_the_same_alone(which: str) -> None:
    start = concatenate([argon_cluster(4), argon_crystal(2), argon_cluster(7, seed=2)])
    start = concatenate([without_rigid_motion(start.select([n])) for n in range(3)])
    targets = torch.tensor([50.0, 100.0, 200.0], dtype=torch.float64)
    n_free = torch.tensor([degrees_of_freedom(start.select([n])) for n in range(3)], dtype=torch.float64)

    def bath(systems: list[int]) -> Thermostat:
        made: dict[str, Thermostat] = {
            "langevin": Langevin(targets[systems], 50 * FS, [7 + s for s in systems]),
            "csvr": CSVR(targets[systems], 50 * FS, [7 + s for s in systems], n_free[systems]),
            "nose-hoover": NoseHooverChain(targets[systems], 50 * FS, n_free[systems]),
        }
        return made[which]

    *_, together = simulate(ARGON, start, 2 * FS, 20, every=20, thermostat=bath([0, 1, 2]))
    for n in range(3):
        *_, alone = simulate(ARGON, start.select([n]), 2 * FS, 20, every=20, thermostat=bath([n]))
        one = together.state.select([n])
        np.testing.assert_allclose(one.positions, alone.state.positions, rtol=0, atol=1e-11)
        np.testing.assert_allclose(one.velocities, alone.state.velocities, rtol=0, atol=1e-11)


@pytest.mark.parametrize("which", ALL)
def test_a_run_that_goes_on_comes_to_the_same_numbers(which: str) -> None:
    """Cut at any step and gone on with, also over one at which a system bursts."""
    calm = concatenate([argon_cluster(5, seed=1), argon_cluster(6, seed=2)])
    hot = argon_cluster(4).replace(velocities=4.0 * argon_cluster(4).velocities)
    collides = hot.replace(velocities=-0.35 * hot.positions)  # all atoms towards the corner
    start = concatenate([calm.select([0]), collides, calm.select([1])])
    bath = thermostats(start, 100.0, 5000 * FS)[which]
    whole = list(simulate(ARGON, start, 2 * FS, 60, thermostat=bath))
    lost = next(frame.step for frame in whole if frame.systems.numel() == 2)
    assert 5 < lost < 55
    for cut in (1, lost - 1, lost, lost + 1, 50):
        first = simulate(ARGON, start, 2 * FS, cut, thermostat=bath)
        list(first)
        second = simulate(ARGON, start, 2 * FS, 60, thermostat=bath, resumed=first.state())
        rest = list(second)
        assert [frame.step for frame in rest] == list(range(cut + 1, 61))
        for one, other in zip(whole[cut + 1 :], rest, strict=True):
            assert torch.equal(one.state.positions, other.state.positions)
            assert torch.equal(one.state.velocities, other.state.velocities)
            assert torch.equal(one.systems, other.systems)
        assert [(b.system, b.step) for b in second.bursts] == [(1, lost - 1)]


@pytest.mark.parametrize("which", ALL)
def test_fixed_atoms_stay(which: str) -> None:
    start = argon_cluster(6)
    fixed = torch.tensor([True, True, False, False, False, False])
    start = start.replace(fixed=fixed, velocities=torch.where(fixed[:, None], 0.0, start.velocities))
    *_, last = simulate(ARGON, start, 2 * FS, 30, thermostat=thermostats(start, 100.0, 20 * FS)[which])
    assert torch.equal(last.state.positions[:2], start.positions[:2])
    assert not last.state.velocities[:2].any()
    assert (last.state.positions[2:] != start.positions[2:]).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Langevin(0.0, FS, [0]), "positive temperature"),
        (lambda: Langevin(300.0, -FS, [0]), "positive time constant"),
        (lambda: CSVR(300.0, FS, [0], torch.zeros(1)), "positive number of degrees of freedom"),
    ],
)
def test_what_is_no_thermostat_is_refused(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]


def test_rest_cannot_be_rescaled() -> None:
    start = gas(1, 3, 0.0)
    with pytest.raises(ValueError, match="at rest"):
        list(simulate(Nothing(), start, FS, 1, thermostat=CSVR(300.0, FS, [0], torch.tensor([3.0]))))
