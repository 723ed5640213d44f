"""Conservative: forces are −∂E/∂r, a graph is kept where it is wanted, detached models are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dyntrain.models.analytic import Harmonic, LennardJones, Morse
from dyntrain.neighbors import NeighborList, neighbor_list, pair_vectors
from dyntrain.potential import Conservative, EnergyModel, Prediction
from dyntrain.state import State, concatenate
from systems import argon_cluster, hydrogen


def predict(model: EnergyModel, state: State) -> Prediction:
    return Conservative(model)(state, neighbor_list(state.detach(), model.cutoff))


def pair(distance: float) -> State:
    return State.from_arrays([[0, 0, 0], [0, 0, distance]], [18, 18], [39.95, 39.95])


@pytest.mark.parametrize(
    ("model", "distance", "energy", "force"),
    [
        # ½·20·0.2² and 20·0.2
        (Harmonic(20.0, 1.0), 1.2, 0.4, 4.0),
        # where e^(−a (d − d0)) = ½: D/4 and D a/2
        (Morse(4.0, 2.0, 0.74), 0.74 + math.log(2.0) / 2.0, 1.0, 4.0),
        # at σ: 0 and −24 ε/σ, times the switch (1 − 1/4)⁴
        (LennardJones(1.0, 3.0, cutoff=6.0), 3.0, 0.0, -8.0 * 0.75**4),
        # at 2^(1/6) σ = cutoff/√2 the depth ε is switched to (1/2)⁴
        (LennardJones(1.0, 3.0, cutoff=3.0 * 2 ** (2 / 3)), 3.0 * 2 ** (1 / 6), -1.0 / 16, None),
        (LennardJones(cutoff=6.0), 6.1, 0.0, 0.0),
    ],
)
def test_analytic_potentials_give_the_numbers_worked_out_by_hand(
    model: EnergyModel, distance: float, energy: float, force: float | None
) -> None:
    """``force`` is what pulls the second atom back to the first."""
    with torch.no_grad():
        prediction = predict(model, pair(distance))
    assert prediction.energy.tolist() == pytest.approx([energy], rel=1e-8, abs=1e-14)
    np.testing.assert_allclose(prediction.forces[0], -prediction.forces[1], rtol=1e-14)
    assert prediction.forces[:, :2].abs().max() == 0.0
    if force is not None:
        assert float(prediction.forces[0, 2]) == pytest.approx(force, rel=1e-8, abs=1e-14)


def test_energies_are_summed_by_system() -> None:
    parts = [pair(3.5), argon_cluster(5), pair(4.0)]
    batch = predict(LennardJones(), concatenate(parts)).energy
    alone = torch.cat([predict(LennardJones(), part).energy for part in parts])
    torch.testing.assert_close(batch, alone, rtol=1e-14, atol=0)


def test_the_graph_follows_grad_mode() -> None:
    state = hydrogen()
    moving = state.replace(positions=state.positions.clone().requires_grad_())
    kept = predict(Morse(), moving)
    assert kept.energy.requires_grad and kept.forces.requires_grad
    with torch.no_grad():
        dropped = predict(Morse(), moving)
    assert not dropped.energy.requires_grad and not dropped.forces.requires_grad
    assert torch.equal(dropped.energy, kept.energy) and torch.equal(dropped.forces, kept.forces)


def test_a_state_that_asks_for_no_gradient_keeps_the_graph_to_the_parameters() -> None:
    state, model = hydrogen(), Morse()
    forces = predict(model, state).forces
    (by_depth,) = torch.autograd.grad(forces.pow(2).sum(), model.depth)
    # Morse forces are proportional to the depth: d(F²)/dD = 2 F²/D.
    expected = 2.0 * forces.pow(2).sum() / model.depth
    torch.testing.assert_close(by_depth, expected, rtol=1e-13, atol=0)
    assert not state.positions.requires_grad


class _Detaching(EnergyModel):
    """Re-wraps its input, as the published code does."""

    cutoff = 5.0

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        positions = torch.tensor(state.positions.tolist(), dtype=torch.float64)
        energy = pair_vectors(state.replace(positions=positions), neighbors).pow(2).sum()
        return self.weight * energy[None]


@pytest.mark.parametrize("trained", [True, False])
def test_a_model_that_detaches_its_input_is_refused(trained: bool) -> None:
    model = _Detaching(torch.tensor([2.0], dtype=torch.float64)).requires_grad_(trained)
    with pytest.raises(ValueError, match=r"energy of _Detaching does not depend on state\.positions"):
        predict(model, hydrogen())
