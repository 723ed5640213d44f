"""SevenNet: the public contract, its own calculator's numbers, round trip, the models its wheel ships."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("sevenn")

import e3nn
from native_checks import (
    ELEMENTS,
    FLOAT32_ENERGY,
    FLOAT32_FORCES,
    assert_is_calculator,
    assert_round_trip,
    assert_starts_at_the_scale_of_its_data,
    copper,
    ethanol,
    losses_of_fine_tuning,
    magnesium_oxide,
    predict,
    slab,
    structures,
    water,
)

from dyntrain.adapters.sevennet import SevenNetModel
from dyntrain.errors import UserError
from dyntrain.models.files import set_precision
from dyntrain.models.native import list_contents
from dyntrain.potential import Conservative
from dyntrain.state import State, concatenate
from dyntrain.testing import check_potential


def small(precision: str = "float32", cutoff: float = 4.0, **settings: object) -> SevenNetModel:
    torch.manual_seed(0)
    small_nets = {"weight_nn_hidden_neurons": [8]}
    arguments = {"channel": 4, "lmax": 1, "num_convolution_layer": 2, "architecture": small_nets, **settings}
    model = SevenNetModel(ELEMENTS, cutoff=cutoff, **arguments).eval()
    model.set_statistics(torch.linspace(-3.0, 1.0, 5, dtype=torch.float64), 2.0, 10.0)
    set_precision(model, precision)
    return model


def test_contract_in_float64_on_molecules_and_a_crystal() -> None:
    state = concatenate([State.from_ase(water()), State.from_ase(magnesium_oxide())])
    check_potential(Conservative(small("float64", lmax=2, num_convolution_layer=3, cutoff=3.0)), state)


def test_contract_in_float32() -> None:
    check_potential(Conservative(small()), State.from_ase(water()))


def test_round_trip(tmp_path: Path) -> None:
    assert_round_trip(small(), tmp_path / "trained.pth", FLOAT32_ENERGY, FLOAT32_FORCES)
    assert SevenNetModel.recognises(list_contents(tmp_path / "trained.pth"))


def test_what_it_exports_needs_no_trust(tmp_path: Path) -> None:
    small().export(tmp_path / "model.pth")
    torch.load(tmp_path / "model.pth", weights_only=True)


def test_float64_is_exported_in_the_precision_sevennet_has(tmp_path: Path) -> None:
    model = small("float64")
    model.export(tmp_path / "model.pth")
    calculator = SevenNetModel.native_calculator(tmp_path / "model.pth")
    assert_is_calculator(model, calculator, [ethanol()], FLOAT32_ENERGY, FLOAT32_FORCES)
    with pytest.raises(UserError, match="float32 only"):
        SevenNetModel.native_calculator(tmp_path / "model.pth", precision="float64")


def test_tables_are_exact_again_in_float64() -> None:
    """Rotations by 1e-10 (within the contract) need Wigner's 3j in all digits, after float32 as before."""
    model = small("float32", lmax=2, num_convolution_layer=3)
    set_precision(model, "float64")
    table = next(b for name, b in model.module.named_buffers() if "w3j_1_1_2" in name)
    # Normalised to 1 over its entries.
    assert abs(float(table.square().sum()) - 1.0) < 1e-14


def test_statistics() -> None:
    model = small()
    assert_starts_at_the_scale_of_its_data(model)
    assert float(model.module.get_submodule("0_convolution").denominator) == 12.0


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds S"):
        predict(small(), State.from_arrays([[0.0, 0, 0]], [16], [32.0]))
    with pytest.raises(UserError, match="`chanel`"):
        small(architecture={"chanel": 3})
    with pytest.raises(UserError, match="no modalities"):
        small(modality="PBE")
    with pytest.raises(UserError, match="it has sevennet-0, "):
        SevenNetModel.pretrained("sevennet-9")
    torch.save({"config": {"version": "0.13.0"}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds no SevenNet model"):
        SevenNetModel.from_file(tmp_path / "other.pth")


@pytest.mark.shared
@pytest.mark.parametrize("name", ["sevennet-0", "sevennet-mf-0-r2scan"])
def test_pretrained_equals_its_calculator(name: str, tmp_path: Path, shared_data: Path) -> None:
    from sevenn.calculator import SevenNetCalculator

    model = SevenNetModel.pretrained(name).eval()
    if name == "sevennet-0":
        calculator = SevenNetCalculator("7net-0", device="cpu")
        atoms = [*structures(), slab(shared_data)]
    else:
        # The exported file keeps the modality: its own calculator needs no other argument.
        model.export(tmp_path / "model.pth")
        calculator = SevenNetModel.native_calculator(tmp_path / "model.pth")
        assert calculator.modal == "R2SCAN"
        atoms = [ethanol(), copper()]
    assert_is_calculator(model, calculator, atoms, FLOAT32_ENERGY, FLOAT32_FORCES)


@pytest.mark.shared
def test_fine_tuning_through_a_roll_out(shared_data: Path) -> None:
    losses = losses_of_fine_tuning(SevenNetModel.pretrained("sevennet-0"), shared_data, lr=2e-4)
    assert losses[-1] < 0.9 * losses[0]


def test_a_file_does_not_depend_on_how_e3nn_generates_code() -> None:
    """Importing NequIP turns e3nn's switch, which decides whether constants of generated code are tensors."""
    before = e3nn.get_optimization_defaults()["jit_mode"]
    states = {}
    try:
        for mode in ("eager", "script"):
            e3nn.set_optimization_defaults(jit_mode=mode)
            states[mode] = small().state_dict()
            small().load_state_dict(states["eager"])
    finally:
        e3nn.set_optimization_defaults(jit_mode=before)
    assert set(states["eager"]) == set(states["script"])
