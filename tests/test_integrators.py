"""Velocity Verlet: second order, reversible, no drift; recorded kicks reproduce any run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from dyntrain.integrators import Kicks, VelocityVerlet
from dyntrain.models.analytic import Harmonic, LennardJones, Morse
from dyntrain.neighbors import neighbor_list
from dyntrain.potential import Conservative, Potential
from dyntrain.rollout import Frame, StopGradient, rollout
from dyntrain.state import State, concatenate
from dyntrain.units import FS
from systems import argon_cluster, argon_crystal, hydrogen


def run(
    potential: Potential, state: State, dt: float | Tensor, n_steps: int, kicks: Kicks | None = None
) -> list[Frame]:
    with torch.no_grad():
        return list(
            rollout(potential, state, VelocityVerlet(dt), n_steps, backprop=StopGradient(), kicks=kicks)
        )


def measured_order(errors: list[float], n_steps: list[int]) -> float:
    """−d log(error)/d log(n_steps), by least squares."""
    slope, _ = np.polyfit(np.log(n_steps), np.log(errors), 1)
    return -float(slope)


def test_one_step_is_the_textbook_one() -> None:
    integrator = VelocityVerlet(0.5)
    state = State.from_arrays([[1.0, 2, 3]], [6], [4.0], velocities=[[0.1, 0.2, 0.3]])
    old = torch.tensor([[8.0, 0, -8]], dtype=torch.float64)
    new = torch.tensor([[4.0, 4, 0]], dtype=torch.float64)
    moved = integrator.drift(state, old)
    # x + v/2 + ½ (F/4)/4;  v + ½ (F + F')/4 /2
    np.testing.assert_allclose(moved.positions, [[1.3, 2.1, 2.9]], rtol=1e-15)
    np.testing.assert_array_equal(moved.velocities, state.velocities)
    finished = integrator.finish(moved, old, new)
    np.testing.assert_allclose(finished.velocities, [[0.85, 0.45, -0.2]], rtol=1e-15)
    np.testing.assert_array_equal(finished.positions, moved.positions)


def test_it_is_of_second_order_on_the_harmonic_oscillator() -> None:
    """Against the exact solution d(t) = d0 + A cos(ωt)."""
    k, d0, amplitude, duration = 20.0, 1.0, 0.1, 1.6
    state = hydrogen(d0 + amplitude)
    omega = math.sqrt(k / (1.008 / 2.0))
    exact = d0 + amplitude * math.cos(omega * duration)
    exact_speed = -amplitude * omega * math.sin(omega * duration)
    n_steps, errors, speed_errors = [100, 200, 400, 800], [], []
    for n in n_steps:
        last = run(Conservative(Harmonic(k, d0)), state, duration / n, n)[-1].state
        bond = last.positions[1] - last.positions[0]
        speed = (last.velocities[1] - last.velocities[0]) @ bond / bond.norm()
        errors.append(abs(float(bond.norm()) - exact))
        speed_errors.append(abs(float(speed) - exact_speed))
    assert measured_order(errors, n_steps) == pytest.approx(2.0, abs=0.01)
    assert measured_order(speed_errors, n_steps) == pytest.approx(2.0, abs=0.01)


def test_it_is_of_second_order_on_the_morse_oscillator() -> None:
    """Against an eighth-order integration by scipy."""
    depth, a, d0, duration = 4.7, 1.9, 0.74, 1.5

    def motion(_: float, y: np.ndarray) -> list[float]:
        rise = math.exp(-a * (y[0] - d0))
        return [y[1], -2.0 * depth * a * (1.0 - rise) * rise / (1.008 / 2.0)]

    solved = solve_ivp(motion, (0.0, duration), [0.9, 0.0], method="DOP853", rtol=1e-13, atol=1e-14)
    n_steps, errors = [100, 200, 400, 800], []
    for n in n_steps:
        last = run(Conservative(Morse(depth, a, d0)), hydrogen(0.9), duration / n, n)[-1].state
        distance = float((last.positions[1] - last.positions[0]).norm())
        errors.append(abs(distance - solved.y[0, -1]))
    assert measured_order(errors, n_steps) == pytest.approx(2.0, abs=0.01)


def test_it_is_reversible() -> None:
    potential, start = Conservative(LennardJones()), argon_cluster(8)
    there = run(potential, start, 2.0 * FS, 200)[-1].state
    assert float((there.positions - start.positions).abs().max()) > 0.1
    back = run(potential, there.replace(velocities=-there.velocities), 2.0 * FS, 200)[-1].state
    torch.testing.assert_close(back.positions, start.positions, rtol=0, atol=1e-12)
    torch.testing.assert_close(back.velocities, -start.velocities, rtol=0, atol=1e-12)


def total_energies(frames: list[Frame]) -> np.ndarray:
    return np.array([float(f.prediction.energy + f.state.kinetic_energy()) for f in frames])


@pytest.mark.parametrize(
    ("model", "start", "dt", "n_steps"),
    [
        (LennardJones(), argon_crystal(), 10.0 * FS, 1200),
        (Morse(), hydrogen(0.9), 0.3 * FS, 800),
    ],
    ids=["Lennard-Jones", "Morse"],
)
def test_the_energy_does_not_drift(
    model: LennardJones | Morse, start: State, dt: float, n_steps: int
) -> None:
    """The error stays in a band, whose width goes with dt², and its middle does not move."""
    width = []
    for refinement in (1, 2):
        frames = run(Conservative(model), start, dt / refinement, n_steps)
        error = total_energies(frames) - total_energies(frames[:1])
        early, late = np.array_split(error, 2)
        width.append(np.ptp(early))
        assert np.ptp(late) < 1.5 * width[-1]
        assert abs(late.mean() - early.mean()) < 0.1 * width[-1]
    kinetic = float(max(f.state.kinetic_energy() for f in frames))
    assert width[0] < 0.05 * kinetic
    assert width[0] / width[1] == pytest.approx(4.0, rel=0.15)


def test_momentum_is_conserved_with_unequal_masses() -> None:
    start = argon_cluster(8)
    start = start.replace(masses=torch.linspace(4.0, 132.0, 8, dtype=torch.float64))
    last = run(Conservative(LennardJones()), start, 2.0 * FS, 200)[-1].state

    def momentum(state: State) -> Tensor:
        return (state.masses[:, None] * state.velocities).sum(0)

    assert float(momentum(start).abs().max()) > 0.1
    torch.testing.assert_close(momentum(last), momentum(start), rtol=0, atol=1e-12)


def test_a_time_step_for_each_system() -> None:
    parts = [argon_cluster(5), argon_crystal(), argon_cluster(3, seed=1)]
    steps = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64) * FS
    potential = Conservative(LennardJones())
    last = run(potential, concatenate(parts), steps, 20)[-1].state
    for number, part in enumerate(parts):
        alone = run(potential, part, float(steps[number]), 20)[-1].state
        together = last.select([number])
        torch.testing.assert_close(together.positions, alone.positions, rtol=0, atol=1e-12)
        torch.testing.assert_close(together.velocities, alone.velocities, rtol=0, atol=1e-12)
    assert VelocityVerlet(steps).select(torch.tensor([0, 2])).dt.tolist() == steps[[0, 2]].tolist()
    one_for_all = VelocityVerlet(FS)
    assert one_for_all.select(torch.tensor([1])) is one_for_all


@pytest.mark.parametrize("dt", [0.0, -1.0, math.nan, torch.tensor([1.0, 0.0])])
def test_a_time_step_that_is_not_positive_is_refused(dt: float | Tensor) -> None:
    with pytest.raises(ValueError, match="the time step must be positive, got"):
        VelocityVerlet(dt)


# --- kicks --------------------------------------------------------------------------------------------


def recording(frames: list[Frame]) -> tuple[Tensor, Tensor]:
    return (
        torch.stack([f.state.positions for f in frames]),
        torch.stack([f.state.velocities for f in frames]),
    )


def test_the_kicks_of_an_nve_run_are_rounding() -> None:
    start = argon_cluster(8)
    frames = run(Conservative(LennardJones()), start, 2.0 * FS, 50)
    forces = torch.stack([f.prediction.forces for f in frames])
    kicks = VelocityVerlet(2.0 * FS).record_kicks(*recording(frames), forces, start)
    assert kicks.n_steps == 50
    assert float(kicks.positions.abs().max()) < 1e-14
    assert float(kicks.velocities.abs().max()) < 1e-16


@pytest.mark.parametrize("dt", [2.0 * FS, torch.tensor([2.0, 5.0], dtype=torch.float64) * FS])
def test_kicks_make_another_potential_follow_a_thermostatted_run(dt: float | Tensor) -> None:
    """Whatever moved the atoms, and whatever forces are recorded with it."""
    batch = concatenate([argon_cluster(8), argon_crystal()])
    thermostatted = run(Conservative(LennardJones()), batch, dt, 50)
    positions, velocities = recording(thermostatted)
    random = np.random.default_rng(0)
    velocities = velocities + torch.from_numpy(random.normal(scale=0.01, size=velocities.shape))
    other = Conservative(LennardJones(epsilon=0.02, sigma=3.2, cutoff=7.0))
    with torch.no_grad():
        forces = torch.stack(
            [
                other(at, neighbor_list(at, other.cutoff)).forces
                for at in (batch.replace(positions=r) for r in positions)
            ]
        )
    kicks = VelocityVerlet(dt).record_kicks(positions, velocities, forces, batch)
    assert float(kicks.velocities.abs().max()) > 0.01
    start = batch.replace(positions=positions[0], velocities=velocities[0])
    followed = recording(run(other, start, dt, 50, kicks))
    torch.testing.assert_close(followed[0], positions, rtol=0, atol=1e-12)
    torch.testing.assert_close(followed[1], velocities, rtol=0, atol=1e-12)
