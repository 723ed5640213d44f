"""TorchANI: the public contract, its own calculator's numbers, round trip; new models only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchani")

from native_checks import (
    ELEMENTS,
    EXACT,
    FLOAT32_ENERGY,
    FLOAT32_FORCES,
    assert_is_calculator,
    assert_round_trip,
    assert_starts_at_the_scale_of_its_data,
    magnesium_oxide,
    predict,
    slab,
    water,
)

from dyntrain.adapters.torchani import TorchANIModel
from dyntrain.errors import UserError
from dyntrain.models.files import set_precision
from dyntrain.models.native import list_contents
from dyntrain.potential import Conservative
from dyntrain.state import State, concatenate
from dyntrain.testing import check_potential


def small(precision: str = "float64", elements: list[int] = ELEMENTS, **architecture: Any) -> TorchANIModel:
    torch.manual_seed(0)
    sizes = {"radial_shifts": 4, "angular_shifts": 2, "sections": 2}
    model = TorchANIModel(elements, 4.0, 3.0, **sizes, architecture=architecture).eval()
    shifts = torch.linspace(-3.0, 1.0, len(elements), dtype=torch.float64)
    model.set_statistics(shifts, 30.0, 10.0)
    set_precision(model, precision)
    return model


def test_contract_in_float64_on_molecules_and_a_crystal() -> None:
    state = concatenate([State.from_ase(water()), State.from_ase(magnesium_oxide())])
    check_potential(Conservative(small()), state)


def test_contract_in_float32() -> None:
    check_potential(Conservative(small("float32")), State.from_ase(water()))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_round_trip(precision: str, tmp_path: Path) -> None:
    tolerances = (EXACT, EXACT) if precision == "float64" else (FLOAT32_ENERGY, FLOAT32_FORCES)
    assert_round_trip(small(precision, ensemble_size=2), tmp_path / "trained.pt", *tolerances)
    assert TorchANIModel.recognises(list_contents(tmp_path / "trained.pt"))


@pytest.mark.shared
def test_slab_equals_its_calculator(tmp_path: Path, shared_data: Path) -> None:
    model = small(elements=[1, 6, 46])
    model.export(tmp_path / "model.pt")
    calculator = TorchANIModel.native_calculator(tmp_path / "model.pt")
    assert_is_calculator(model, calculator, [slab(shared_data)], EXACT, EXACT)


def test_statistics() -> None:
    assert_starts_at_the_scale_of_its_data(small(repulsion=False))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds S"):
        predict(small(), State.from_arrays([[0.0, 0, 0]], [16], [32.0]))
    with pytest.raises(UserError, match="`dispersion`"):
        small(dispersion=True)
    with pytest.raises(UserError, match="angular_cutoff below cutoff"):
        TorchANIModel([1], cutoff=3.0)
    with pytest.raises(UserError, match="ships none"):
        TorchANIModel.pretrained("ani2x")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "other.pt")
    with pytest.raises(UserError, match="holds a Linear"):
        TorchANIModel.from_file(tmp_path / "other.pt")
