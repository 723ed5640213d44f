"""Free molecular dynamics: physics of the motion, bursts that are told, trajectories that read back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from dyntrain.errors import UserError
from dyntrain.models.analytic import Harmonic, LennardJones, Morse
from dyntrain.neighbors import NeighborList, VerletNeighbors
from dyntrain.potential import Conservative, Potential, Prediction
from dyntrain.rollout import BurstGuard
from dyntrain.simulate import (
    TrajectoryWriter,
    check_start,
    draw_velocities,
    frame_to_ase,
    internal_temperature,
    simulate,
)
from dyntrain.state import State, concatenate
from dyntrain.units import FS, KB


def dimer(distance: float = 1.1, speed: float = 0.0) -> State:
    return State.from_arrays(
        [[0, 0, 0], [0, 0, distance]], [1, 1], [1.0, 1.0], velocities=[[0, 0, -speed], [0, 0, speed]]
    )


def h2o(**cell: object) -> State:
    atoms = molecule("H2O", **cell)
    atoms.set_velocities(np.random.default_rng(0).normal(size=(3, 3)) * 0.03)
    return State.from_ase(atoms)


# --- motion -------------------------------------------------------------------------------------------


def test_a_harmonic_dimer_swings_with_its_period() -> None:
    k, reduced_mass, stretch = 20.0, 0.5, 0.1
    period = 2 * np.pi * np.sqrt(reduced_mass / k)
    n_steps = 400
    frames = simulate(Conservative(Harmonic(k=k, d0=1.0)), dimer(1.0 + stretch), period / 200, n_steps)
    distances = [float((f.state.positions[1] - f.state.positions[0]).norm()) for f in frames]
    expected = 1.0 + stretch * np.cos(2 * np.pi * np.arange(n_steps + 1) / 200)
    np.testing.assert_allclose(distances, expected, atol=2e-4)


def test_energy_error_is_of_second_order_in_the_step() -> None:
    def swing(dt_fs: float) -> float:
        frames = simulate(Conservative(Morse()), dimer(0.9), dt_fs * FS, round(100 / dt_fs))
        energies = [float(f.prediction.energy[0] + f.state.kinetic_energy()[0]) for f in frames]
        return float(np.ptp(energies))

    assert swing(0.2) / swing(0.1) == pytest.approx(4.0, rel=0.05)


def test_strided_frames_are_those_of_the_full_run_without_any_graph() -> None:
    potential, start = Conservative(Morse()), concatenate([dimer(0.8), dimer(0.9, 0.02)])
    full = list(simulate(potential, start, 0.5 * FS, 25))
    strided = list(simulate(potential, start, 0.5 * FS, 25, every=10))
    assert [f.step for f in strided] == [0, 10, 20, 25]
    for frame in strided:
        assert torch.equal(frame.state.positions, full[frame.step].state.positions)
        assert torch.equal(frame.prediction.forces, full[frame.step].prediction.forces)
        assert not frame.prediction.forces.requires_grad
    with torch.enable_grad():
        for _ in simulate(potential, start, 0.5 * FS, 2):
            assert torch.is_grad_enabled()  # ours to be without gradient, not the caller's


def test_the_skin_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    positions = 3.8 * np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3)
    start = State.from_arrays(
        positions,
        np.full(27, 18),
        np.full(27, 39.9),
        velocities=rng.normal(size=(27, 3)) * 0.01,
        cell=np.eye(3) * 11.4,
        pbc=[True] * 3,
    )
    potential = Conservative(LennardJones(cutoff=5.0))
    ends = []
    for skin in (0.0, 2.0):
        neighbors = VerletNeighbors(potential.cutoff, skin)
        *_, last = simulate(potential, start, 5 * FS, 100, every=100, neighbors=neighbors)
        ends.append(last.state.positions)
    assert torch.equal(*ends)


# --- bursts -------------------------------------------------------------------------------------------


class BreaksAt(Potential):
    """No forces, until an atom of a system has gone beyond x = 1 Å: then what it is told."""

    cutoff = 1.0

    def __init__(self, then: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        super().__init__()
        self.then = then

    def forward(self, state: State, neighbors: NeighborList) -> Prediction:
        energy = torch.zeros(state.n_systems, dtype=torch.float64)
        forces = torch.zeros_like(state.positions)
        for atom in (state.positions[:, 0] > 1.0).nonzero().squeeze(1).tolist():
            self.then(energy[state.system_idx[atom]], forces[atom])
        return Prediction(energy, forces)


def two_walkers() -> State:
    """System 0 stands; in system 1 atom 1 walks 0.3 Å a step (dt = 1) and passes 1 Å at step 4."""
    lone = State.from_arrays([[0, 0, 0]], [1], [1.0])
    pair = State.from_arrays(
        [[-5.0, 0, 0], [0, 0, 0]], [1, 8], [1.0, 16.0], velocities=[[0, 0, 0], [0.3, 0, 0]]
    )
    return concatenate([lone, pair])


@pytest.mark.parametrize(
    ("then", "step", "atom", "words"),
    [
        (lambda e, f: f.fill_(torch.nan), 3, 1, r"force on atom 1 \(O\) is not finite"),
        (lambda e, f: e.fill_(torch.inf), 3, None, "energy is not finite"),
        (lambda e, f: e.fill_(60.0), 3, None, "differ from the start's by 30 eV per atom"),
        (lambda e, f: f.fill_(100.0), 4, 1, r"atom 1 \(O\) would move .* in one step"),
    ],
)
def test_a_burst_is_told_and_the_others_go_on(
    then: Callable[[torch.Tensor, torch.Tensor], None], step: int, atom: int | None, words: str
) -> None:
    run = simulate(BreaksAt(then), two_walkers(), 1.0, 8)
    frames = list(run)
    assert [f.systems.tolist() for f in frames] == [[0, 1]] * (step + 1) + [[0]] * (8 - step)
    (burst,) = run.bursts
    assert (burst.system, burst.step, burst.atom) == (1, step, atom)
    assert re.search(words, burst.reason), burst.reason


def test_the_last_sound_frame_is_kept_when_all_burst() -> None:
    run = simulate(BreaksAt(lambda e, f: f.fill_(torch.nan)), two_walkers().select([1]), 1.0, 8, every=100)
    assert [f.step for f in run] == [0, 3]
    assert run.n_steps_done == 3


def test_a_start_that_is_not_sound_is_told() -> None:
    start = two_walkers().select([1])
    start = start.replace(positions=start.positions + 2.0)
    run = simulate(BreaksAt(lambda e, f: f.fill_(torch.nan)), start, 1.0, 8)
    assert list(run) == []
    assert (run.bursts[0].step, run.bursts[0].atom) == (-1, 1)


def test_the_guard_can_be_chosen() -> None:
    tight = simulate(Conservative(Harmonic()), dimer(1.0, speed=0.5), 0.5, 8, guard=BurstGuard(max_step=0.1))
    list(tight)
    assert "more than 0.1 Å" in tight.bursts[0].reason


# --- temperature --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("atoms", "n_free"),
    [(molecule("CH3CH2OH"), 21), (molecule("CO2"), 4), (bulk("Ar", "fcc", a=5.3, cubic=True), 9)],
)
def test_drawn_velocities_have_the_temperature_in_what_can_move(atoms: Atoms, n_free: int) -> None:
    still = State.from_ase(atoms)
    moving = draw_velocities(still, 300.0, seed=0)
    assert internal_temperature(moving) == pytest.approx(300.0)
    assert float(moving.kinetic_energy()[0]) == pytest.approx(0.5 * n_free * KB * 300.0)
    momentum = (moving.masses[:, None] * moving.velocities).sum(0)
    torch.testing.assert_close(momentum, torch.zeros(3, dtype=torch.float64))
    # Moving and turning as a whole adds no temperature.
    whirl = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64).expand_as(still.positions)
    rigid = torch.tensor([1.0, 2.0, 3.0]) + 0.0 * whirl
    if not atoms.pbc.any():
        rigid = rigid + torch.linalg.cross(whirl, still.positions)
    whirled = moving.replace(velocities=moving.velocities + rigid)
    assert internal_temperature(whirled) == pytest.approx(300.0)


def test_drawn_velocities_repeat_with_their_seed() -> None:
    still = h2o()
    one, same, other = (draw_velocities(still, 300.0, seed=seed).velocities for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert not draw_velocities(still, 0.0, seed=0).velocities.any()
    atom = draw_velocities(State.from_arrays([[0, 0, 0]], [18], [39.9]), 300.0, seed=0)
    assert internal_temperature(atom) == float(atom.temperature()[0]) > 0


def test_drawn_velocities_are_those_of_maxwell_and_boltzmann() -> None:
    many = State.from_ase(bulk("NaCl", "rocksalt", a=5.6, cubic=True).repeat(8))
    velocities = draw_velocities(many, 500.0, seed=3).velocities
    for number, mass in ((11, 22.98976928), (17, 35.45)):
        of_element = velocities[many.atomic_numbers == number]
        assert float(of_element.var()) == pytest.approx(KB * 500.0 / mass, rel=0.03)


# --- start checks -------------------------------------------------------------------------------------


def test_a_sound_start_passes_with_its_numbers() -> None:
    found = check_start(h2o(), "water.xyz")
    assert found.closest_distance == pytest.approx(0.9686, abs=1e-3)
    assert found.closest_pair == "atom 0 (O) and atom 1 (H)"
    assert found.temperature == pytest.approx(internal_temperature(h2o()))


def test_unsound_starts_are_refused() -> None:
    start = h2o()
    near = start.positions.clone()
    near[1] = near[0] + torch.tensor([0.0, 0.0, 0.3])
    with pytest.raises(UserError, match=r"a\.xyz: atom 0 \(O\) and atom 1 \(H\) are only 0\.300 Å apart"):
        check_start(start.replace(positions=near), "a.xyz")
    with pytest.raises(UserError, match=r"velocities of atom 0 \(O\) are not finite"):
        check_start(start.replace(velocities=start.velocities * torch.nan), "a.xyz")
    with pytest.raises(UserError, match="probably in other units"):
        check_start(start.replace(velocities=start.velocities * 100), "a.xyz")


def test_atoms_on_top_of_each_other_through_the_boundary_are_found() -> None:
    across = State.from_arrays(
        [[0.1, 2, 2], [5.9, 2, 2]], [6, 6], [12.0, 12.0], cell=np.eye(3) * 6, pbc=[True] * 3
    )
    with pytest.raises(UserError, match=r"only 0\.200 Å apart"):
        check_start(across, "cell.xyz")


# --- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "tolerance"), [(".traj", 0.0), (".xyz", 1e-8), (".extxyz", 1e-8)])
def test_written_frames_read_back(tmp_path: Path, suffix: str, tolerance: float) -> None:
    start = h2o(cell=[5.0, 6.0, 7.0], pbc=[True, False, True])
    start = start.replace(masses=start.masses * torch.tensor([1.0, 2.0, 1.0]))  # one deuterium
    frames = list(simulate(Conservative(Harmonic(cutoff=3.0)), start, 0.5 * FS, 3))
    path = tmp_path / f"run{suffix}"
    with TrajectoryWriter(path) as writer:
        for frame in frames:
            writer.write(frame_to_ase(frame, 0.5 * FS))
            assert not path.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]
    format = "traj" if suffix == ".traj" else "extxyz"
    for frame, atoms in zip(frames, ase.io.read(path, ":", format=format), strict=True):
        np.testing.assert_allclose(atoms.positions, frame.state.positions, rtol=0, atol=tolerance)
        np.testing.assert_allclose(atoms.get_velocities(), frame.state.velocities, rtol=1e-14, atol=tolerance)
        np.testing.assert_allclose(atoms.get_forces(), frame.prediction.forces, rtol=0, atol=tolerance)
        assert atoms.get_potential_energy() == float(frame.prediction.energy[0])
        assert atoms.info["time_fs"] == pytest.approx(0.5 * frame.step)
        np.testing.assert_allclose(atoms.get_masses(), start.masses)
        assert atoms.pbc.tolist() == [True, False, True]


def test_a_crash_leaves_the_old_file_and_the_partial_one(tmp_path: Path) -> None:
    path = tmp_path / "run.xyz"
    path.write_text("old")
    frame = next(iter(simulate(Conservative(Harmonic()), dimer(), FS, 1)))
    with pytest.raises(RuntimeError), TrajectoryWriter(path) as writer:
        writer.write(frame_to_ase(frame, FS))
        raise RuntimeError
    assert path.read_text() == "old"
    assert len(ase.io.read(tmp_path / "run.xyz.partial", format="extxyz")) == 2


def test_a_system_that_has_burst_cannot_be_written() -> None:
    *_, last = simulate(BreaksAt(lambda e, f: f.fill_(torch.nan)), two_walkers(), 1.0, 8)
    assert len(frame_to_ase(last, 1.0, system=0)) == 1
    with pytest.raises(ValueError, match="system 1 is not in frame 8"):
        frame_to_ase(last, 1.0, system=1)


@pytest.mark.parametrize(
    ("name", "words"), [("run.dcd", "ends otherwise"), ("no/run.traj", "cannot be written")]
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        TrajectoryWriter(tmp_path / name)
