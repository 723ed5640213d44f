"""Compiled directions and radial basis of pairs against the plain ones, up to second derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dyntrain.models.pair_basis import RadialBasis

pytest.importorskip("numba")
from dyntrain.models.egnn_kernels import unit_and_basis

CUTOFF, N_RADIAL, FACTOR = 5.0, 4, 0.3


def compiled(vectors: Tensor) -> tuple[Tensor, Tensor]:
    return unit_and_basis(vectors, N_RADIAL, CUTOFF, FACTOR)


@pytest.fixture
def vectors() -> Tensor:
    """Of lengths up to the cutoff, [n_pairs, 3] Å."""
    torch.manual_seed(0)
    found = torch.nn.functional.normalize(torch.randn(6, 3, dtype=torch.float64))
    return (found * torch.linspace(0.7, CUTOFF, 6, dtype=torch.float64)[:, None]).requires_grad_()


def test_values_are_the_plain_ones(vectors: Tensor) -> None:
    distances = vectors.norm(dim=-1)
    expected = vectors / distances[:, None], FACTOR * RadialBasis(N_RADIAL, CUTOFF)(distances)
    for ours, plain in zip(compiled(vectors), expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-14)


def test_derivatives_are_those_of_finite_differences(vectors: Tensor) -> None:
    torch.autograd.gradcheck(compiled, vectors)
    torch.autograd.gradgradcheck(compiled, vectors)


def test_a_third_derivative_is_refused(vectors: Tensor) -> None:
    (first,) = torch.autograd.grad(compiled(vectors)[1].pow(2).sum(), vectors, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), vectors, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.pow(2).sum().backward()
