"""Families of networks: found by name, opened when trusted, exported with proof; and your own network."""

from __future__ import annotations

import math
import os
import pickle
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from torch import Tensor, nn
from typer.testing import CliRunner

from dyntrain.adapters.base import default_dtype, directed_edges, environment_variable, require_version
from dyntrain.adapters.exporting import export, predict, sample_structure
from dyntrain.adapters.function import potential_from, potential_from_forces
from dyntrain.cli import app
from dyntrain.config import parse_config
from dyntrain.errors import UserError
from dyntrain.models import families
from dyntrain.models.files import build_model, load_model, load_weights, save_model
from dyntrain.models.native import list_contents, runs_code
from dyntrain.neighbors import neighbor_list, pair_vectors
from dyntrain.potential import Conservative, EnergyModel
from dyntrain.state import State, concatenate
from dyntrain.testing import check_potential
from dyntrain.training import train
from fake_family import Springs, SpringsCalculator
from training_runs import small_config, write_runs


def points(**values: str) -> dict[str, EntryPoint]:
    return {name: EntryPoint(name, value, families.GROUP) for name, value in values.items()}


@pytest.fixture
def springs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The fake package is installed, and that of MACE is not."""
    found = points(
        springs="fake_family:Springs",
        mace="dyntrain.adapters.mace:MACEModel",
        foreign="no_such_package:Model",
        wrong="fake_family:NoModel",
    )
    monkeypatch.setattr(families, "registered", lambda: found)
    for package in ("mace", "e3nn"):
        monkeypatch.setitem(sys.modules, package, None)
    yield


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return atoms


# --- families by name -----------------------------------------------------------------------------------


def test_our_adapters_are_registered() -> None:
    assert {"mace", "nequip", "allegro", "sevennet", "chgnet", "torchani"} <= set(families.registered())


@pytest.mark.usefixtures("springs")
def test_a_registered_family_is_built_saved_and_loaded(tmp_path: Path) -> None:
    model = build_model("springs", elements=[1, 6, 8], cutoff=2.5)
    model.set_statistics(torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64), 0.7, 4.0)
    save_model(Conservative(model), tmp_path / "model.pt")
    assert not runs_code(tmp_path / "model.pt")
    loaded = load_model(tmp_path / "model.pt")
    assert type(loaded.energy_model) is Springs
    assert float(predict(loaded, ethanol()).energy) == float(predict(Conservative(model), ethanol()).energy)
    check_potential(load_model(tmp_path / "model.pt", precision="float64"), State.from_ase(ethanol()))


@pytest.mark.usefixtures("springs")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "sprigs",
            "there is no network 'sprigs'; choose one of egnn, paper_egnn, foreign, mace, springs, wrong",
        ),
        ("mace", r'the network mace needs a package that is not installed .*pip install "dyntrain\[mace\]"'),
        ("foreign", r"foreign \(no_such_package:Model\) needs a package that is not installed"),
        ("wrong", r"the entry point fake_family:NoModel of dyntrain.models names no FamilyModel"),
    ],
)
def test_a_family_that_is_not_there(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_model(name, elements=[1])


def test_a_version_that_is_too_old() -> None:
    require_version("ase", "3.24")
    with pytest.raises(UserError, match=r"torch .* is too old: dyntrain needs 99.1 .*torch>=99.1"):
        require_version("torch", "99.1")


# --- other programs' files --------------------------------------------------------------------------------


@pytest.mark.usefixtures("springs")
def test_a_native_file_is_opened_only_when_trusted(tmp_path: Path) -> None:
    model, path = Springs([1, 6, 8], stiffness=0.5), tmp_path / "native.pkl"
    model.export(path)
    with pytest.raises(
        UserError, match=r"is a springs model in a format that can hold program code.*--trust"
    ):
        load_model(path)
    loaded = load_model(path, trust=True)
    assert float(predict(loaded, ethanol()).energy) == float(predict(Conservative(model), ethanol()).energy)


class Attack:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.usefixtures("springs")
@pytest.mark.parametrize("protocol", [2, 5])
def test_looking_into_a_file_runs_none_of_it(tmp_path: Path, protocol: int) -> None:
    ran = tmp_path / "it ran"
    plain, archive = tmp_path / "plain.pkl", tmp_path / "archive.pt"
    plain.write_bytes(pickle.dumps(["dyntrain model", Attack(ran)], protocol=protocol))
    torch.save({"format": "dyntrain model", "x": Attack(ran)}, archive)
    for path in (plain, archive):
        assert "posix.mkdir" in list_contents(path).globals
        assert runs_code(path)
        with pytest.raises(UserError, match="is not a dyntrain model file, or it is damaged"):
            load_model(path)
    archive.unlink()
    torch.save({"x": Attack(ran)}, archive)
    with pytest.raises(UserError, match="nor does springs recognise it; not installed, so not tried"):
        load_model(archive, trust=True)
    assert not ran.exists()


@pytest.mark.usefixtures("springs")
def test_a_file_of_a_family_that_is_not_installed_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "registered", lambda: points(fake_family="no_such_package:Model"))
    Springs([1]).export(tmp_path / "native.pkl")
    with pytest.raises(UserError, match=r"the network fake_family .* needs a package that is not installed"):
        load_model(tmp_path / "native.pkl", trust=True)


@pytest.mark.usefixtures("springs")
def test_pretrained_models_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert float(load_model("springs-1").energy_model.module.stiffness.detach()) == 2.0
    with pytest.raises(UserError, match=r"no model file springs-2.* \(the installed ones ship springs-1\)"):
        load_model("springs-2")
    with pytest.raises(UserError, match="needs a package that is not installed"):
        load_model("mace-large")
    with pytest.raises(UserError, match="has no pretrained model 'springs-2'; it has springs-1"):
        Springs.pretrained("springs-2")
    with pytest.raises(UserError, match=r"egnn family has no pretrained model .*; its package ships none"):
        families.MODELS["egnn"].pretrained("egnn-1")


@pytest.mark.usefixtures("springs")
def test_a_pretrained_model_imports_its_own_package_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []
    family = families.family
    monkeypatch.setattr(families, "family", lambda name: (asked.append(name), family(name))[1])
    load_model("springs-1")
    assert asked == ["springs"]


@pytest.mark.usefixtures("springs")
def test_a_file_whose_settings_name_functions_needs_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain data to torch, but the family's program would call what is named in it."""
    torch.save({"fake_family.RawSprings": {"_target_": "os.mkdir"}}, tmp_path / "plain.ckpt")
    assert not runs_code(tmp_path / "plain.ckpt")
    monkeypatch.setattr(Springs, "recognises", lambda contents: True)
    monkeypatch.setattr(Springs, "files_name_code", True)
    with pytest.raises(UserError, match="--trust"):
        load_model(tmp_path / "plain.ckpt")


# --- export -------------------------------------------------------------------------------------------------


def test_export_writes_what_the_familys_own_calculator_confirms(tmp_path: Path) -> None:
    potential = Conservative(Springs([1, 6, 8]))
    found = export(potential, tmp_path / "native.pkl", ethanol())
    assert found.energy < 1e-6 and found.forces < 1e-5
    assert [p.name for p in tmp_path.iterdir()] == ["native.pkl"]
    atoms = ethanol()
    atoms.calc = Springs.native_calculator(tmp_path / "native.pkl")
    assert atoms.get_potential_energy() == pytest.approx(
        float(predict(potential, ethanol()).energy), rel=1e-6
    )


def test_export_refuses_what_it_does_not_confirm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def calculator(path: Path, device: str, precision: str) -> SpringsCalculator:
        return SpringsCalculator(torch.load(path, weights_only=False), wrong_by=0.1)

    monkeypatch.setattr(Springs, "native_calculator", staticmethod(calculator))
    with pytest.raises(UserError, match=r"was not written: the springs package's own calculator gives other"):
        export(Conservative(Springs([1, 6, 8])), tmp_path / "native.pkl")
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_other_format_is_told(tmp_path: Path) -> None:
    egnn = Conservative(build_model("egnn", elements=[1], width=8))
    with pytest.raises(UserError, match=r"no format beside dyntrain's own: its model.pt is what"):
        export(egnn, tmp_path / "x.pt")
    with pytest.raises(UserError, match="is of no family that has a format to export to"):
        export(potential_from(lambda distances: distances, cutoff=3.0), tmp_path / "x.pt")
    with pytest.raises(UserError, match="there is no folder"):
        export(Conservative(Springs([1])), tmp_path / "none" / "x.pkl")


def test_the_structure_it_is_confirmed_on_has_many_elements() -> None:
    atoms = sample_structure(Springs(range(1, 90)))
    assert len(set(atoms.numbers)) == 8
    distances = atoms.get_all_distances(mic=True) + 9.0 * np.eye(8)
    assert distances.min() > 1.0 and distances.min(0).max() < 2.0


@pytest.mark.usefixtures("springs")
def test_the_commands_take_native_files(tmp_path: Path) -> None:
    save_model(Conservative(Springs([1, 6, 8])), tmp_path / "model.pt")
    native = str(tmp_path / "native.pkl")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "model.pt"), "--output", native])
    assert done.exit_code == 0 and done.stdout.splitlines()[-1] == native
    run = write_runs(tmp_path / "runs")["validation"][0]
    options = [native, run, "--horizon", "2", "--starts", "2", "--free-runs", "0"]
    refused = CliRunner().invoke(app, ["evaluate", *options])
    assert isinstance(refused.exception, UserError) and "--trust" in str(refused.exception)
    assert CliRunner().invoke(app, ["evaluate", *options, "--trust"]).exit_code == 0
    motion = [native, run, "--steps", "2", "--output", str(tmp_path / "md.traj")]
    assert isinstance(CliRunner().invoke(app, ["md", *motion]).exception, UserError)
    assert CliRunner().invoke(app, ["md", *motion, "--trust"]).exit_code == 0


# --- what adapters share --------------------------------------------------------------------------------


def test_directed_edges_hold_every_pair_twice() -> None:
    atoms = Atoms("HO", [[0.0, 0, 0], [1.0, 0.2, 0.1]], cell=[2.0, 2.5, 3.0], pbc=[True, False, True])
    state = concatenate([State.from_ase(atoms), State.from_ase(ethanol())])
    neighbors = neighbor_list(state, 3.0)
    edges = directed_edges(state, neighbors)
    vectors, forth = edges.vectors(state.positions), pair_vectors(state, neighbors)
    torch.testing.assert_close(vectors, torch.cat([forth, -forth]), rtol=0, atol=1e-15)
    assert torch.equal(edges.source[: neighbors.n_pairs], edges.target[neighbors.n_pairs :])


def test_what_is_set_for_a_while_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNTRAIN_TEST", "before")
    for value in ("inside", None):
        with environment_variable("DYNTRAIN_TEST", value):
            assert os.environ.get("DYNTRAIN_TEST") == value
        assert os.environ["DYNTRAIN_TEST"] == "before"
    with pytest.raises(ZeroDivisionError), default_dtype(torch.float64):
        raise ZeroDivisionError(str(torch.get_default_dtype()))
    assert torch.get_default_dtype() == torch.float32


# --- your own network -------------------------------------------------------------------------------------


class Density(nn.Module):
    """Energies of the atoms from a smooth density of their neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.read_out = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1)).double()

    def forward(self, distances: Tensor, atomic_numbers: Tensor, i: Tensor, j: Tensor) -> Tensor:
        ranges = torch.arange(1.0, 5.0, dtype=torch.float64)
        shells = torch.exp(-distances[:, None] / ranges) * (1.0 - (distances[:, None] / 4.0) ** 2) ** 4
        density = shells.new_zeros(len(atomic_numbers), 4).index_add(
            0, i, shells * atomic_numbers[j][:, None]
        )
        return self.read_out(density)


class Pull(nn.Module):
    """Forces of its own, and an energy that has nothing to do with them."""

    def __init__(self, detached: bool = False) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.detached = detached

    def forward(
        self, vectors: Tensor, distances: Tensor, i: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        pulls = self.strength * vectors * ((1.0 - (distances / 4.0) ** 2) ** 4)[:, None]
        forces = torch.zeros_like(positions).index_add(0, i, pulls)
        return self.strength.expand(len(positions)), forces.detach() if self.detached else forces


def test_a_module_of_energies_is_a_potential() -> None:
    torch.manual_seed(0)
    potential = potential_from(Density(), cutoff=4.0, elements=[1, 6, 8])
    check_potential(potential, concatenate([State.from_ase(ethanol()), State.from_ase(molecule("H2O"))]))
    assert potential.conservative and potential.elements == (1, 6, 8)
    with pytest.raises(UserError, match="holds Ar"):
        predict(potential, Atoms("Ar"))


def test_a_function_gives_energies_of_systems_or_atoms() -> None:
    def of_systems(distances: Tensor, i: Tensor, system_idx: Tensor, n_systems: int) -> Tensor:
        return distances.new_zeros(n_systems).index_add(0, system_idx[i], 0.5 * (distances - 1.0) ** 2)

    def of_atoms(distances: Tensor, i: Tensor, atomic_numbers: Tensor) -> Tensor:
        return distances.new_zeros(len(atomic_numbers)).index_add(0, i, 0.5 * (distances - 1.0) ** 2)

    state = concatenate([State.from_ase(ethanol()), State.from_ase(molecule("H2O"))])
    one, other = (
        potential_from(f, cutoff=20.0)(state, neighbor_list(state, 20.0)) for f in (of_systems, of_atoms)
    )
    torch.testing.assert_close(one.energy, other.energy)
    torch.testing.assert_close(one.forces, other.forces)


def test_forces_without_an_energy_are_marked() -> None:
    potential = potential_from_forces(Pull(), cutoff=4.0)
    assert not potential.conservative
    check_potential(potential, State.from_ase(ethanol()))


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (lambda charges: charges, "may ask for positions, .*; <lambda> has the argument `charges`"),
        (lambda positions: positions, r"one energy per system \[1\] or per atom \[9\], got \(9, 3\)"),
        (lambda n_systems: 1.0, "got float"),
        (lambda positions: positions.detach().sum(-1), "cannot be trained through: the model detached"),
        (lambda positions: positions.half().sum(-1), r"energies in float32 or float64, got torch\.float16"),
        (3, "a function or nn.Module is expected, got 3"),
    ],
)
def test_what_cannot_be_a_potential(model: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        potential = potential_from(model, cutoff=3.0)
        potential(State.from_ase(ethanol()), neighbor_list(State.from_ase(ethanol()), 3.0))


@pytest.mark.parametrize("cutoff", [0, -1.0, math.nan, "5"])
def test_a_cutoff_is_a_length(cutoff: Any) -> None:
    with pytest.raises(UserError, match="cutoff must be a length above 0 in Å"):
        potential_from(lambda positions: positions.sum(-1), cutoff=cutoff)


def test_elements_are_atomic_numbers() -> None:
    with pytest.raises(UserError, match=r"atomic numbers 1 … 118, got \['H', 'O'\]"):
        potential_from(lambda positions: positions.sum(-1), cutoff=3.0, elements=["H", "O"])  # type: ignore[list-item]


def test_forces_that_cannot_be_trained() -> None:
    state = State.from_ase(ethanol())
    neighbors = neighbor_list(state, 4.0)
    with pytest.raises(
        UserError, match=r"forces of Pull do not depend on its parameters .* cannot be trained"
    ):
        potential_from_forces(Pull(detached=True), cutoff=4.0)(state, neighbors)
    with pytest.raises(UserError, match=r"must give \(energy, forces\), the forces of shape \[9, 3\]"):
        potential_from_forces(lambda positions: (positions.sum(-1), 0.0), cutoff=4.0)(state, neighbors)
    with pytest.raises(UserError, match=r"must give \(energy, forces\)"):
        potential_from_forces(lambda positions: positions, cutoff=4.0)(state, neighbors)  # type: ignore[arg-type, return-value]


class Rewrapped(EnergyModel):
    """As adapters must not do it: the graph to the positions is cut."""

    cutoff = 3.0
    config: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.inner = Springs([1, 6, 8])

    def forward(self, state: State, neighbors: Any) -> Tensor:
        return self.inner(state.replace(positions=state.positions.detach()), neighbors)


def test_an_adapter_that_cuts_the_graph_is_refused() -> None:
    state = State.from_ase(ethanol())
    with pytest.raises(UserError, match=r"Rewrapped does not depend on .* so it has no forces and cannot be"):
        Conservative(Rewrapped())(state, neighbor_list(state, 3.0))


@pytest.mark.parametrize("kind", ["energies", "forces"])
def test_your_own_network_is_trained_in_python(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)

    def new() -> Any:
        if kind == "energies":
            return potential_from(Density(), cutoff=4.0)
        return potential_from_forces(Pull(), cutoff=4.0)

    potential = new()
    before = {name: tensor.clone() for name, tensor in potential.state_dict().items()}
    values = small_config(write_runs(tmp_path / "runs"), tmp_path / "out", model={})
    result = train(parse_config(values), potential=potential)
    assert result.finished == "the budget is spent"
    assert any(not torch.equal(before[name], tensor) for name, tensor in potential.state_dict().items())
    mark = "" if kind == "energies" else r" that gives forces directly \(not conservative\)"
    with pytest.raises(UserError, match=f"a network of your own{mark}, which dyntrain cannot build"):
        load_model(result.model)
    fresh = new()
    load_weights(fresh, result.model)
    assert torch.isfinite(predict(fresh, ethanol()).energy).all()
    with pytest.raises(UserError, match="its tensors do not fit"):
        load_weights(Conservative(build_model("egnn", elements=[1], width=8)), result.model)


def test_a_given_potential_leaves_nothing_to_start_from(tmp_path: Path) -> None:
    values = small_config(write_runs(tmp_path / "runs"), tmp_path / "out", model={}, start_from="model.pt")
    with pytest.raises(UserError, match="start_from: a potential was given to train"):
        train(parse_config(values), potential=potential_from(Density(), cutoff=4.0))
