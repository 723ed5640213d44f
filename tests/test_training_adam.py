"""Adam, compiled or not: PyTorch's steps, also from its checkpoints; no step where there is no gradient."""

from __future__ import annotations

import math

import pytest
import torch

from dyntrain import kernel
from dyntrain.training.adam import Adam, Averages, CompiledAdam, TorchAdam, adam_for

Weights = list[torch.nn.Parameter]


@pytest.fixture(autouse=True, params=[CompiledAdam, TorchAdam])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Adam]:
    if request.param is CompiledAdam:
        pytest.importorskip("numba")
    monkeypatch.setattr(kernel, "is_of_use", lambda like: request.param is CompiledAdam)
    assert type(adam_for(weights())) is request.param
    return request.param


def weights() -> Weights:
    """Of two types, one transposed in memory, one a single number."""
    random = torch.Generator().manual_seed(0)
    shapes = [(5, 3), (4,), (2, 3, 2), (1,)]
    made = [torch.randn(shape, generator=random) for shape in shapes]
    made += [torch.randn(3, 6, generator=random).T, torch.randn(7, generator=random, dtype=torch.float64)]
    return [torch.nn.Parameter(tensor) for tensor in made]


def set_gradients(of: Weights, step: int, without: tuple[int, ...] = ()) -> None:
    random = torch.Generator().manual_seed(100 + step)
    for number, weight in enumerate(of):
        gradient = torch.randn(weight.shape, generator=random, dtype=torch.float64).to(weight.dtype)
        weight.grad = None if number in without else gradient


def without_gradient(step: int) -> tuple[int, ...]:
    """The fourth weight at first and the first later: their numbers of steps differ from the others'."""
    return (3,) if step < 2 else (0,) if step == 4 else ()


def steps_of_torch(of: Weights, optimizer: torch.optim.Adam, steps: range, largest_norm: float) -> None:
    for step in steps:
        set_gradients(of, step, without_gradient(step))
        torch.nn.utils.clip_grad_norm_(of, largest_norm)
        optimizer.step()


@torch.no_grad()
def steps_of_ours(of: Weights, optimizer: Adam, steps: range, largest_norm: float) -> None:
    for step in steps:
        set_gradients(of, step, without_gradient(step))
        optimizer.step(1e-2, largest_norm)


@pytest.mark.parametrize("largest_norm", [0.5, 1e6])
def test_the_steps_are_those_of_torch(largest_norm: float) -> None:
    one, other = weights(), weights()
    steps_of_torch(one, torch.optim.Adam(one, lr=1e-2), range(6), largest_norm)
    steps_of_ours(other, adam_for(other), range(6), largest_norm)
    for expected, found in zip(one, other, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)


def test_a_checkpoint_of_torch_goes_on() -> None:
    """As versions of dyntrain wrote it that took their steps by ``torch.optim.Adam``."""
    one, other = weights(), weights()
    theirs = torch.optim.Adam(one, lr=1e-2)
    steps_of_torch(one, theirs, range(3), math.inf)
    with torch.no_grad():
        for weight, trained in zip(other, one, strict=True):
            weight.copy_(trained)
    ours = adam_for(other)
    ours.load_state_dict(theirs.state_dict())
    steps_of_torch(one, theirs, range(3, 6), math.inf)
    steps_of_ours(other, ours, range(3, 6), math.inf)
    for expected, found in zip(one, other, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("ours_first", [True, False])
def test_either_form_goes_on_from_the_other(ours_first: bool) -> None:
    pytest.importorskip("numba")
    forms = (CompiledAdam, TorchAdam) if ours_first else (TorchAdam, CompiledAdam)
    whole, parts = weights(), weights()
    steps_of_ours(whole, CompiledAdam(whole), range(6), 1.0)
    first, second = (form(parts) for form in forms)
    steps_of_ours(parts, first, range(3), 1.0)
    second.load_state_dict(first.state_dict())
    steps_of_ours(parts, second, range(3, 6), 1.0)
    for expected, found in zip(whole, parts, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)


def test_averages_follow_their_weights_wherever_these_lie() -> None:
    of = [weight.detach() for weight in weights()[:4]] + [torch.ones(3, dtype=torch.float64)]
    averages = [torch.zeros_like(weight) for weight in of]
    following = Averages(averages, of)
    following.approach(0.25)
    following.approach(0.5)
    for average, weight in zip(averages, of, strict=True):
        torch.testing.assert_close(average, 0.625 * weight)
        weight.data, average.data = torch.full_like(weight, 8.0), torch.zeros_like(weight)  # other memory
    following.approach(0.25)
    assert all(bool((average == 2.0).all()) for average in averages)


def test_a_weight_that_never_had_a_gradient_stays_and_has_no_state() -> None:
    of = weights()
    before, optimizer = of[3].detach().clone(), adam_for(of)
    steps_of_ours(of, optimizer, range(2), 1.0)
    assert torch.equal(of[3], before)
    kept = optimizer.state_dict()["state"]
    assert sorted(kept) == [0, 1, 2, 4, 5]
    again = adam_for(weights())
    again.load_state_dict({"state": kept})
    assert sorted(again.state_dict()["state"]) == [0, 1, 2, 4, 5]


def test_what_is_loaded_takes_the_place_of_what_was() -> None:
    of = weights()
    optimizer = adam_for(of)
    steps_of_ours(of, optimizer, range(3), 1.0)
    optimizer.load_state_dict({"state": {}})
    assert optimizer.state_dict() == {"state": {}}


def test_no_gradient_and_a_gradient_that_is_not_finite_move_nothing() -> None:
    of = weights()
    optimizer = adam_for(of)
    before = [weight.detach().clone() for weight in of]
    optimizer.zero_grad()
    with torch.no_grad():
        assert optimizer.step(1e-2, 1.0) == 0.0
        for bad in (math.nan, math.inf):
            set_gradients(of, 0)
            assert of[0].grad is not None
            of[0].grad[0, 0] = bad
            assert not math.isfinite(optimizer.step(1e-2, 1.0))
    assert all(torch.equal(a, b) for a, b in zip(of, before, strict=True))
    assert optimizer.state_dict() == {"state": {}}
