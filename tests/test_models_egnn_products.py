"""Products of an atom's vectors and tensors: compiled and without autograd against the plain form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dyntrain import kernel
from dyntrain.models.egnn_products import Products, first_products, second_products
from dyntrain.models.pair_basis import degree_two

N_ATOMS = 5


def inputs(n_channels: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """zy, vw and tu."""
    torch.manual_seed(0)
    shapes = (N_ATOMS, 6 * n_channels), (N_ATOMS, 3, 2 * n_channels), (N_ATOMS, 5, 2 * n_channels)
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def first(zy: Tensor, vw: Tensor, tu: Tensor) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "is_of_use", lambda like: False)
        return first_products(degree_two().to(vw), vw, tu)


def second(zy: Tensor, vw: Tensor, tu: Tensor) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "is_of_use", lambda like: False)
        return second_products(degree_two().to(vw), zy, vw, tu)


def compiled(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    pytest.importorskip("numba")
    from dyntrain.models import egnn_product_kernels as module

    return (lambda zy, vw, tu: module.first_products(vw, tu)) if plain is first else module.second_products


def derivatives(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Values, gradients of a sum of theirs, and gradients of a sum of these."""
    torch.manual_seed(1)
    out = function(*tensors)
    out_weight = torch.randn(out.shape, dtype=torch.float64).to(out).requires_grad_()
    used = tensors[1:] if function is first else tensors
    used = [
        x
        for x in used
        if torch.autograd.grad(out.sum(), x, retain_graph=True, allow_unused=True)[0] is not None
    ]
    gradients = torch.autograd.grad((out * out_weight).sum(), used, create_graph=True)
    along = sum((g * torch.randn(g.shape, dtype=torch.float64).to(g)).sum() for g in gradients)
    assert isinstance(along, Tensor)
    return [out, *gradients, *torch.autograd.grad(along, [out_weight, *used])]


@pytest.mark.parametrize("plain", [first, second])
@pytest.mark.parametrize(("n_channels", "dtype"), [(3, torch.float64), (16, torch.float32)], ids=str)
def test_values_and_first_and_second_derivatives(
    plain: Callable[..., Tensor], n_channels: int, dtype: torch.dtype
) -> None:
    tensors = inputs(n_channels, dtype)
    limit = 1e-12 if dtype == torch.float64 else 3e-5
    for ours, expected in zip(
        derivatives(compiled(plain), tensors), derivatives(plain, tensors), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=limit, atol=limit)


@pytest.mark.parametrize("plain", [first, second])
def test_derivatives_are_those_of_finite_differences(plain: Callable[..., Tensor]) -> None:
    tensors, function = inputs(3), compiled(plain)
    torch.autograd.gradcheck(function, tensors)
    torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("plain", [first, second])
def test_a_third_derivative_is_refused(plain: Callable[..., Tensor]) -> None:
    tensors = inputs(3)
    (gradient,) = torch.autograd.grad(compiled(plain)(*tensors).pow(2).sum(), tensors[1], create_graph=True)
    (again,) = torch.autograd.grad(gradient.pow(2).sum(), tensors[1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        again.pow(2).sum().backward()


def test_without_autograd() -> None:
    zy, vw, tu = tensors = inputs(3)
    outs = first(*tensors), second(*tensors)
    bars = [torch.randn_like(out) for out in outs]
    expected = torch.autograd.grad(sum((o * b).sum() for o, b in zip(outs, bars, strict=True)), tensors)
    with torch.inference_mode():
        products = Products(degree_two())
        found = products.first(vw.detach(), tu.detach()), products.second(zy.detach())
        gradients = products.second_adjoint(bars[1]), *products.first_adjoint(bars[0])
    for ours, plain in zip(found, outs, strict=True):
        torch.testing.assert_close(ours, plain.detach())
    for ours, plain in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("plain", [first, second])
def test_products_turn_with_the_atoms(plain: Callable[..., Tensor]) -> None:
    """Invariants stay as they are when vectors and tensors are turned; v + Tw turns."""
    c, (zy, vw, tu) = 3, [x.detach() for x in inputs(3)]
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    table = degree_two()
    matrices = torch.einsum("xi,yj,nijc->nxyc", turn, turn, (table @ tu).unflatten(1, (3, 3)))
    turned = (
        torch.einsum("xi,nkic->nkxc", turn, zy.view(-1, 2, 3, c)).flatten(1),
        turn @ vw,
        # The table's columns are orthogonal, all of one length.
        table.T @ matrices.flatten(1, 2) / (table[:, 0] ** 2).sum(),
    )
    before, after = plain(zy, vw, tu), plain(*turned)
    invariants = slice(0, 5 * c) if plain is first else slice(None)
    torch.testing.assert_close(after[:, invariants], before[:, invariants])
    if plain is first:
        vectors = torch.einsum("xi,nic->nxc", turn, before[:, 5 * c :].view(-1, 3, c))
        torch.testing.assert_close(after[:, 5 * c :], vectors.flatten(1))
