"""Conservative: forces are −∂E/∂r, a graph is kept where it is wanted, detached models are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase.stress import voigt_6_to_full_3x3_stress
from torch import Tensor

from dyntrain.errors import UserError
from dyntrain.models.analytic import Harmonic, LennardJones, Morse
from dyntrain.models.egnn import EGNN
from dyntrain.models.files import set_precision
from dyntrain.neighbors import NeighborList, neighbor_list, pair_vectors
from dyntrain.potential import Conservative, EnergyModel, Prediction
from dyntrain.state import State, concatenate
from systems import argon_cluster, argon_crystal, hydrogen


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


# --- stress -----------------------------------------------------------------------------------------------


def network() -> EGNN:
    torch.manual_seed(0)
    model = EGNN([18], cutoff=5.0, width=8, n_channels=4, n_radial=4)
    set_precision(model, "float64")
    return model


def stress(model: EnergyModel, state: State) -> Tensor:
    return Conservative(model).stress(state, neighbor_list(state, model.cutoff))


def strained(state: State, strain: Tensor) -> State:
    deformation = torch.eye(3, dtype=torch.float64) + strain
    return state.replace(positions=state.positions @ deformation, cell=state.cell @ deformation)


SHEAR = torch.tensor([[0.0, 0.1, 0.0], [0.0, -0.1, 0.05], [0.0, 0.0, 0.0]], dtype=torch.float64)
CRYSTAL = strained(argon_crystal(), SHEAR)


@pytest.mark.parametrize("model", [LennardJones(cutoff=6.0), network()], ids=["lj", "egnn"])
def test_the_stress_is_the_energys_change_with_strain_by_volume(model: EnergyModel) -> None:
    found = stress(model, CRYSTAL).detach()
    volume = float(torch.linalg.det(CRYSTAL.cell[0]).abs())
    for component, (x, y) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        energies = []
        for size in (1e-4, -1e-4):
            strain = torch.zeros(3, 3, dtype=torch.float64)
            strain[x, y] += size / 2
            strain[y, x] += size / 2
            energies.append(float(predict(model, strained(CRYSTAL, strain)).energy.detach()))
        expected = (energies[0] - energies[1]) / 2e-4 / volume
        assert float(found[0, component]) == pytest.approx(expected, abs=1e-5 * float(found.abs().max()))
    assert float(found.abs().min()) > 1e-3 * float(found.abs().max())


def test_the_stress_turns_with_the_crystal() -> None:
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.manual_seed(3)))[0]
    turned = CRYSTAL.replace(positions=CRYSTAL.positions @ turn, cell=CRYSTAL.cell @ turn)
    one, other = (
        voigt_6_to_full_3x3_stress(stress(network(), s)[0].detach().numpy()) for s in (CRYSTAL, turned)
    )
    np.testing.assert_allclose(other, turn.T.numpy() @ one @ turn.numpy(), atol=1e-10)


def test_the_stress_of_a_batch_is_that_of_each_system() -> None:
    other = strained(argon_crystal(seed=4), 0.02 * torch.eye(3, dtype=torch.float64))
    both = stress(network(), concatenate([CRYSTAL, other]))
    torch.testing.assert_close(both, torch.cat([stress(network(), s) for s in (CRYSTAL, other)]))


def test_the_stress_trains() -> None:
    """The gradient of a function of the stress, beside finite differences of one weight."""
    model = network()
    weight = next(p for p in model.parameters() if p.ndim == 2)
    value = (stress(model, CRYSTAL) ** 2).sum()
    (gradient,) = torch.autograd.grad(value, weight)
    values = []
    for size in (1e-5, -1e-5):
        with torch.no_grad():
            weight[0, 0] += size
            values.append(float((stress(model, CRYSTAL) ** 2).sum()))
            weight[0, 0] -= size
    assert float(gradient[0, 0]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)
    with torch.no_grad():
        assert not stress(model, CRYSTAL).requires_grad


def test_a_system_without_volume_has_no_stress() -> None:
    with pytest.raises(UserError, match=r"system 1 is not periodic in all directions .* no stress"):
        stress(LennardJones(cutoff=6.0), concatenate([CRYSTAL, argon_cluster(4)]))
