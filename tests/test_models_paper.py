"""The parts of the paper network's fast evaluation: normed SiLU, Chebyshev polynomials, what it refuses."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dyntrain.models import paper_pairs
from dyntrain.models.chebyshev import (
    ChebyshevBasis,
    chebyshev_coefficients,
    chebyshev_slopes,
    chebyshev_values,
    fourier_features,
)
from dyntrain.models.normed_silu import NormedSiLU, centred
from dyntrain.models.paper_egnn import PaperEGNN
from dyntrain.neighbors import NeighborList, neighbor_list
from dyntrain.potential import Conservative
from dyntrain.state import State

RANGE = 6.0


def test_chebyshev_values_are_cosines() -> None:
    d = torch.linspace(0.01, 5.99, 50, dtype=torch.float64)
    for n_terms in (1, 2, 3, 17, 60):
        expected = torch.cos(torch.acos(2 * d / RANGE - 1)[:, None] * torch.arange(n_terms))
        torch.testing.assert_close(chebyshev_values(d, RANGE, n_terms), expected, rtol=0, atol=1e-12)


def test_chebyshev_slopes_are_the_derivatives() -> None:
    d = torch.linspace(0.3, 5.9, 7, dtype=torch.float64, requires_grad=True)
    values = chebyshev_values(d, RANGE, 20)
    slopes = values @ chebyshev_slopes(20, RANGE)
    for k in range(20):
        (expected,) = torch.autograd.grad(values[:, k].sum(), d, retain_graph=True)
        torch.testing.assert_close(slopes[:, k], expected, rtol=1e-10, atol=1e-10)


def test_what_depends_on_the_basis_has_the_right_derivatives() -> None:
    """f = Σ_k a_k T_k²/2 of each pair, whose gradient in T_k is a_k T_k."""
    torch.manual_seed(0)
    d = torch.linspace(0.3, 5.9, 7, dtype=torch.float64, requires_grad=True)
    weights, motion = torch.randn(9, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    values = chebyshev_values(d, RANGE, 9)
    (slopes,) = torch.autograd.grad((0.5 * weights * values**2).sum(), d, create_graph=True)
    (slopes_dot,) = torch.autograd.grad(slopes, d, motion)
    basis = ChebyshevBasis(d.detach(), RANGE, 9, torch.float64)
    torch.testing.assert_close(basis.values, values.detach(), rtol=0, atol=1e-13)
    bar, bar_dot = weights * basis.values, weights * basis.change(motion)
    torch.testing.assert_close(basis.slopes(bar), slopes.detach(), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(basis.slopes_change(bar, bar_dot, motion), slopes_dot, rtol=1e-10, atol=1e-10)


def test_the_expansion_equals_the_fourier_features() -> None:
    frequencies = torch.from_numpy(np.random.default_rng(0).normal(scale=2.8, size=64))
    coefficients = chebyshev_coefficients(frequencies, RANGE)
    d = torch.linspace(0.05, 5.95, 200, dtype=torch.float64)
    ours = chebyshev_values(d, RANGE, coefficients.shape[0]) @ coefficients
    torch.testing.assert_close(ours, fourier_features(d, frequencies), rtol=0, atol=1e-9)


def plain_site(rows: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    return functional.silu(functional.layer_norm(rows, rows.shape[1:], gain, shift))


def test_normed_silu_and_its_derivatives() -> None:
    """m, ā, ṁ, and the derivatives of ā, γ̄ and β̄ along a motion, against autograd."""
    torch.manual_seed(0)
    n, width = 6, 8
    linear = nn.Linear(3, width).double()
    x = torch.randn(n, 3, dtype=torch.float64)
    rows = (x @ centred(linear.weight).T + centred(linear.bias)).detach().requires_grad_()
    gain, shift = (torch.randn(width, dtype=torch.float64, requires_grad=True) for _ in range(2))
    m_bar, m_bar_dot, rows_dot = (torch.randn(n, width, dtype=torch.float64) for _ in range(3))
    rows_dot -= rows_dot.mean(-1, keepdim=True)
    site = NormedSiLU.of(rows.detach().clone(), gain.detach(), shift.detach())
    expected = plain_site(rows, gain, shift)
    torch.testing.assert_close(site.forward(), expected, rtol=1e-12, atol=1e-12)
    bars = torch.autograd.grad(expected, (rows, gain, shift), m_bar, create_graph=True)
    torch.testing.assert_close(site.reverse(m_bar), bars[0], rtol=1e-10, atol=1e-10)

    def moved(epsilon: Tensor) -> tuple[Tensor, ...]:
        inputs = (rows + epsilon * rows_dot, gain, shift)
        m = plain_site(*inputs)
        return (m, *torch.autograd.grad(m, inputs, m_bar + epsilon * m_bar_dot, create_graph=True))

    zero = torch.zeros((), dtype=torch.float64)
    dots = torch.autograd.functional.jacobian(moved, zero)
    torch.testing.assert_close(site.tangent(rows_dot), dots[0], rtol=1e-10, atol=1e-10)
    found = site.expand().reverse_tangent(m_bar, m_bar_dot)
    for ours, dot in zip(found, dots[1:], strict=True):
        torch.testing.assert_close(ours, dot, rtol=1e-9, atol=1e-9)
    site.rest()
    found = site.expand().reverse_tangent(None, m_bar_dot)
    still = torch.autograd.grad(plain_site(rows, gain, shift), (rows, gain, shift), m_bar_dot)
    for ours, gradient in zip(found, still, strict=True):
        torch.testing.assert_close(ours, gradient, rtol=1e-10, atol=1e-10)


# --- the network --------------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> State:
    random = np.random.default_rng(1)
    positions = 1.4 * np.stack(np.meshgrid([0, 1], [0, 1], [0, 1, 2], indexing="ij"), -1).reshape(-1, 3)
    numbers = random.choice([1, 8], size=12)
    return State.from_arrays(positions + random.normal(scale=0.1, size=positions.shape), numbers, np.ones(12))


@pytest.fixture
def network() -> PaperEGNN:
    torch.manual_seed(0)
    network = PaperEGNN([1, 8], width=12, n_frequencies=16)
    network.set_precision("float64")
    return network


def gradients(network: PaperEGNN, state: State) -> list[Tensor]:
    network.zero_grad()
    found = Conservative(network)(state, neighbor_list(state, network.cutoff))
    (found.forces.pow(2).sum() + found.energy.sum()).backward()  # type: ignore[no-untyped-call]
    return [found.forces.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]


def test_blocks_of_pairs_do_not_change_the_numbers(
    network: PaperEGNN, cluster: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gradients(network, cluster)
    monkeypatch.setattr(paper_pairs.Pairs, "PAIRS_IN_CACHE", 7)
    for ours, expected in zip(gradients(network, cluster), whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)


def test_a_gradient_may_be_taken_twice_from_one_evaluation(network: PaperEGNN, cluster: State) -> None:
    """Energies and forces share what is kept: neither backward pass may spoil it for the other."""
    positions = cluster.positions.clone().requires_grad_()
    found = Conservative(network)(
        cluster.replace(positions=positions), neighbor_list(cluster, network.cutoff)
    )
    parameters = [p for p in network.parameters() if p.requires_grad]

    def of(loss: Tensor) -> list[Tensor | None]:
        return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))

    forces, energy = found.forces.pow(2).sum(), found.energy.sum()
    # Slopes with another seed, of the same evaluation.
    torch.autograd.grad(2.0 * energy, positions, create_graph=True)
    first = of(forces)
    of(energy)
    for again, before in zip(of(forces), first, strict=True):
        assert (again is None) == (before is None)
        if again is not None:
            torch.testing.assert_close(again, before, rtol=0, atol=0)


def test_an_evaluation_is_freed_with_its_energy(network: PaperEGNN, cluster: State) -> None:
    """No cycle holds hundreds of megabytes until the garbage collector comes by."""
    gc.disable()
    try:
        moving = cluster.replace(positions=cluster.positions.clone().requires_grad_())
        energy = network(moving, neighbor_list(cluster, network.cutoff))
        kept = weakref.ref(energy.grad_fn.next_functions[0][0].evaluation)
        assert kept() is not None
        del energy
        assert kept() is None
    finally:
        gc.enable()


def test_a_pair_beyond_the_range_of_the_features_is_refused(network: PaperEGNN, cluster: State) -> None:
    pair = NeighborList(torch.tensor([0]), torch.tensor([1]), torch.zeros(1, 3, dtype=torch.float64))
    far = cluster.replace(positions=cluster.positions * torch.arange(12.0).double()[:, None] * 5)
    with pytest.raises(ValueError, match="rebuild the neighbour list"):
        network(far, pair)
