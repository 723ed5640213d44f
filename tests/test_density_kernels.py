"""Compiled pair densities against PyTorch's, with derivatives up to second order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dyntrain import kernel
from dyntrain.models.egnn import EGNN
from dyntrain.models.pair_basis import degree_two

pytest.importorskip("numba")
from dyntrain.models.density_kernels import densities

N_RADIAL = 3
COLUMNS = torch.tensor([0, 1, 1, 0, 2])
# An atom with itself (a periodic image), a pair twice, and an atom without neighbours.
ENDS = torch.tensor([0, 0, 0, 1, 1, 2, 0]), torch.tensor([0, 1, 2, 2, 3, 3, 1])


@pytest.fixture
def inputs() -> list[Tensor]:
    """û, not of unit length, so that every term counts, and the basis."""
    torch.manual_seed(0)
    return [torch.randn(len(ENDS[0]), n, dtype=torch.float64, requires_grad=True) for n in (3, N_RADIAL)]


def plain(unit: Tensor, basis: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    network = EGNN([1, 6, 8], n_radial=N_RADIAL)
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "is_of_use", lambda like: False)
        return network._densities(COLUMNS, *ENDS, basis, unit, degree_two())


def test_values_and_first_and_second_derivatives(
    inputs: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = [torch.randn_like(tensor) for tensor in inputs]
    out_weight = torch.randn(len(COLUMNS), 9, 3 * N_RADIAL, dtype=torch.float64, requires_grad=True)
    found = []
    for out in (densities(*inputs, *ENDS, COLUMNS, 3), plain(*inputs, monkeypatch)):
        first = torch.autograd.grad((out * out_weight).sum(), inputs, create_graph=True)
        along = sum((f * w).sum() for f, w in zip(first, weights, strict=True))
        second = torch.autograd.grad(along, [out_weight, *inputs])
        found.append([out, *first, *second])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_a_third_derivative_is_refused(inputs: list[Tensor]) -> None:
    out = densities(*inputs, *ENDS, COLUMNS, 3)
    first = torch.autograd.grad(out.pow(2).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(first[0].pow(2).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second[0].pow(2).sum().backward()


def test_no_pairs_no_densities() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    found = densities(torch.zeros(0, 3), torch.zeros(0, N_RADIAL), none, none, COLUMNS, 3)
    assert torch.equal(found, torch.zeros(len(COLUMNS), 9, 3 * N_RADIAL))
