"""NequIP and Allegro: the public contract, their own calculator's numbers to the last digits, round trip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("nequip")
pytest.importorskip("allegro")

from native_checks import (
    ELEMENTS,
    EXACT,
    FLOAT32_ENERGY,
    FLOAT32_FORCES,
    assert_is_calculator,
    assert_round_trip,
    assert_starts_at_the_scale_of_its_data,
    ethanol,
    in_a_box,
    magnesium_oxide,
    predict,
    run_command,
    slab,
    train_two_steps,
    water,
    write_labelled_molecules,
)

from dyntrain.adapters.allegro import AllegroModel
from dyntrain.adapters.exporting import export
from dyntrain.adapters.nequip import NequIPFramework, NequIPModel
from dyntrain.errors import UserError
from dyntrain.models.files import load_model, set_precision
from dyntrain.models.native import list_contents
from dyntrain.potential import Conservative
from dyntrain.state import State, concatenate
from dyntrain.testing import check_potential

SMALL: dict[type[NequIPFramework], dict[str, Any]] = {
    NequIPModel: {
        "num_layers": 2,
        "l_max": 2,
        "num_features": 4,
        "architecture": {"radial_mlp_width": 8, "parity": False, "num_features": [4, 3, 2]},
    },
    AllegroModel: {
        "num_layers": 2,
        "l_max": 2,
        "num_scalar_features": 8,
        "num_tensor_features": 4,
        "architecture": {
            "scalar_embed_mlp_hidden_layers_width": 8,
            "allegro_mlp_hidden_layers_width": 8,
            "readout_mlp_hidden_layers_width": 8,
        },
    },
}
both = pytest.mark.parametrize("family", SMALL, ids=lambda family: family.family)
precisions = pytest.mark.parametrize("precision", ["float32", "float64"])


def small(family: type[NequIPFramework], precision: str = "float64", **settings: Any) -> NequIPFramework:
    torch.manual_seed(0)
    model = family(ELEMENTS, **{"cutoff": 4.0, **SMALL[family], **settings})
    model.set_statistics(torch.linspace(-3.0, 1.0, 5, dtype=torch.float64), 2.0, 10.0)
    set_precision(model, precision)
    return model.eval()


@both
def test_contract_in_float64_on_molecules_and_a_crystal(family: type[NequIPFramework]) -> None:
    state = concatenate([State.from_ase(water()), State.from_ase(magnesium_oxide())])
    check_potential(Conservative(small(family, cutoff=3.0)), state)


@both
def test_contract_in_float32(family: type[NequIPFramework]) -> None:
    check_potential(Conservative(small(family, "float32")), State.from_ase(water()))


@both
@precisions
def test_round_trip(family: type[NequIPFramework], precision: str, tmp_path: Path) -> None:
    tolerances = (EXACT, EXACT) if precision == "float64" else (FLOAT32_ENERGY, FLOAT32_FORCES)
    path = tmp_path / "trained.nequip.zip"
    assert_round_trip(small(family, precision), path, *tolerances)
    contents = list_contents(path)
    assert [kind for kind in SMALL if kind.recognises(contents)] == [family]


def training_settings(family: type[NequIPFramework]) -> dict[str, Any]:
    """Of ``nequip-train``: two epochs on eight molecules, statistics from them."""
    types = ["H", "C", "O"]
    block = {**SMALL[family], **SMALL[family]["architecture"]}
    del block["architecture"]
    if family is AllegroModel:
        block["radial_chemical_embed"] = {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 4}
    loader = {"_target_": "torch.utils.data.DataLoader", "batch_size": 2}
    energy_and_forces = {"_target_": "nequip.train.EnergyForceLoss", "per_atom_energy": True}
    metrics = {"_target_": "nequip.train.EnergyForceMetrics"}
    checkpoint = {
        "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
        "dirpath": ".",
        "filename": "best",
    }
    return {
        "run": ["train"],
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule",
            "seed": 1,
            "split_dataset": {"file_path": "frames.extxyz", "train": 6, "val": 2},
            "transforms": [
                {
                    "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
                    "model_type_names": types,
                },
                {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": 4.0},
            ],
            "train_dataloader": loader,
            "val_dataloader": loader,
            "stats_manager": {"_target_": "nequip.data.CommonDataStatisticsManager", "type_names": types},
        },
        "trainer": {
            "_target_": "lightning.Trainer",
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": False,
            "callbacks": [checkpoint],
        },
        "training_module": {
            "_target_": "nequip.train.EMALightningModule",
            "loss": {**energy_and_forces, "coeffs": {"total_energy": 1.0, "forces": 1.0}},
            "val_metrics": {**metrics, "coeffs": {"total_energy_mae": 1.0, "forces_mae": 1.0}},
            "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01},
            "model": {
                "_target_": f"{family.family}.model.{next(iter(family.builders))}",
                "seed": 1,
                "model_dtype": "float64",
                "type_names": types,
                "r_max": 4.0,
                **block,
                "avg_num_neighbors": "${training_data_stats:num_neighbors_mean}",
                "per_type_energy_shifts": "${training_data_stats:per_atom_energy_mean}",
                "per_type_energy_scales": "${training_data_stats:per_type_forces_rms}",
            },
        },
    }


@both
@pytest.mark.slow
def test_files_that_nequips_commands_made(family: type[NequIPFramework], tmp_path: Path) -> None:
    write_labelled_molecules(tmp_path / "frames.extxyz")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(training_settings(family)))
    run_command("nequip-train", "-cp", str(tmp_path), "-cn", "tiny", "hydra.run.dir=.", folder=tmp_path)
    run_command("nequip-package", "build", "best.ckpt", "tiny.nequip.zip", folder=tmp_path)
    with pytest.raises(UserError, match="--trust"):
        load_model(tmp_path / "best.ckpt")
    calculator = family.native_calculator(tmp_path / "tiny.nequip.zip")
    for name in ("tiny.nequip.zip", "best.ckpt"):
        model = load_model(tmp_path / name, trust=True).energy_model
        assert type(model) is family
        assert_is_calculator(model, calculator, [ethanol(), water()], EXACT, EXACT, in_a_box)
    train_two_steps(model, ethanol())
    export(Conservative(model), tmp_path / "trained.nequip.zip", in_a_box(ethanol()))


@both
@pytest.mark.shared
def test_slab_equals_its_calculator(family: type[NequIPFramework], tmp_path: Path, shared_data: Path) -> None:
    torch.manual_seed(0)
    model = family([1, 6, 46], **{"cutoff": 4.0, **SMALL[family]})
    model.set_statistics(torch.tensor([-3.0, -1.0, 1.0]).double(), 2.0, 30.0)
    set_precision(model, "float64")
    model.export(tmp_path / "model.nequip.zip")
    calculator = family.native_calculator(tmp_path / "model.nequip.zip")
    assert_is_calculator(model, calculator, [slab(shared_data)], EXACT, EXACT)


@both
def test_statistics(family: type[NequIPFramework]) -> None:
    model = small(family)
    assert_starts_at_the_scale_of_its_data(model)
    assert model.config["architecture"]["avg_num_neighbors"] == 12.0


@both
def test_precision_keeps_what_was_learnt_and_frozen(family: type[NequIPFramework]) -> None:
    model = small(family, "float32")
    next(model.parameters()).requires_grad_(False)
    exact = small(family, "float64")
    set_precision(model, "float64")
    found, expected = (predict(m, State.from_ase(ethanol())) for m in (model, exact))
    torch.testing.assert_close(found.energy, expected.energy, rtol=1e-6, atol=0)
    assert [p.requires_grad for p in model.parameters()][:2] == [False, True]
    assert model.elements == (1, 6, 8, 12, 29)


@both
def test_nothing_of_nequips_global_state_stays(family: type[NequIPFramework]) -> None:
    torch.manual_seed(5)
    one = small(family)
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.rand(3), (small(family), torch.rand(3))[1])
    other = family(ELEMENTS, **{"cutoff": 4.0, **SMALL[family]})
    assert not torch.equal(next(one.parameters()), next(other.parameters()).double())


@both
def test_refusals(family: type[NequIPFramework], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds S"):
        predict(small(family), State.from_arrays([[0.0, 0, 0]], [16], [32.0]))
    with pytest.raises(UserError, match="`paritty`"):
        small(family, architecture={"paritty": True})
    with pytest.raises(UserError, match="no builder 'Other'"):
        small(family, architecture={"builder": "Other"})
    with pytest.raises(UserError, match=r"`os.system` is not one of allegro.nn"):
        small(family, architecture={"pair_potential": {"_target_": "os.system", "command": "true"}})
    with pytest.raises(UserError, match=r"named \*.nequip.zip only"):
        small(family).export(tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())


def test_one_family_refuses_the_other_ones_file(tmp_path: Path) -> None:
    small(AllegroModel).export(tmp_path / "model.nequip.zip")
    with pytest.raises(UserError, match="was built by AllegroModel; dyntrain knows NequIPGNNModel"):
        NequIPModel.from_file(tmp_path / "model.nequip.zip")


def test_a_pair_potential_comes_along(tmp_path: Path) -> None:
    zbl = {"_target_": "nequip.nn.pair_potential.ZBL", "units": "metal", "chemical_species": ["C", "H", "O"]}
    torch.manual_seed(0)
    settings = {**SMALL[NequIPModel], "architecture": {"pair_potential": zbl, "radial_mlp_width": 8}}
    model = NequIPModel([6, 1, 8], cutoff=3.0, **settings)
    model.export(tmp_path / "model.nequip.zip")
    again = NequIPModel.from_file(tmp_path / "model.nequip.zip")
    state = State.from_ase(ethanol())
    torch.testing.assert_close(predict(again, state).energy, predict(model, state).energy, rtol=1e-6, atol=0)
    settings["architecture"].pop("pair_potential")
    without = NequIPModel([6, 1, 8], cutoff=3.0, **settings)
    without.module.load_state_dict(model.module.state_dict(), strict=False)
    assert abs(float(predict(without, state).energy - predict(model, state).energy)) > 1.0
