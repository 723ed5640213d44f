"""Unroll: of a run whose frames lie far apart the true potential is the zero of the loss, in small steps."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from torch import Tensor

from dyntrain.data.diagnose import diagnose, usable_runs
from dyntrain.data.raw import to_trajectory
from dyntrain.data.segments import Batch, Segment, Segments, collate
from dyntrain.data.small_steps import by_small_steps, with_small_steps
from dyntrain.data.spectrum import check_step, fastest_period_fs
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.loss import Loss, StepWeights, Term, counts
from dyntrain.models.analytic import LennardJones, Morse
from dyntrain.models.egnn import EGNN
from dyntrain.models.files import set_precision
from dyntrain.neighbors import VerletNeighbors
from dyntrain.potential import Conservative, EnergyModel
from dyntrain.rollout import Adjoint, Backprop, BurstGuard, Full, StopGradient, Truncated
from dyntrain.simulate import simulate
from dyntrain.training.step import loss_and_gradient
from dyntrain.units import FS
from dyntrain.unroll import unroll
from made_runs import as_atoms, ase_run, chosen, morse_run, morse_trajectory
from systems import argon_cluster
from training_runs import log_rows
from training_runs import run as train_run
from two_ranks import NoOxygen

N = 8
TRUTH = Conservative(Morse(1.0, 1.5, 1.3, cutoff=9.0))


@functools.cache
def strided(thermostat: str, n: int = N) -> Trajectory:
    """Every n-th frame of a run of half femtoseconds, whose fastest period is 12 fs."""
    raw = chosen(ase_run(thermostat, n_frames=800), slice(None, None, n), dt_fs=0.5 * n, stride=n)
    return with_small_steps(to_trajectory(raw), every_step=False)


def off(potential: Conservative, run: Trajectory, length: int = 6, **changes: Any) -> float:
    """Mean |ΔF| of unrolled frames over the mean |F| of the run."""
    starts = range(0, run.n_frames - length, 7)
    batch = collate([Segment(0, start, length) for start in starts], [run])
    if "friction" in changes:
        from dataclasses import replace

        batch = replace(batch, **changes)
    with torch.no_grad():
        neighbors = VerletNeighbors(potential.cutoff)
        frames = list(unroll(potential, batch, backprop=Full(), neighbors=neighbors, guard=None))
    assert [frame.step for frame in frames] == list(range(length))
    found = torch.stack([frame.prediction.forces for frame in frames])
    return float((found - batch.targets.forces)[1:].abs().mean() / batch.targets.forces.abs().mean())


@pytest.mark.parametrize(
    ("thermostat", "left"), [("nve", 2e-3), ("nose-hoover", 5e-3), ("berendsen", 1e-2), ("csvr", 0.1)]
)
def test_the_true_potential_follows_a_strided_run_and_a_wrong_one_does_not(
    thermostat: str, left: float
) -> None:
    run = strided(thermostat)
    assert run.small_steps == N
    true, wrong = off(TRUTH, run), off(Conservative(Morse(1.1, 1.5, 1.3, cutoff=9.0)), run)
    assert true < left
    assert wrong > 0.15


def test_the_friction_is_needed() -> None:
    run = strided("nose-hoover")
    batch = collate([Segment(0, start, 6) for start in range(0, run.n_frames - 6, 7)], [run])
    assert batch.friction is not None
    without = off(TRUTH, run, friction=torch.zeros_like(batch.friction))
    assert without > 10 * off(TRUTH, run)


def test_one_coarse_step_is_no_way() -> None:
    run = strided("nve", 12)
    with pytest.raises(UserError, match="a step of 6 fs is too long for its fastest motion"):
        check_step([run.replace(small_steps=1)], 1)
    check_step([run], 1)
    assert off(TRUTH, run) < 2e-3
    # With its kicks even these steps follow the run, but whatever is a hair off runs away in them.
    close = Conservative(Morse(1.01, 1.5, 1.3, cutoff=9.0))
    assert off(close, run) < 0.1
    assert off(close, run.replace(small_steps=1)) > 10 * off(close, run)


def test_a_cluster_of_argon() -> None:
    """Every fortieth step of an NVE run, recorded by our own simulation."""
    truth, start, n = Conservative(LennardJones()), argon_cluster(3, seed=1, jiggle=0.2), 40
    frames = [f for f in simulate(truth, start, 10 * FS, 40 * n) if f.step % n == 0]
    run = Trajectory(
        positions=np.stack([f.state.positions.numpy() for f in frames]),
        velocities=np.stack([f.state.velocities.numpy() for f in frames]),
        forces=np.stack([f.prediction.forces.numpy() for f in frames]),
        energies=np.array([float(f.prediction.energy) for f in frames]),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=bool),
        atomic_numbers=start.atomic_numbers.numpy(),
        masses=start.masses.numpy(),
        dt=10 * n * FS,
        stride=n,
    )
    ready = with_small_steps(run, every_step=False)
    assert ready.small_steps == n
    assert off(truth, ready, 4) < 2e-3
    assert off(Conservative(LennardJones(epsilon=0.0114)), ready, 4) > 0.05


def test_where_no_file_tells_n_it_is_a_twentieth_of_the_period() -> None:
    raw = chosen(ase_run("nve", n_frames=800), slice(None, None, N), dt_fs=4.0)
    run = with_small_steps(to_trajectory(raw), every_step=False)
    assert run.small_steps == int(np.ceil(20 * 4.0 / fastest_period_fs(run)))
    assert off(TRUTH, run) < 0.05  # another step than the run's has another error of phase


def test_frames_close_enough_or_all_there_are_left_as_they_are() -> None:
    whole = to_trajectory(ase_run("nve", n_frames=800))
    assert with_small_steps(whole, every_step=False) is whole
    run = strided("nve").replace(small_steps=1)
    assert with_small_steps(run, every_step=True) is run
    rebuilt = run.replace(velocities_origin="rebuilt")
    assert with_small_steps(rebuilt, every_step=False) is rebuilt


@pytest.mark.parametrize("n", [8, 16, 24])
def test_a_period_that_the_frames_do_not_sample_is_not_overlooked(n: int) -> None:
    """At 12 fs between frames the 12 fs vibration seems to stand still."""
    period = fastest_period_fs(strided("nve", n))
    assert period is not None and 10 < period < 21
    assert strided("nve", n).small_steps == n


def test_check_tells_of_the_small_steps() -> None:
    report = diagnose(strided("nose-hoover"))
    assert report.usable and report.stride == N
    (found,) = (f for f in report.findings if f.code == "frames_too_far_apart")
    assert "small steps" in found.message and "Langevin" in found.message


@pytest.mark.parametrize("n", [8, 16])
def test_energies_vouch_for_a_run_that_forces_cannot_explain(n: int) -> None:
    run = strided("nose-hoover", n).replace(small_steps=1)
    assert diagnose(run).usable
    (ready,), _ = usable_runs([run])
    assert ready.small_steps == n
    order = np.random.default_rng(0).permutation(run.n_frames)
    of_other_frames = run.replace(velocities=run.velocities[order])
    assert with_small_steps(of_other_frames, every_step=False).small_steps == 1
    cells = np.diag([30.0, 30, 30]) * np.linspace(1, 1.01, run.n_frames)[:, None, None]
    assert with_small_steps(run.replace(cell=cells), every_step=False).small_steps == 1


# --- gradients ----------------------------------------------------------------------------------------------

LOSS = Loss([Term("forces"), Term("positions", kind="l2"), Term("energy", weight=0.1)], StepWeights(2.0, 1.0))


def network(kind: type[EGNN] = EGNN) -> Conservative:
    torch.manual_seed(0)
    model: EnergyModel = kind([1, 6, 8], cutoff=4.0, width=8, n_channels=4, n_radial=4)
    set_precision(model, "float64")
    return Conservative(model)


def batch(length: int = 3) -> Batch:
    return collate([Segment(0, start, length) for start in (3, 11)], [strided("nose-hoover")])


def gradient(potential: Conservative, backprop: Backprop) -> tuple[Tensor, float]:
    potential.zero_grad(set_to_none=True)
    windows = batch()
    result = loss_and_gradient(potential, windows, LOSS, backprop, counts(windows.state))
    assert (result.n_burst, result.n_frames) == (0, 6)
    return torch.cat([p.grad.flatten() for p in potential.parameters() if p.grad is not None]), sum(
        result.parts.values()
    )


def test_full_is_the_finite_difference_and_adjoint_the_same() -> None:
    potential = network()
    full, _ = gradient(potential, Full())
    weight, values = next(iter(potential.parameters())), []
    for size in (1e-6, -1e-6):
        with torch.no_grad():
            weight.view(-1)[0] += size
        values.append(gradient(potential, Full())[1])
        with torch.no_grad():
            weight.view(-1)[0] -= size
    assert float(full[0]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)
    norm = float(full.norm())
    for same in (Adjoint(), Truncated(3)):
        torch.testing.assert_close(gradient(potential, same)[0], full, rtol=0, atol=1e-11 * norm)
    for other in (StopGradient(), Truncated(1)):
        assert float((gradient(potential, other)[0] - full).norm()) > 1e-6 * norm


def test_a_system_that_bursts_is_left_out() -> None:
    oxygen_free = morse_trajectory(40, numbers=(6, 1, 6, 1), seed=1).slice(0, 30)
    runs = [strided("nve"), oxygen_free.replace(small_steps=N)]
    windows = collate([Segment(0, 3, 3), Segment(1, 3, 3)], runs)
    result = loss_and_gradient(network(NoOxygen), windows, LOSS, Full(), counts(windows.state))
    assert (result.n_burst, result.n_frames) == (1, 3)
    neighbors = VerletNeighbors(4.0)
    frames = unroll(network(NoOxygen), windows, backprop=Adjoint(), neighbors=neighbors, guard=BurstGuard())
    assert [frame.systems.tolist() for frame in frames] == [[1], [1], [1]]


# --- training -----------------------------------------------------------------------------------------------


def test_windows_are_grouped_by_their_small_steps() -> None:
    runs = [strided("nve"), morse_trajectory(20)]
    windows = Segments(np.array([1, 0, 1]), np.array([2, 3, 4]), 3)
    groups = by_small_steps(windows, runs)
    assert [group.runs.tolist() for group in groups] == [[1, 1], [0]]
    assert len(by_small_steps(windows.shortened(1), runs)) == 1
    assert by_small_steps(windows[:0], runs) == []
    with pytest.raises(ValueError, match=r"windows of \[1, 8\] small steps a frame cannot share a batch"):
        collate(windows, runs)
    collate(windows.shortened(1), runs)


def test_strided_and_other_runs_train_together(tmp_path: Path) -> None:
    raw = chosen(ase_run("nve", n_frames=800), slice(None, None, N), dt_fs=4.0)
    ase.io.write(tmp_path / "strided.traj", as_atoms(raw))
    ase.io.write(tmp_path / "other.traj", as_atoms(morse_run(n_frames=40)))
    data = [str(tmp_path / name) for name in ("strided.traj", "other.traj")]
    train_run(data, tmp_path / "out", validation={"n_starts": 4, "n_steps": 3})
    assert {row["segment_length"] for row in log_rows(tmp_path / "out")} == {"1", "3"}
