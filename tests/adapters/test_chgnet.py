"""CHGNet: the public contract in both precisions, its own calculator's numbers in float32, round trip."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

pytest.importorskip("chgnet")

from native_checks import (
    ELEMENTS,
    FLOAT32_ENERGY,
    assert_is_calculator,
    assert_round_trip,
    assert_starts_at_the_scale_of_its_data,
    copper,
    ethanol,
    in_a_box,
    losses_of_fine_tuning,
    magnesium_oxide,
    predict,
    slab,
    structures,
    water,
)

from dyntrain.adapters.chgnet import CHGNetModel
from dyntrain.errors import UserError
from dyntrain.models.files import set_precision
from dyntrain.models.native import list_contents
from dyntrain.potential import Conservative
from dyntrain.state import State, concatenate
from dyntrain.testing import FLOAT64, check_potential

FORCES = 5e-5
"""Of the largest: in float32 the calculator's and our forces are each up to 2e-5 from those in float64."""


def small(precision: str = "float32", **settings: object) -> CHGNetModel:
    torch.manual_seed(0)
    arguments = {
        "cutoff": 4.0,
        "bond_graph_cutoff": 2.5,
        "width": 8,
        "n_conv": 3,
        "architecture": {"num_radial": 7, "num_angular": 5},
        **settings,
    }
    model = CHGNetModel(ELEMENTS, **arguments).eval()
    model.set_statistics(torch.linspace(-3.0, 1.0, 5, dtype=torch.float64), 2.0, 10.0)
    set_precision(model, precision)
    return model


def test_contract_in_float64_on_molecules_and_a_crystal() -> None:
    crystal = magnesium_oxide()
    state = concatenate([State.from_ase(water()), State.from_ase(crystal)])
    check_potential(Conservative(small("float64", cutoff=3.0)), state)


def test_contract_in_float32() -> None:
    check_potential(Conservative(small(width=16)), State.from_ase(water()))


def test_contract_of_the_pretrained_model_in_float64() -> None:
    """With short finite differences: its energy is rough on the scale of 0.001 Å."""
    model = CHGNetModel.pretrained("chgnet-0.3.0").eval()
    set_precision(model, "float64")
    short = dataclasses.replace(FLOAT64, step=1e-5, derivative=1e-6)
    check_potential(Conservative(model), State.from_ase(water()), tolerances=short)


def test_angles_that_open_and_close_are_smooth() -> None:
    """Energy and forces are continuous where a bond enters the range of angles, far inside the cutoff."""
    model = small("float64")
    model_range = model.config["bond_graph_cutoff"]

    def at(distance: float) -> tuple[torch.Tensor, torch.Tensor]:
        state = State.from_arrays([[0.0, 0, 0], [0, 0, 1.0], [0, distance, 0]], [8, 1, 1], [16.0, 1, 1])
        return predict(model, state)

    inside, outside = at(model_range - 1e-7), at(model_range + 1e-7)
    torch.testing.assert_close(inside.forces, outside.forces, rtol=0, atol=1e-6)
    assert abs(float(at(1.5).energy - at(2.0).energy)) > 1e-4


def test_round_trip(tmp_path: Path) -> None:
    assert_round_trip(small(), tmp_path / "trained.pth.tar", FLOAT32_ENERGY, FORCES, in_a_box)
    assert CHGNetModel.recognises(list_contents(tmp_path / "trained.pth.tar"))
    torch.load(tmp_path / "trained.pth.tar", weights_only=True)


def test_statistics() -> None:
    assert_starts_at_the_scale_of_its_data(small())


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds S"):
        predict(small(), State.from_arrays([[0.0, 0, 0]], [16], [32.0]))
    with pytest.raises(UserError, match="up to 94"):
        CHGNetModel([1, 95])
    with pytest.raises(UserError, match="jumps as the first angle appears"):
        small(architecture={"mlp_out_bias": True})
    with pytest.raises(UserError, match="`num_raidal`"):
        small(architecture={"num_raidal": 3})
    with pytest.raises(UserError, match="makes atoms far apart interact"):
        small(architecture={"mlp_first": False})
    with pytest.raises(UserError, match=r"it has chgnet-0\.3\.0, "):
        CHGNetModel.pretrained("chgnet-0.2.0")
    with pytest.raises(UserError, match="float32 only"):
        CHGNetModel.native_calculator(tmp_path / "model.pth.tar", precision="float64")
    torch.save({"config": 1}, tmp_path / "other.pth.tar")
    with pytest.raises(UserError, match="holds no CHGNet model"):
        CHGNetModel.from_file(tmp_path / "other.pth.tar")


@pytest.mark.shared
@pytest.mark.parametrize("name", ["chgnet-0.3.0", "chgnet-r2scan"])
def test_pretrained_equals_its_calculator(name: str, tmp_path: Path, shared_data: Path) -> None:
    from chgnet.model.dynamics import CHGNet, CHGNetCalculator

    model = CHGNetModel.pretrained(name).eval()
    calculator = CHGNetCalculator(CHGNet.load(model_name=name.removeprefix("chgnet-")), use_device="cpu")
    atoms = [*structures(), slab(shared_data)] if name == "chgnet-0.3.0" else [ethanol(), copper()]
    assert_is_calculator(model, calculator, atoms, FLOAT32_ENERGY, FORCES, in_a_box)
    model.export(tmp_path / "model.pth.tar")
    exported = CHGNetModel.native_calculator(tmp_path / "model.pth.tar")
    assert_is_calculator(model, exported, [ethanol()], FLOAT32_ENERGY, FORCES, in_a_box)


@pytest.mark.shared
def test_fine_tuning_through_a_roll_out(shared_data: Path) -> None:
    losses = losses_of_fine_tuning(CHGNetModel.pretrained("chgnet-0.3.0"), shared_data, lr=2e-4)
    assert losses[-1] < 0.9 * losses[0]
