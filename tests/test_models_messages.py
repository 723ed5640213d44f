"""The default network's messages, compiled or not, against the formula they stand for; second derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dyntrain import kernel
from dyntrain.models import messages as module
from dyntrain.models.messages import Bonds, messages

N_ATOMS, N_PAIRS, N_RADIAL, C = 5, 9, 3, 2


def plain(bonds: Bonds, x: Tensor, basis: Tensor, unit: Tensor, filters: Tensor) -> Tensor:
    """Σ over neighbours of [f₁ a, û · f₃ v, û f₂ b + f₃ v], pair by pair, by autograd."""
    rows = [[torch.zeros_like(x[0])] for _ in range(N_ATOMS)]
    for pair in range(bonds.i.shape[0]):
        for i, j, sign in ((bonds.i[pair], bonds.j[pair], 1.0), (bonds.j[pair], bonds.i[pair], -1.0)):
            f1, f2, f3 = (basis[pair] @ filters).chunk(3)
            a, b, *v = x[j].chunk(5)
            u = sign * unit[pair]
            along = sum(u[k] * f3 * v[k] for k in range(3))
            vectors = [u[k] * f2 * b + f3 * v[k] for k in range(3)]
            rows[int(i)].append(torch.cat([f1 * a, along, *vectors]))
    return torch.stack([torch.stack(row).sum(0) for row in rows])


@pytest.fixture(autouse=True, params=["compiled", "by PyTorch's operations"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "compiled":
        pytest.importorskip("numba")
    monkeypatch.setattr(kernel, "is_of_use", lambda like: request.param == "compiled")


@pytest.fixture
def inputs() -> tuple[Bonds, list[Tensor]]:
    torch.manual_seed(0)
    # An atom with itself (a periodic image), a pair twice, and an atom without neighbours.
    i = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 0])
    j = torch.tensor([0, 1, 2, 2, 3, 3, 3, 1, 3])
    shapes = [(N_ATOMS, 5 * C), (N_PAIRS, N_RADIAL), (N_PAIRS, 3), (N_RADIAL, 3 * C)]
    return Bonds(i, j), [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("block", [1, 4, 100])
def test_values_and_first_and_second_derivatives(
    inputs: tuple[Bonds, list[Tensor]], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAIRS_IN_CACHE", block)
    bonds, tensors = inputs
    weights = [torch.randn_like(tensor) for tensor in tensors]
    out_weight = torch.randn(N_ATOMS, 5 * C, dtype=torch.float64, requires_grad=True)
    found = []
    for function in (messages, plain):
        out = function(bonds, *tensors)
        first = torch.autograd.grad((out * out_weight).sum(), tensors, create_graph=True)
        along = sum((f * w).sum() for f, w in zip(first, weights, strict=True))
        second = torch.autograd.grad(along, [out_weight, *tensors])
        found.append([out, *first, *second])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_a_loss_of_forces_needs_no_gradient_of_the_filters(inputs: tuple[Bonds, list[Tensor]]) -> None:
    bonds, tensors = inputs
    found = []
    for function in (messages, plain):
        out = function(bonds, *tensors)
        forces = torch.autograd.grad(out.pow(2).sum(), tensors[1:3], create_graph=True)
        found.append(torch.autograd.grad(sum(f.pow(3).sum() for f in forces), tensors))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-8)


def test_a_third_derivative_is_refused(inputs: tuple[Bonds, list[Tensor]]) -> None:
    bonds, tensors = inputs
    out = messages(bonds, *tensors)
    first = torch.autograd.grad(out.pow(2).sum(), tensors, create_graph=True)
    second = torch.autograd.grad(first[0].pow(2).sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second[0].pow(2).sum().backward()


def test_no_pairs_no_messages() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    x = torch.randn(4, 5)
    received = messages(Bonds(none, none), x, torch.zeros(0, 3), torch.zeros(0, 3), torch.randn(3, 3))
    assert torch.equal(received, torch.zeros(4, 5))
