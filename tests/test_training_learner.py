"""What learns: updates, their average, and how they go on from a checkpoint."""

from __future__ import annotations

import torch

from dyntrain.models.egnn import EGNN
from dyntrain.potential import Conservative
from dyntrain.training.learner import Learner


def small() -> Learner:
    torch.manual_seed(0)
    potential = Conservative(EGNN([1, 8], width=8, n_channels=4, n_radial=3))
    return Learner(potential, gradient_clip=1.0, ema=0.9)


def updated(learner: Learner, steps: range) -> Learner:
    for step in steps:
        torch.manual_seed(step)
        for parameter in learner.parameters:
            parameter.grad = torch.randn_like(parameter)
        learner.update(1e-2, step)
    return learner


def weights(learner: Learner) -> list[torch.Tensor]:
    return [*learner.potential.parameters(), *learner.averaged.parameters()]


def test_a_learner_taken_up_again_goes_on_to_the_last_digit() -> None:
    whole = updated(small(), range(6))
    again = small()
    again.load_state_dict(updated(small(), range(3)).state_dict())
    for one, other in zip(weights(whole), weights(updated(again, range(3, 6))), strict=True):
        assert torch.equal(one, other)


def test_the_average_and_the_clip_are_what_they_say() -> None:
    learner = small()
    before = [weight.clone() for weight in learner.averaged.parameters()]
    for parameter in learner.parameters:
        parameter.grad = torch.full_like(parameter, 10.0)
    norm = learner.update(1e-2, 1000)
    n_numbers = sum(parameter.numel() for parameter in learner.parameters)
    torch.testing.assert_close(norm, 10.0 * n_numbers**0.5)
    means = [kept["exp_avg"].flatten() for kept in learner.optimizer.state_dict()["state"].values()]
    torch.testing.assert_close(torch.cat(means).norm(), torch.tensor(0.1))  # of the clipped gradient: 1 − β₁
    now = zip(learner.averaged.parameters(), before, learner.potential.parameters(), strict=True)
    for average, old, weight in now:
        torch.testing.assert_close(average, 0.9 * old + 0.1 * weight)
