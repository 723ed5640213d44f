"""The paper's network in compiled loops: the same numbers as in PyTorch, and when they are used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read
from torch import Tensor

from dyntrain import kernel
from dyntrain.models import paper_inference, paper_pairs, paper_rows, paper_sweeps
from dyntrain.models.chebyshev import ChebyshevBasis
from dyntrain.models.normed_silu import FirstOrder, centred
from dyntrain.models.paper_egnn import PaperEGNN
from dyntrain.neighbors import neighbor_list
from dyntrain.potential import Conservative, Prediction
from dyntrain.state import State, concatenate

pytest.importorskip("numba")

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def batch() -> State:
    """The slab (has pairs of one element and of two), a molecule, and an atom without neighbours."""
    molecule = Atoms("C2H2", [[0, 0, 0], [1.2, 0, 0], [2.3, 0, 0.2], [-1.1, 0.1, 0]])
    slab = read(DATA / "h2pd6gra_80.traj", 0)
    return concatenate([State.from_ase(atoms) for atoms in (slab, molecule, Atoms("C"))])


def made(*, training: bool) -> PaperEGNN:
    torch.manual_seed(0)
    network = PaperEGNN([1, 6, 46], width=40, n_frequencies=64)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network.train(training)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Classes of the rows as they are made."""
    names: list[str] = []
    for name in ("rows_of", "table_rows_of"):
        make = getattr(paper_rows, name)

        def noted(*arguments: object, make: object = make) -> object:
            rows = make(*arguments)  # type: ignore[operator]
            names.append(type(rows).__name__)
            return rows

        monkeypatch.setattr(paper_inference, name, noted)
    yield names


def evaluated(network: PaperEGNN, state: State) -> Prediction:
    with torch.no_grad():
        return Conservative(network)(state, neighbor_list(state, network.cutoff))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("pairs_in_cache", [5, 1024])
def test_compiled_is_the_plain_form(
    training: bool, pairs_in_cache: int, batch: State, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper_pairs.Pairs, "PAIRS_IN_CACHE", pairs_in_cache)
    state = batch if pairs_in_cache > 5 else batch.select([1, 2])
    network = made(training=training)
    compiled = evaluated(network, state)
    assert set(used) == ({"CompiledRows"} if training else {"CompiledRows", "CompiledTableRows"})
    used.clear()
    monkeypatch.setattr(kernel, "is_of_use", lambda like: False)
    plain = evaluated(network, state)
    assert set(used) == ({"Rows"} if training else {"Rows", "TableRows"})
    scale = float(plain.forces.abs().max())
    torch.testing.assert_close(compiled.energy, plain.energy, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(compiled.forces, plain.forces, rtol=0, atol=3e-6 * scale)


def test_first_order_is_the_plain_form() -> None:
    from dyntrain.models.paper_kernels import CompiledFirstOrder

    torch.manual_seed(0)
    rows = torch.randn(7, 40)
    rows -= rows.mean(-1, keepdim=True)
    gain, shift, scaled = torch.randn(40), torch.randn(40), torch.randn(7, 40)
    plain, m = FirstOrder.of(rows.clone(), gain, shift)
    compiled, compiled_m = CompiledFirstOrder.of(rows.clone(), gain, shift)
    torch.testing.assert_close(compiled_m, m, rtol=1e-5, atol=1e-6)
    for found, expected in zip(compiled, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    # The compiled form leaves a row's mean in: what it is multiplied with takes it out.
    found, expected = compiled.reverse(scaled.clone(), gain), plain.reverse(scaled.clone(), gain)
    torch.testing.assert_close(centred(found.T), centred(expected.T), rtol=1e-5, atol=1e-5)


def test_the_logistic_function_is_exact_from_end_to_end() -> None:
    from dyntrain.models.silu_kernels import sigmoid

    y = np.concatenate([np.linspace(-30, 30, 4001), [-1e30, -100.0, -88.0, 0.0, 88.0, 1e30]])
    with np.errstate(over="ignore"):
        exact = 1.0 / (1.0 + np.exp(-y))
    found = np.array([sigmoid(np.float32(x)) for x in y])
    assert np.abs(found - exact).max() < 2e-7
    near = np.abs(y) < 31
    assert np.abs(found[near] / exact[near] - 1).max() < 2e-6  # y itself is rounded to single precision


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("training", [True, False])
def test_weights_that_are_no_numbers_are_not_hidden(value: float, training: bool, batch: State) -> None:
    network = made(training=training)
    with torch.no_grad():
        network.message_layers()[1].w2.bias[3] = value
    found = evaluated(network, batch.select([1]))
    assert not found.energy.isfinite().any()
    assert not found.forces.isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_terms", [1, 2, 60])
def test_the_compiled_basis_is_the_plain_one(dtype: torch.dtype, n_terms: int) -> None:
    from dyntrain.models.chebyshev_kernels import CompiledChebyshevBasis

    torch.manual_seed(0)
    distances, motion = 5.9 * torch.rand(23, dtype=torch.float64), torch.randn(23, dtype=torch.float64)
    bar, bar_dot = torch.randn(2, 23, n_terms, dtype=dtype)
    for of in (distances, distances[:0]):
        here = slice(len(of))
        plain, ours = (form(of, 6.0, n_terms, dtype) for form in (ChebyshevBasis, CompiledChebyshevBasis))
        tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
        torch.testing.assert_close(ours.values, plain.values, **tolerance)
        torch.testing.assert_close(ours.change(motion[here]), plain.change(motion[here]), **tolerance)
        torch.testing.assert_close(ours.slopes(bar[here]), plain.slopes(bar[here]), rtol=1e-9, atol=1e-9)
        arguments = (bar[here], bar_dot[here], motion[here])
        changes = (form.slopes_change(*arguments) for form in (ours, plain))
        torch.testing.assert_close(*changes, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="beyond"):
        CompiledChebyshevBasis(torch.tensor([6.5], dtype=torch.float64), 6.0, n_terms, dtype)


# --- with gradient ------------------------------------------------------------------------------------------


def trained(network: PaperEGNN, state: State, of: str) -> dict[str, Tensor]:
    """Gradients of a loss of energies, forces or both; forces are taken by autograd."""
    positions = state.positions.clone().requires_grad_()
    found = Conservative(network)(state.replace(positions=positions), neighbor_list(state, network.cutoff))
    loss = torch.zeros((), dtype=torch.float64)
    if of != "energies":
        loss = loss + found.forces.pow(2).sum()
    if of != "forces":
        loss = loss + 0.1 * found.energy.pow(2).sum()
    named = dict(network.named_parameters())
    wanted = [positions, *named.values()]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    return {name: g for name, g in zip(["positions", *named], gradients, strict=True) if g is not None}


@pytest.fixture
def sweep_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Classes of the rows of the sweeps as they are made."""
    names: list[str] = []
    make = paper_sweeps.sweep_rows_of

    def noted(*arguments: Any) -> Any:
        rows = make(*arguments)
        names.append(type(rows).__name__)
        return rows

    monkeypatch.setattr(paper_sweeps, "sweep_rows_of", noted)
    yield names


@pytest.mark.parametrize("of", ["energies", "forces", "both"])
@pytest.mark.parametrize("pairs_in_cache", [5, 1024])
def test_compiled_gradients_are_those_of_double_precision(
    of: str, pairs_in_cache: int, batch: State, sweep_rows: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As closely as PyTorch's operations in single precision come to them."""
    monkeypatch.setattr(paper_pairs.Pairs, "PAIRS_IN_CACHE", pairs_in_cache)
    state = batch if pairs_in_cache > 5 else batch.select([1, 2])
    network = made(training=True)
    compiled = trained(network, state, of)
    assert set(sweep_rows) == {"CompiledSweepRows"}
    sweep_rows.clear()
    with monkeypatch.context() as patched:
        patched.setattr(kernel, "is_of_use", lambda like: False)
        plain = trained(network, state, of)
    network.set_precision("float64")
    exact = trained(network, state, of)
    assert set(sweep_rows) == {"SweepRows"}
    assert exact.keys() == compiled.keys()
    for name, expected in exact.items():
        scale = float(expected.abs().max())
        error, usual = (float((found[name] - expected).abs().max()) for found in (compiled, plain))
        assert error <= max(3 * usual, 1e-5 * scale), (name, error / scale, usual / scale)


def test_compiled_gradients_may_be_taken_twice(batch: State) -> None:
    """Energies and forces share what is kept: neither backward pass may spoil it for the other."""
    network, state = made(training=True), batch.select([1, 2])
    positions = state.positions.clone().requires_grad_()
    moved = state.replace(positions=positions)
    found = Conservative(network)(moved, neighbor_list(state, network.cutoff))
    parameters = list(network.parameters())
    losses = [found.forces.pow(2).sum(), found.energy.sum()]

    def gradients(loss: Tensor) -> list[Tensor | None]:
        return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))

    first = [gradients(loss) for loss in losses]
    torch.autograd.grad(2.0 * losses[1], positions, create_graph=True)  # slopes with another seed
    again = [gradients(loss) for loss in losses]
    for one, other in zip(first[0] + first[1], again[0] + again[1], strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_of_weights_that_are_no_numbers_are_none(value: float, batch: State) -> None:
    network = made(training=True)
    with torch.no_grad():
        network.message_layers()[1].w2.bias[3] = value
    gradients = trained(network, batch.select([1]), "forces")
    assert not gradients["layers.0.w1.weight"].isfinite().any()
