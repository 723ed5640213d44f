"""One optimiser step: its gradient under each backprop, bursts, the update, and sums over processes."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dyntrain.data.segments import Batch, Segment, collate
from dyntrain.data.trajectory import Trajectory
from dyntrain.loss import Loss, StepWeights, Term, counts
from dyntrain.models.analytic import Morse
from dyntrain.models.egnn import EGNN
from dyntrain.models.files import set_precision
from dyntrain.neighbors import neighbor_list
from dyntrain.potential import Conservative
from dyntrain.rollout import Adjoint, Backprop, Full, StopGradient, Truncated
from dyntrain.training.learner import Learner
from dyntrain.training.step import loss_and_gradient
from made_runs import morse_trajectory
from training_runs import COMPOSITIONS
from two_ranks import CASES, NoOxygen

LOSS = Loss([Term("forces"), Term("energy", weight=0.5), Term("velocities")], StepWeights(2.0, 1.0))
RUNS = [morse_trajectory(20, numbers=numbers, seed=seed) for seed, numbers in enumerate(COMPOSITIONS)]


def network(kind: type[EGNN] = EGNN) -> Conservative:
    torch.manual_seed(0)
    model = kind([1, 6, 8], cutoff=4.0, width=8, n_channels=4, n_radial=4)
    set_precision(model, "float64")
    return Conservative(model)


def batch(length: int, runs: tuple[int, ...] = (0, 1, 2)) -> Batch:
    return collate([Segment(run, 3, length) for run in runs], RUNS)


def gradient(potential: Conservative, of: Batch, backprop: Backprop, loss: Loss = LOSS) -> Tensor:
    potential.zero_grad(set_to_none=True)
    loss_and_gradient(potential, of, loss, backprop, counts(of.state))
    return torch.cat([p.grad.flatten() for p in potential.parameters() if p.grad is not None])


def test_full_and_adjoint_give_one_gradient_and_the_others_another() -> None:
    potential, segments = network(), batch(4)
    full = gradient(potential, segments, Full())
    norm = float(full.norm())
    torch.testing.assert_close(gradient(potential, segments, Adjoint()), full, rtol=0, atol=1e-12 * norm)
    torch.testing.assert_close(gradient(potential, segments, Truncated(4)), full, rtol=0, atol=1e-12 * norm)
    cut = gradient(potential, segments, StopGradient())
    torch.testing.assert_close(gradient(potential, segments, Truncated(1)), cut, rtol=0, atol=1e-12 * norm)
    halved = gradient(potential, segments, Truncated(2))
    for one, other in ((full, cut), (full, halved), (halved, cut)):
        assert float((one - other).norm()) > 1e-6 * norm


def test_with_single_frames_all_backprops_are_the_same() -> None:
    potential, segments = network(), batch(1)
    gradients = [gradient(potential, segments, b) for b in (Full(), Adjoint(), StopGradient(), Truncated(2))]
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-12, atol=1e-15)


def test_the_true_potential_is_the_zero_of_the_loss() -> None:
    """Whatever else moved the atoms: the run's kicks are applied."""
    run = RUNS[0]
    noise = np.random.default_rng(0).normal(scale=0.01, size=run.velocities.shape)
    thermostatted = run.replace(velocities=run.velocities + noise)
    segments = collate([Segment(0, 3, 6)], [thermostatted])
    assert float(segments.kicks.velocities.abs().max()) > 0.01
    loss = Loss([Term(quantity) for quantity in ("forces", "positions", "velocities")])
    truth, wrong = (Conservative(Morse(depth, 1.5, 1.3, cutoff=9.0)) for depth in (1.0, 1.1))
    found = loss_and_gradient(truth, segments, loss, Full(), counts(segments.state))
    assert (found.n_burst, found.n_frames) == (0, 6)
    assert set(found.parts) == {"forces", "positions", "velocities"}
    assert max(found.parts.values()) < 1e-13
    missed = loss_and_gradient(wrong, segments, loss, Full(), counts(segments.state))
    assert min(missed.parts.values()) > 1e-4


TRUTH = Conservative(Morse(1.0, 1.5, 1.3, cutoff=9.0))


def stressed(run: Trajectory) -> Trajectory:
    """The run with the stress of the potential that made it."""
    states = [run.state(k) for k in range(run.n_frames)]
    tensors = [TRUTH.stress(s, neighbor_list(s, 9.0)).detach().numpy()[0] for s in states]
    return run.replace(stress=np.array(tensors))


@pytest.mark.parametrize("backprop", [Full(), Adjoint(), StopGradient()], ids=repr)
def test_the_stress_teaches_single_frames(backprop: Backprop) -> None:
    loss = Loss([Term("forces"), Term("stress", weight=1e8, kind="l2")])
    runs = [stressed(run) for run in RUNS[:2]]
    single, window = (collate([Segment(r, 3, length) for r in (0, 1)], runs) for length in (1, 2))
    zero = loss_and_gradient(TRUTH, single, loss, backprop, counts(single.state)).parts
    assert zero == pytest.approx({"forces": 0.0, "stress": 0.0}, abs=1e-12)
    assert set(loss_and_gradient(TRUTH, window, loss, backprop, counts(window.state)).parts) == {"forces"}
    potential = network()
    found = gradient(potential, single, backprop, loss)
    weight, values = next(iter(potential.parameters())), []
    for size in (1e-6, -1e-6):
        with torch.no_grad():
            weight.view(-1)[0] += size
        values.append(
            sum(loss_and_gradient(potential, single, loss, backprop, counts(single.state)).parts.values())
        )
        with torch.no_grad():
            weight.view(-1)[0] -= size
    assert float(found[0]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)
    with_forces_only = gradient(potential, single, backprop, Loss([Term("forces")]))
    assert float((found - with_forces_only).norm()) > 1e-3 * float(found.norm())


@pytest.mark.parametrize("backprop", [Full(), Adjoint(), StopGradient(), Truncated(2)], ids=repr)
def test_a_segment_that_bursts_is_counted_and_the_others_are_as_without_it(backprop: Backprop) -> None:
    """Oxygen makes NaN: the gradient is that of the other segments, with their weight in the whole batch."""
    potential, segments, others = network(NoOxygen), batch(3, (1, 0, 2)), batch(3, (1,))
    result = loss_and_gradient(potential, segments, LOSS, backprop, counts(segments.state))
    assert (result.n_burst, result.n_frames) == (2, 3)
    found = [p.grad.clone() for p in potential.parameters() if p.grad is not None]
    assert found and all(bool(torch.isfinite(g).all()) for g in found)
    potential.zero_grad(set_to_none=True)
    alone = loss_and_gradient(potential, others, LOSS, backprop, counts(segments.state))
    expected = [p.grad for p in potential.parameters() if p.grad is not None]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)
    assert result.parts == pytest.approx(alone.parts, rel=1e-12)
    assert (alone.n_burst, alone.n_frames) == (0, 3)


def test_where_all_segments_burst_there_is_no_gradient() -> None:
    potential, segments = network(NoOxygen), batch(3, (0, 2))
    result = loss_and_gradient(potential, segments, LOSS, Full(), counts(segments.state))
    assert (result.parts, result.n_burst, result.n_frames) == ({}, 2, 0)
    assert all(p.grad is None for p in potential.parameters())


# --- the learner ----------------------------------------------------------------------------------------


def with_gradient(learner: Learner, value: float) -> None:
    for parameter in learner.parameters:
        parameter.grad = torch.full_like(parameter, value)


def copy_of(potential: Conservative) -> list[Tensor]:
    return [p.detach().clone() for p in potential.parameters()]


def test_gradients_are_clipped_by_their_common_norm() -> None:
    def norm_that_counted() -> float:
        """From the running means after one step, which are 1 − β₁ times the gradient."""
        means = [kept["exp_avg"].flatten() for kept in learner.optimizer.state_dict()["state"].values()]
        return 10.0 * float(torch.cat(means).norm())

    for value, clipped in ((3.0, 1.0), (None, 0.5)):
        learner = Learner(network(), gradient_clip=1.0, ema=0.0)
        n = sum(p.numel() for p in learner.parameters)
        value = value or 0.5 / math.sqrt(n)
        with_gradient(learner, value)
        assert learner.update(1e-3, 0) == pytest.approx(value * math.sqrt(n))
        assert norm_that_counted() == pytest.approx(clipped)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_touches_nothing(value: float) -> None:
    learner = Learner(network(), gradient_clip=1.0, ema=0.9)
    with_gradient(learner, 0.1)
    learner.update(1e-3, 0)
    before = [*copy_of(learner.potential), *copy_of(learner.averaged)]
    with_gradient(learner, 0.1)
    assert learner.parameters[0].grad is not None
    learner.parameters[0].grad.view(-1)[0] = value
    assert learner.update(1e-3, 1) is None
    after = [*copy_of(learner.potential), *copy_of(learner.averaged)]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_the_average_follows_the_weights_and_forgets_its_start() -> None:
    learner = Learner(network(), gradient_clip=1.0, ema=0.9)
    average = copy_of(learner.averaged)
    for step in range(20):
        with_gradient(learner, 0.01)
        learner.update(1e-2, step)
        decay = min(0.9, (1 + step) / (10 + step))
        average = [
            decay * a + (1 - decay) * w for a, w in zip(average, copy_of(learner.potential), strict=True)
        ]
    for found, expected in zip(copy_of(learner.averaged), average, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not any(p.requires_grad for p in learner.averaged.parameters())
    plain = Learner(network(), gradient_clip=1.0, ema=0.0)
    assert plain.averaged is plain.potential


def test_a_learner_goes_on_from_its_state() -> None:
    one, other = (Learner(network(), gradient_clip=1.0, ema=0.9) for _ in range(2))
    for step in range(3):
        with_gradient(one, 0.1 * (step + 1))
        one.update(1e-3, step)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for learner in (one, other):
        with_gradient(learner, -0.2)
        learner.update(1e-3, 3)
    for a, b in zip(copy_of(one.potential), copy_of(other.potential), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(copy_of(one.averaged), copy_of(other.averaged), strict=True):
        assert torch.equal(a, b)


# --- several processes --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_the_joined_batch(tmp_path: Path) -> None:
    """Two gloo processes, float64; equal to rounding, and a weight without gradient has none there either."""
    script, output = Path(__file__).with_name("two_ranks.py"), tmp_path / "found.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(output)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert set(found) == set(CASES)
    for case, result in found.items():
        assert result["difference"] < 1e-13, case
        assert result["same_weights_without_gradient"], case
        assert result["numbers"] == pytest.approx(result["numbers_joined"], rel=1e-13), case
    assert found["one process has only bursts"]["numbers"][-2:] == [2, 6]
    assert found["all burst"]["n_with_gradient"] == 0
