"""The networks: parity with the published numbers, the contract of a potential, model files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read
from torch import Tensor

from dyntrain.data.segments import Targets
from dyntrain.errors import UserError
from dyntrain.integrators import VelocityVerlet
from dyntrain.loss import Loss, StepWeights, Term, counts
from dyntrain.models.egnn import EGNN
from dyntrain.models.files import build_model, load_model, save_model, set_precision
from dyntrain.models.pair_basis import envelope
from dyntrain.models.paper_egnn import PaperEGNN, published_name
from dyntrain.models.paper_plain import PlainPaperEGNN
from dyntrain.neighbors import FrozenNeighbors, neighbor_list
from dyntrain.potential import Conservative, EnergyModel, Prediction
from dyntrain.rollout import Frame, StopGradient, rollout
from dyntrain.state import State, concatenate
from dyntrain.testing import check_potential
from dyntrain.units import FS

DATA = Path(__file__).parent / "data"

# --- the published network ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(DATA / "golden" / "dtegnn_s7.npz") as file:
        return dict(file)


def of_golden(golden: dict[str, np.ndarray], name: str) -> Tensor:
    """[n_segments, S, …] → [S, all atoms (or systems), …], float64."""
    array = np.swapaxes(golden[name], 0, 1)
    per_atom = array.ndim == 4
    return torch.as_tensor(array.reshape(7, -1, 3) if per_atom else array).double()


@pytest.fixture(scope="module")
def published(golden: dict[str, np.ndarray]) -> tuple[PaperEGNN, list[Frame], list[float], float, State]:
    """The network, its unrolled frames, loss of each step, total loss (back-propagated), the starts."""
    model = PaperEGNN([1, 6, 46])
    model.load_published({k.removeprefix("param/"): golden[k] for k in golden if k.startswith("param/")})
    starts = concatenate(
        [
            State.from_arrays(
                golden["positions"][segment, 0],
                golden["atomic_numbers"],
                golden["masses"],
                velocities=golden["velocities_A_per_fs"][segment, 0] / FS,
                cell=golden["cell"],
                pbc=[True] * 3,
            )
            for segment in range(3)
        ]
    )
    positions, velocities = of_golden(golden, "positions"), of_golden(golden, "velocities_A_per_fs") / FS
    targets = Targets(positions, velocities, of_golden(golden, "forces"), of_golden(golden, "energy"))
    loss = Loss([Term("forces", per_element=True)], StepWeights(50.0, 1.0))
    frames, steps, total = [], [], 0.0
    for frame in rollout(
        Conservative(model),
        starts,
        VelocityVerlet(0.5 * FS),
        6,
        backprop=StopGradient(),
        neighbors=FrozenNeighbors(5.0),
    ):
        part = loss.at(frame, targets, starts, counts(starts), 7)["forces"]
        part.backward()  # type: ignore[no-untyped-call]
        total += part.item()
        steps.append(part.item() / loss.step_weights.at(frame.step, 7))
        prediction = Prediction(frame.prediction.energy.detach(), frame.prediction.forces.detach())
        frames.append(Frame(frame.step, frame.state.detach(), prediction, frame.systems))
    return model, frames, steps, total, starts


def test_published_edges(published: Any, golden: dict[str, np.ndarray]) -> None:
    starts = published[-1]
    for segment in range(3):
        assert 2 * neighbor_list(starts.select([segment]), 5.0).n_pairs == golden["n_edges"][segment]


def test_published_energies_forces_and_motion(published: Any, golden: dict[str, np.ndarray]) -> None:
    frames = published[1]
    energies = torch.stack([f.prediction.energy for f in frames])
    forces = torch.stack([f.prediction.forces for f in frames])
    torch.testing.assert_close(energies, of_golden(golden, "out_energy"), rtol=1e-5, atol=0)
    expected = of_golden(golden, "out_forces")
    assert float((forces - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    # Single precision of the published positions: one rounding is 2e-6 Å at 20 Å.
    positions = torch.stack([f.state.positions for f in frames])
    assert float((positions - of_golden(golden, "out_positions")).abs().max()) < 5e-6
    velocities = torch.stack([f.state.velocities for f in frames]) * FS
    expected = of_golden(golden, "out_velocities")
    assert float((velocities - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_published_losses(published: Any, golden: dict[str, np.ndarray]) -> None:
    _, frames, steps, total, starts = published
    np.testing.assert_allclose(steps, golden["loss_force_per_step"], rtol=1e-5)
    assert total == pytest.approx(float(golden["loss_total"]), rel=1e-5)
    loss, energies = Loss([Term("energy")]), of_golden(golden, "energy")
    nothing = torch.zeros(7, starts.n_atoms, 3)
    targets = Targets(nothing, nothing, nothing, energies)
    of_energy = [float(loss.at(frame, targets, starts, counts(starts), 7)["energy"]) for frame in frames]
    np.testing.assert_allclose(of_energy, golden["loss_energy_per_step"], rtol=1e-5)


def test_published_gradients(published: Any, golden: dict[str, np.ndarray]) -> None:
    model = published[0]
    names = {k.removeprefix("grad/") for k in golden if k.startswith("grad/")}
    assert names == {published_name(name) for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        expected = torch.as_tensor(golden[f"grad/{published_name(name)}"]).reshape(parameter.shape)
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        # The read-out's biases do not reach the forces: exactly zero.
        norm = float(expected.norm())
        assert float((found - expected).norm()) <= 1e-4 * norm, name


def test_the_fast_evaluation_equals_the_slow_one() -> None:
    """Energies, forces and parameter gradients of a loss of both, in float64."""
    torch.manual_seed(3)
    fast = PaperEGNN([1, 6, 8], width=24, n_frequencies=64)
    set_precision(fast, "float64")
    state = concatenate([ethanol(), State.from_ase(molecule("CH3OH")), water_box()])
    neighbors = neighbor_list(state, fast.cutoff)
    results, gradients = [], []
    for model in (fast, PlainPaperEGNN(fast)):
        fast.zero_grad()
        prediction = Conservative(model)(state, neighbors)
        (prediction.forces.pow(2).sum() + prediction.energy.pow(2).sum()).backward()  # type: ignore[no-untyped-call]
        results.append(prediction)
        gradients.append({n: p.grad.clone() for n, p in fast.named_parameters() if p.grad is not None})
    quick, plain = ([tensor.detach() for tensor in prediction] for prediction in results)
    torch.testing.assert_close(quick[0], plain[0], rtol=1e-9, atol=0)
    torch.testing.assert_close(quick[1], plain[1], rtol=0, atol=1e-9 * float(plain[1].abs().max()))
    assert set(gradients[0]) == set(dict(fast.named_parameters()))
    for name, expected in gradients[1].items():
        assert float((gradients[0][name] - expected).norm()) <= 1e-9 * float(expected.norm()), name


def test_other_frequencies_make_other_fast_features() -> None:
    """The Chebyshev form follows B wherever B comes from: loading, and precision."""
    torch.manual_seed(0)
    first, second = (PaperEGNN([1, 6, 8], width=16, n_frequencies=32) for _ in range(2))
    state = ethanol()
    before = energy_of(first, state)
    first.load_state_dict(second.state_dict())
    assert energy_of(first, state) == energy_of(second, state) != before
    set_precision(first, "float64")
    assert energy_of(first, state) == pytest.approx(energy_of(PlainPaperEGNN(first), state), rel=1e-9)


# --- the contract ------------------------------------------------------------------------------------------


def ethanol() -> State:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return State.from_ase(moving(atoms))


def moving(atoms: Atoms) -> Atoms:
    atoms.set_velocities(np.random.default_rng(0).normal(scale=0.02, size=(len(atoms), 3)))
    return atoms


def slab() -> State:
    """H2 on Pd6 at a graphene vacancy, periodic."""
    return State.from_ase(read(DATA / "h2pd6gra_80.traj", 10))


def crystal() -> State:
    """Two atoms in a skewed cell much smaller than the cutoff: pairs through several images."""
    atoms = bulk("SiC", "zincblende", a=4.36)
    atoms.rattle(0.1, seed=2)
    return State.from_ase(moving(atoms))


def water_box() -> State:
    """Periodic in two directions, 3.1 Å wide: every atom sees its own images."""
    atoms = molecule("H2O", cell=[3.1, 3.4, 9.0], pbc=[True, True, False])
    atoms.rattle(0.05, seed=3)
    return State.from_ase(moving(atoms))


SYSTEMS = {
    "molecule": ethanol,
    "crystal smaller than the cutoff": crystal,
    "mixed batch": lambda: concatenate([water_box(), ethanol(), crystal()]),
}
every_system = pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS.keys())
every_precision = pytest.mark.parametrize("precision", ["float32", "float64"])


def with_statistics(model: EGNN) -> EGNN:
    shifts = torch.linspace(-5.0, -30.0, len(model.elements), dtype=torch.float64)
    model.set_statistics(shifts, force_scale=1.3, mean_neighbors=12.0)
    return model


@every_system
@every_precision
def test_the_default_network_is_a_potential(system: Any, precision: str) -> None:
    torch.manual_seed(1)
    model = with_statistics(EGNN([1, 6, 8, 14], cutoff=4.5, width=16, n_channels=8))
    set_precision(model, precision)
    check_potential(Conservative(model), system())


@every_precision
def test_the_default_network_on_a_slab(precision: str) -> None:
    """At its real size; the roll-out gradient is checked on the smaller systems."""
    torch.manual_seed(1)
    model = with_statistics(EGNN([1, 6, 46]))
    set_precision(model, precision)
    check_potential(Conservative(model), slab(), n_steps=1)


@every_system
@every_precision
def test_the_published_network_is_a_potential_but_for_its_known_exceptions(
    system: Any, precision: str
) -> None:
    """A hard cutoff, and a read-out pooled over the structure."""
    torch.manual_seed(1)
    model = PaperEGNN([1, 6, 8, 14], width=24, n_frequencies=64)
    set_precision(model, precision)
    check_potential(Conservative(model), system(), smooth_cutoff=False, extensive=False)


def test_the_known_exceptions_of_the_published_network_are_real() -> None:
    torch.manual_seed(1)
    model = PaperEGNN([1, 6, 8, 14], width=24, n_frequencies=64)
    set_precision(model, "float64")
    with pytest.raises(AssertionError, match="smooth cutoff"):
        check_potential(Conservative(model), ethanol(), extensive=False)
    with pytest.raises(AssertionError, match="extensive"):
        check_potential(Conservative(model), ethanol(), smooth_cutoff=False)


def test_the_default_network_conserves_energy_as_the_step_is_refined() -> None:
    """Drift of velocity Verlet falls with dt²: nothing jumps."""
    torch.manual_seed(2)
    model = with_statistics(EGNN([1, 6, 8], width=16, n_channels=8))
    set_precision(model, "float64")
    worst = []
    for dt, n_steps in ((0.5, 40), (0.25, 80)):
        with torch.no_grad():
            frames = list(
                rollout(
                    Conservative(model), ethanol(), VelocityVerlet(dt * FS), n_steps, backprop=StopGradient()
                )
            )
        total = torch.cat([f.prediction.energy + f.state.kinetic_energy() for f in frames])
        worst.append(float((total - total[0]).abs().max()))
    assert worst[0] < 1e-3
    assert worst[0] / worst[1] == pytest.approx(4.0, rel=0.1)


def test_blocks_of_pairs_do_not_change_the_default_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_statistics(EGNN([1, 6, 8]))
    model.set_precision("float64")
    state = ethanol()
    found = []
    for size in (7, 1000):
        monkeypatch.setattr("dyntrain.models.egnn.PAIRS_AT_A_TIME", size)
        prediction = Conservative(model)(state, neighbor_list(state, model.cutoff))
        gradients = torch.autograd.grad(prediction.forces.pow(2).sum(), model.mixing)
        found.append([prediction.energy, prediction.forces, *gradients])
    for small, large in zip(*found, strict=True):
        torch.testing.assert_close(small, large, rtol=1e-10, atol=1e-10)


def test_the_envelope_ends_smoothly() -> None:
    x = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    value = envelope(x)
    derivatives = [value]
    for _ in range(3):
        (slope,) = torch.autograd.grad(derivatives[-1].sum(), x, create_graph=True)
        derivatives.append(slope)
    assert float(value[0].detach()) == 1.0
    assert [float(d[1].detach()) for d in derivatives] == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", ["egnn", "paper_egnn"])
def test_lone_atoms_have_an_energy_and_no_forces(name: str) -> None:
    model = build_model(name, elements=[1, 8])
    state = concatenate([State.from_arrays(np.zeros((1, 3)), [z], [1.0]) for z in (1, 8)])
    energy, forces = Conservative(model)(state, neighbor_list(state, model.cutoff))
    assert torch.isfinite(energy).all() and energy.shape == (2,)
    assert torch.equal(forces, torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", ["egnn", "paper_egnn"])
def test_an_element_it_was_not_made_for_is_named(name: str) -> None:
    model = build_model(name, elements=[1, 6])
    state = ethanol()
    with pytest.raises(UserError, match="the structure holds O, but the model knows only H, C"):
        Conservative(model)(state, neighbor_list(state, model.cutoff))


# --- model files --------------------------------------------------------------------------------------------


def energy_of(model: EnergyModel, state: State) -> float:
    with torch.no_grad():
        return float(Conservative(model)(state, neighbor_list(state, model.cutoff)).energy)


@pytest.mark.parametrize("name", ["egnn", "paper_egnn"])
@every_precision
def test_a_saved_model_is_the_same_when_loaded(name: str, precision: str, tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = build_model(name, elements=[1, 6, 8], cutoff=4.0, width=16)
    if isinstance(model, EGNN):
        with_statistics(model)
    set_precision(model, precision)
    model.eval()  # as a loaded one is
    path = tmp_path / "model.pt"
    save_model(Conservative(model), path, provenance={"data": "none"})
    loaded = load_model(path)
    assert loaded.cutoff == 4.0 and loaded.elements == (1, 6, 8)
    assert {p.dtype for p in loaded.parameters()} == {getattr(torch, precision)}
    assert energy_of(loaded.energy_model, ethanol()) == energy_of(model, ethanol())
    other = "float64" if precision == "float32" else "float32"
    cast = load_model(path, precision=other)
    assert {p.dtype for p in cast.parameters()} == {getattr(torch, other)}
    assert energy_of(cast.energy_model, ethanol()) == pytest.approx(energy_of(model, ethanol()), rel=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_a_model_file_holds_tensors_and_text_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_model(Conservative(build_model("egnn", elements=[1], width=8)), path)
    record = torch.load(path, weights_only=True)
    assert set(record) == {"format", "version", "header", "tensors"}
    assert json.loads(record["header"])["settings"]["elements"] == [1]
    assert all(isinstance(tensor, Tensor) for tensor in record["tensors"].values())


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "model.pt"
    save_model(Conservative(build_model("egnn", elements=[1], width=8)), whole)
    cut, text, other, newer, misfit, damaged, headless = (
        tmp_path / f"{n}.pt" for n in ("cut", "text", "other", "newer", "misfit", "damaged", "headless")
    )
    cut.write_bytes(whole.read_bytes()[:2000])
    text.write_text("data: [a]")
    torch.save({"weights": torch.zeros(3)}, other)
    record = torch.load(whole, weights_only=True)
    torch.save({**record, "version": 99}, newer)
    torch.save({**record, "header": record["header"].replace('"width": 8', '"width": 9')}, misfit)
    torch.save({**record, "header": record["header"][:-3]}, damaged)
    torch.save({name: value for name, value in record.items() if name != "header"}, headless)
    for path, sentence in (
        (tmp_path, "is a folder: name the model file in it"),
        (damaged, "is a damaged dyntrain model file"),
        (headless, "is a damaged dyntrain model file (KeyError('header'))"),
        (tmp_path / "none.pt", "there is no model file"),
        (cut, "is not a dyntrain model file, or it is damaged"),
        (text, "is not a dyntrain model file, or it is damaged"),
        (other, "is not a dyntrain model file"),
        (newer, "upgrade dyntrain"),
        (misfit, "its tensors do not fit its settings (size mismatch for"),
    ):
        with pytest.raises(UserError) as error:
            load_model(path)
        assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"widht": 3}, "the network egnn has no setting `widht`: did you mean `width`?"),
        ({"xyzzy": 3}, "the network egnn has no setting `xyzzy`: it has elements, cutoff,"),
        ({"width": 0}, "the network egnn needs a whole number above 0 as `width`, got 0"),
        ({"width": 2.5}, "the network egnn needs a whole number above 0 as `width`, got 2.5"),
        ({"width": "wide"}, "the network egnn needs a whole number above 0 as `width`, got 'wide'"),
        ({"cutoff": -1.0}, "the network egnn needs a number above 0 as `cutoff`, got -1.0"),
    ],
)
def test_wrong_settings_are_told_in_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        build_model("egnn", elements=[1], **settings)
    assert sentence in str(error.value)


def test_an_unknown_network_is_told() -> None:
    with pytest.raises(UserError, match="there is no network 'mce'; choose one of egnn, paper_egnn"):
        build_model("mce", elements=[1])
