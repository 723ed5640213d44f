"""The paper's network without gradient: its tables of what depends on two elements and a distance."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read

from dyntrain.calculator import Calculator
from dyntrain.integrators import VelocityVerlet
from dyntrain.models import paper_pairs, paper_tables
from dyntrain.models.files import save_model
from dyntrain.models.normed_silu import FirstOrder, NormedSiLU
from dyntrain.models.paper_egnn import PaperEGNN
from dyntrain.models.paper_inference import FrozenNetwork
from dyntrain.models.paper_plain import PlainPaperEGNN
from dyntrain.models.paper_weights import LayerWeights, ReadOutWeights
from dyntrain.models.splines import SplineBasis, sampling_points, spline_table, weighted_rows
from dyntrain.neighbors import neighbor_list
from dyntrain.potential import Conservative, Prediction
from dyntrain.rollout import StopGradient, rollout
from dyntrain.state import State, concatenate
from dyntrain.units import FS

DATA = Path(__file__).parent / "data"


def made(seed: int = 0, width: int = 32) -> PaperEGNN:
    """A small network whose layer norms are no longer what they start as."""
    torch.manual_seed(seed)
    network = PaperEGNN([1, 6, 46], width=width, n_frequencies=64)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


@pytest.fixture(scope="module")
def network() -> PaperEGNN:
    return made().eval()


@pytest.fixture(scope="module")
def slab() -> Atoms:
    return read(DATA / "h2pd6gra_80.traj", 0)


@pytest.fixture(scope="module")
def batch(slab: Atoms) -> State:
    """The slab, another frame of it, a molecule, two atoms close together and one alone."""
    others = [
        read(DATA / "h2pd6gra_80.traj", 40),
        Atoms("C2H2", [[0, 0, 0], [1.2, 0, 0], [2.3, 0, 0.2], [-1.1, 0.1, 0]]),
        Atoms("PdH", [[0, 0, 0], [0.3, 0, 0]]),
        Atoms("C"),
    ]
    return concatenate([State.from_ase(atoms) for atoms in (slab, *others)])


def evaluated(network: PaperEGNN, state: State) -> Prediction:
    """Without gradient: from tables where the network has them."""
    with torch.no_grad():
        return Conservative(network)(state, neighbor_list(state, network.cutoff))


def in_double(network: PaperEGNN, state: State) -> Prediction:
    """METHOD's equations as they stand, by autograd, in double precision."""
    double = copy.deepcopy(network)
    double.set_precision("float64")
    found = Conservative(PlainPaperEGNN(double))(state, neighbor_list(state, network.cutoff))
    return Prediction(*(tensor.detach() for tensor in found))


def largest(found: Prediction, exact: Prediction) -> tuple[float, float]:
    """Deviations, eV and eV/Å."""
    return (
        float((found.energy - exact.energy).abs().max()),
        float((found.forces - exact.forces).abs().max()),
    )


def uses_tables(network: PaperEGNN) -> bool:
    assert network._frozen is not None
    return network._frozen.network.tables is not None


# --- splines ------------------------------------------------------------------------------------------


def test_splines_reproduce_a_function_and_its_slope_on_the_whole_range() -> None:
    range_end, n_intervals = 6.0, 256
    wave_numbers = torch.tensor([0.0, 3.0, 9.0], dtype=torch.float64)
    samples = torch.cos(sampling_points(range_end, n_intervals)[:, None] * wave_numbers)
    table = spline_table(samples, range_end / n_intervals)
    random = torch.from_numpy(np.random.default_rng(0).uniform(0.0, range_end, 500))
    d = torch.cat(
        [
            torch.tensor([0.0, np.nextafter(range_end, 0.0), range_end / n_intervals], dtype=torch.float64),
            random,
        ]
    )
    basis = SplineBasis.at(d, range_end, n_intervals, torch.float64)
    values = weighted_rows(basis.begins, basis.weights, table[0])
    slopes = weighted_rows(basis.begins, basis.slope_weights, table[1])
    phase = d[:, None] * wave_numbers
    torch.testing.assert_close(values, phase.cos(), rtol=0, atol=1e-8)
    torch.testing.assert_close(slopes, -wave_numbers * phase.sin(), rtol=0, atol=1e-6)


def test_the_error_of_splines_falls_as_the_sixth_power() -> None:
    found = []
    for n_intervals in (64, 128):
        table = spline_table(sampling_points(6.0, n_intervals).mul(8.0).sin()[:, None], 6.0 / n_intervals)
        d = torch.linspace(0.01, 5.99, 400, dtype=torch.float64)
        basis = SplineBasis.at(d, 6.0, n_intervals, torch.float64)
        values = weighted_rows(basis.begins, basis.weights, table[0]).squeeze(1)
        found.append(float((values - (8.0 * d).sin()).abs().max()))
    assert 50 < found[0] / found[1] < 90


def test_first_order_is_the_normed_silu() -> None:
    torch.manual_seed(0)
    rows = torch.randn(6, 8, dtype=torch.float64)
    rows -= rows.mean(-1, keepdim=True)
    gain, shift, m_bar = (torch.randn(n, dtype=torch.float64) for n in ((8,), (8,), (6, 8)))
    expected = NormedSiLU.of(rows.clone(), gain, shift)
    site, m = FirstOrder.of(rows.clone(), gain, shift)
    torch.testing.assert_close(m, expected.forward(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        site.reverse(m_bar * site.scale, gain), expected.reverse(m_bar), rtol=1e-12, atol=1e-12
    )


# --- exactness ----------------------------------------------------------------------------------------


def test_tables_are_no_further_from_double_precision_than_single_precision_is(network: PaperEGNN) -> None:
    tables = network._freeze().tables
    assert tables is not None
    assert len(tables.errors) == 2 + 3 * 3
    for error, rounding in zip(tables.errors, tables.roundings, strict=True):
        assert 0 < error.value <= rounding.value < 1e-4
        assert 0 < error.slope <= rounding.slope < 1e-3


def test_the_bound_holds_at_any_distance(network: PaperEGNN) -> None:
    """Also at both ends of the range, and between the points at which the tables were compared."""
    tables, end = network._freeze().tables, 6.0
    assert tables is not None
    random = torch.from_numpy(np.random.default_rng(1).uniform(0.0, end, 4000))
    d = torch.cat([torch.tensor([0.0, 1e-9, np.nextafter(end, 0.0)], dtype=torch.float64), random])
    basis = SplineBasis.at(d, end, tables.n_intervals, torch.float32)
    layers = network._sweep_weights()
    for layer, weights, table, error in zip(
        network.message_layers()[1:], layers[1:], tables.features, tables.errors[:2], strict=True
    ):
        with torch.no_grad():
            values, slopes = layer.expansion(weights.pair).plain(d)
        found = weighted_rows(basis.begins, basis.weights, table[0])
        assert float((found - values).abs().max()) < 1.5 * error.value
        found = weighted_rows(basis.begins, basis.slope_weights, table[1])
        assert float((found - slopes).abs().max()) < 1.5 * error.slope


def test_energies_and_forces_are_as_exact_as_without_tables(network: PaperEGNN, batch: State) -> None:
    exact = in_double(network, batch)
    tabulated = largest(evaluated(network, batch), exact)
    assert uses_tables(network)
    plain = largest(evaluated(copy.deepcopy(network).train(), batch), exact)
    scale = float(exact.energy.abs().max()), float(exact.forces.abs().max())
    for ours, without, of in zip(tabulated, plain, scale, strict=True):
        assert ours < 2.0 * without + 1e-6 * of
        assert ours < 1e-5 * of


def test_a_batch_is_its_systems(network: PaperEGNN, batch: State) -> None:
    whole = evaluated(network, batch)
    for system in range(batch.n_systems):
        alone = evaluated(network, batch.select([system]))
        atoms = batch.system_idx == system
        torch.testing.assert_close(alone.energy[0], whole.energy[system], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone.forces, whole.forces[atoms], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_blocks_of_pairs_do_not_change_the_numbers(
    training: bool, batch: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, small = made(width=16).train(training), batch.select([2, 3])
    whole = evaluated(network, small)
    monkeypatch.setattr(paper_pairs.Pairs, "PAIRS_IN_CACHE", 2)
    found = evaluated(network, small)
    torch.testing.assert_close(found.energy, whole.energy, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.forces, whole.forces, rtol=1e-5, atol=1e-5)


def test_the_stress_is_that_of_the_network(network: PaperEGNN, slab: Atoms) -> None:
    state = State.from_ase(slab)
    neighbors = neighbor_list(state, network.cutoff)
    with torch.no_grad():
        found = Conservative(network).stress(state, neighbors)
    expected = Conservative(network).stress(state, neighbors).detach()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def doubled(frozen: FrozenNetwork) -> FrozenNetwork:
    """The same tables, computed with in double precision."""
    tables = frozen.tables
    assert tables is not None
    features, messages = [table.double() for table in tables.features], tables.messages.double()
    return replace(
        frozen,
        h=frozen.h.double(),
        layers=[LayerWeights(*(tensor.double() for tensor in layer)) for layer in frozen.layers],
        read_out=ReadOutWeights(*(tensor.double() for tensor in frozen.read_out)),
        tables=tables._replace(features=features, messages=messages),
    )


def test_forces_are_the_gradient_of_the_tabulated_energy(network: PaperEGNN, batch: State) -> None:
    frozen = doubled(network._freeze())
    molecule = batch.select([2])
    columns = network.species(molecule.atomic_numbers)
    neighbors = neighbor_list(molecule, network.cutoff)

    def energy(positions: torch.Tensor) -> torch.Tensor:
        moved = molecule.replace(positions=positions)
        return frozen.energies_and_slopes(columns, moved, neighbors).energy[0]

    slopes = frozen.energies_and_slopes(columns, molecule, neighbors).slopes
    gradient = torch.zeros_like(molecule.positions).index_add(0, neighbors.j, slopes)
    gradient = gradient.index_add(0, neighbors.i, -slopes)
    with torch.no_grad():
        for atom, axis in ((0, 0), (1, 2), (2, 0), (3, 1)):
            h = torch.zeros_like(molecule.positions)
            h[atom, axis] = 1e-4
            difference = float(energy(molecule.positions + h) - energy(molecule.positions - h)) / 2e-4
            # What remains is the rounding of the two tables.
            assert difference == pytest.approx(float(gradient[atom, axis]), abs=2e-6)


def test_energy_is_conserved_as_without_tables(network: PaperEGNN, batch: State) -> None:
    start = batch.select([2]).replace(velocities=torch.full((4, 3), 0.01).double().tril())

    def drift(network: PaperEGNN) -> torch.Tensor:
        with torch.no_grad():
            frames = rollout(
                Conservative(network), start, VelocityVerlet(0.02 * FS), 100, backprop=StopGradient()
            )
            totals = [
                frame.prediction.energy[0]
                + 0.5 * (frame.state.masses[:, None] * frame.state.velocities**2).sum()
                for frame in frames
            ]
        return torch.stack(totals) - totals[0]

    without, tabulated = drift(copy.deepcopy(network).train()), drift(network)
    noise = 1e-6 * float(evaluated(network, start).energy.abs()[0])
    assert float(tabulated.abs().max()) < 1.2 * float(without.abs().max()) + 5.0 * noise


def test_the_published_numbers_hold_with_tables() -> None:
    with np.load(DATA / "golden" / "dtegnn_s7.npz") as file:
        golden = dict(file)
    network = PaperEGNN([1, 6, 46])
    network.load_published({k.removeprefix("param/"): golden[k] for k in golden if k.startswith("param/")})
    start = State.from_arrays(
        golden["positions"][0, 0],
        golden["atomic_numbers"],
        golden["masses"],
        cell=golden["cell"],
        pbc=[True] * 3,
    )
    found = evaluated(network.eval(), start)
    assert uses_tables(network)
    energy, forces = float(golden["out_energy"][0, 0].squeeze()), torch.as_tensor(golden["out_forces"][0, 0])
    assert float(found.energy[0]) == pytest.approx(energy, rel=1e-5)
    assert float((found.forces - forces).abs().max()) < 1e-5 * float(forces.abs().max())


# --- when there are tables ----------------------------------------------------------------------------


def test_training_never_uses_tables(batch: State) -> None:
    network = made()
    evaluated(network, batch)
    assert not uses_tables(network)  # not even without gradient: a validation
    network.eval()
    evaluated(network, batch)
    assert uses_tables(network)
    neighbors = neighbor_list(batch, network.cutoff)
    kept = network._frozen
    found = Conservative(network)(batch, neighbors)  # gradients are enabled
    assert network._frozen is kept
    assert found.forces.requires_grad
    evaluated(network.train(), batch)
    assert not uses_tables(network)


def test_a_fused_optimizer_makes_new_tables(batch: State) -> None:
    """It changes weights without counting up their versions; fine-tuning starts from a model in eval()."""
    network, small = made(width=16).eval(), batch.select([2])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, fused=True)
    evaluated(network, small)
    Conservative(network)(small, neighbor_list(small, network.cutoff)).forces.abs().sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    found, fresh = evaluated(network, small), copy.deepcopy(network)
    fresh._frozen = None
    torch.testing.assert_close(found.forces, evaluated(fresh, small).forces, rtol=0, atol=0)


@pytest.mark.parametrize("change", ["in place", "load_state_dict", "data", "frequencies"])
def test_changed_weights_make_new_tables(change: str, batch: State) -> None:
    network, other = made(width=16).eval(), made(seed=1, width=16).eval()
    small = batch.select([2])
    before = evaluated(network, small)
    with torch.no_grad():
        if change == "in place":
            for parameter, new in zip(network.parameters(), other.parameters(), strict=True):
                parameter.copy_(new)
            for layer, of in zip(network.message_layers(), other.message_layers(), strict=True):
                layer.frequencies.copy_(of.frequencies)
        elif change == "load_state_dict":
            network.load_state_dict(other.state_dict())
        elif change == "data":
            network.load_state_dict(other.state_dict())
            for parameter in (*network.parameters(), *other.parameters()):
                parameter.data = 1.1 * parameter.data
        else:
            for layer in (*network.message_layers(), *other.message_layers()):
                layer.frequencies.fill_(1.5)
            other.load_state_dict(network.state_dict())
    found, expected = evaluated(network, small), evaluated(copy.deepcopy(other), small)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=0)
    assert not torch.equal(found.forces, before.forces)


def test_tables_are_kept_while_nothing_changes(network: PaperEGNN, batch: State) -> None:
    evaluated(network, batch)
    kept = network._frozen
    evaluated(network, batch)
    assert network._frozen is kept


def test_double_precision_has_no_tables(batch: State) -> None:
    network = made()
    network.set_precision("float64")
    found, exact = evaluated(network.eval(), batch), in_double(network, batch)
    assert not uses_tables(network)
    torch.testing.assert_close(found.energy, exact.energy, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.forces, exact.forces, rtol=1e-8, atol=1e-8)


def test_tables_that_cannot_be_exact_enough_are_left_out(
    batch: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper_tables, "MOST_INTERVALS", paper_tables.FEWEST_INTERVALS)
    network = made().eval()
    with torch.no_grad():
        for layer in network.message_layers():
            layer.frequencies.mul_(2.0)  # too fast for tables so coarse
    plain = evaluated(copy.deepcopy(network).train(), batch)
    found = evaluated(network, batch)
    assert not uses_tables(network)
    torch.testing.assert_close(found.forces, plain.forces, rtol=0, atol=0)


def test_the_calculator_of_a_model_file_uses_them(slab: Atoms, tmp_path: Path) -> None:
    network = made(width=16)
    save_model(Conservative(network), tmp_path / "model.pt")
    calculator = Calculator(tmp_path / "model.pt")
    atoms = slab.copy()
    atoms.calc = calculator
    forces = atoms.get_forces()
    assert uses_tables(calculator.potential.energy_model)  # type: ignore[attr-defined]
    expected = evaluated(network, State.from_ase(slab)).forces.numpy()
    np.testing.assert_allclose(forces, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
