"""MACE: the public contract, its own calculator's numbers, MACE's own files, round trip, training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("mace")

from mace import modules
from mace.calculators import MACECalculator
from memory_checks import assert_flat_memory
from native_checks import (
    ELEMENTS,
    EXACT,
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
    run_command,
    slab,
    structures,
    train_two_steps,
    water,
    write_labelled_molecules,
)

from dyntrain.adapters.exporting import export
from dyntrain.adapters.mace import MACEModel
from dyntrain.errors import UserError
from dyntrain.models.files import build_model, load_model, set_precision
from dyntrain.neighbors import neighbor_list
from dyntrain.potential import Conservative
from dyntrain.state import State, concatenate
from dyntrain.testing import check_potential


def small(precision: str = "float64", elements: list[int] = ELEMENTS, **settings: object) -> MACEModel:
    torch.manual_seed(0)
    arguments = {"num_channels": 4, "correlation": 2, "max_ell": 2, "radial_MLP": [8], **settings}
    model = build_model("mace", elements=elements, cutoff=3.5, **arguments).eval()
    model.set_statistics(torch.linspace(-900.0, -20.0, len(elements), dtype=torch.float64), 2.0, 10.0)
    set_precision(model, precision)
    return model


def raw_mace(kind: type[nn.Module] = modules.ScaleShiftMACE, **changes: object) -> nn.Module:
    """A module as MACE's own scripts make it, with all the options that our settings do not have."""
    from e3nn.o3 import Irreps

    torch.manual_seed(1)
    arguments = {
        "r_max": 3.5,
        "num_bessel": 6,
        "num_polynomial_cutoff": 6,
        "max_ell": 2,
        "interaction_cls": modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        "interaction_cls_first": modules.interaction_classes["RealAgnosticInteractionBlock"],
        "num_interactions": 2,
        "num_elements": len(ELEMENTS),
        "hidden_irreps": Irreps("4x0e + 4x1o"),
        "MLP_irreps": Irreps("8x0e"),
        "atomic_energies": np.linspace(-100.0, -1.0, len(ELEMENTS)),
        "avg_num_neighbors": 7.5,
        "atomic_numbers": ELEMENTS,
        "correlation": 3,
        "gate": torch.tanh,
        "radial_MLP": [8, 8],
    }
    if kind is modules.ScaleShiftMACE:
        arguments |= {"atomic_inter_scale": 1.7, "atomic_inter_shift": 0.3}
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return kind(**{**arguments, **changes})
    finally:
        torch.set_default_dtype(default)


# --- the contract -------------------------------------------------------------------------------------


def test_contract_in_float64_on_molecules_and_a_crystal() -> None:
    state = concatenate([State.from_ase(water()), State.from_ase(magnesium_oxide())])
    check_potential(Conservative(small()), state)


def test_contract_in_float32() -> None:
    check_potential(Conservative(small("float32")), State.from_ase(water()))


@pytest.mark.shared
def test_it_is_its_calculator(tmp_path: Path, shared_data: Path) -> None:
    """Molecules, crystals smaller than the cutoff, the slab, each alone and in one mixed batch."""
    model = small(elements=[*ELEMENTS, 46])
    model.export(tmp_path / "mace.model")
    calculator = MACEModel.native_calculator(tmp_path / "mace.model")
    atoms = [*structures(), water(), slab(shared_data)]
    assert_is_calculator(model, calculator, atoms, EXACT, EXACT)


def test_it_is_its_calculator_in_float32(tmp_path: Path) -> None:
    model = small("float32")
    model.export(tmp_path / "mace.model")
    calculator = MACEModel.native_calculator(tmp_path / "mace.model", precision="float32")
    assert_is_calculator(model, calculator, structures(), FLOAT32_ENERGY, FLOAT32_FORCES)


def test_its_stress_is_its_calculators(tmp_path: Path) -> None:
    model = small()
    model.export(tmp_path / "mace.model")
    atoms = magnesium_oxide()
    atoms.calc = MACEModel.native_calculator(tmp_path / "mace.model")
    state = State.from_ase(atoms)
    stress = Conservative(model).stress(state, neighbor_list(state, model.cutoff))[0].detach().numpy()
    np.testing.assert_allclose(stress, atoms.get_stress(), rtol=1e-9, atol=1e-12)


# --- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [modules.MACE, modules.ScaleShiftMACE])
def test_a_file_of_mace_is_taken_over_unmodified(kind: type[nn.Module], tmp_path: Path) -> None:
    raw = raw_mace(kind)
    torch.save(raw, tmp_path / "native.model")
    model = load_model(tmp_path / "native.model", trust=True).energy_model
    assert type(model.module) is kind
    calculator = MACECalculator(models=raw, default_dtype="float64")
    assert_is_calculator(model, calculator, structures(), EXACT, EXACT)
    assert_round_trip(model, tmp_path / "trained.model", EXACT, EXACT)


def test_a_file_of_mace_needs_trust(tmp_path: Path) -> None:
    torch.save(raw_mace(), tmp_path / "native.model")
    with pytest.raises(UserError, match=r"is a mace model in a format that can hold program code.*--trust"):
        load_model(tmp_path / "native.model")


TINY = """
--train_file=frames.extxyz --valid_fraction=0.25 --E0s=average --num_channels=4 --max_L=1 --r_max=3.5
--correlation=2 --max_ell=2 --radial_MLP=[8] --MLP_irreps=4x0e --num_radial_basis=6 --max_num_epochs=2
--batch_size=3 --valid_batch_size=2 --device=cpu --default_dtype=float64 --name=tiny
"""


@pytest.mark.slow
def test_a_file_that_mace_run_train_made(tmp_path: Path) -> None:
    write_labelled_molecules(tmp_path / "frames.extxyz")
    run_command("mace_run_train", *TINY.split(), folder=tmp_path)
    model = load_model(tmp_path / "tiny.model", trust=True).energy_model
    calculator = MACEModel.native_calculator(tmp_path / "tiny.model")
    assert_is_calculator(model, calculator, [ethanol(), water()], EXACT, EXACT)
    train_two_steps(model, ethanol())
    export(Conservative(model), tmp_path / "trained.model", ethanol())
    with pytest.raises(UserError, match=r"not the compiled one"):
        load_model(tmp_path / "tiny_compiled.model", trust=True)


def test_round_trip_of_a_new_model(tmp_path: Path) -> None:
    assert_round_trip(small("float32"), tmp_path / "mace.model", FLOAT32_ENERGY, FLOAT32_FORCES)


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (lambda: raw_mace(heads=["a", "b"], atomic_energies=np.zeros((2, 5))), "several heads"),
        (lambda: nn.Linear(2, 2), "holds a Linear: dyntrain trains the modules MACE and ScaleShiftMACE"),
    ],
)
def test_files_that_cannot_be_trained(module: object, sentence: str, tmp_path: Path) -> None:
    torch.save(module(), tmp_path / "other.model")  # type: ignore[operator]
    with pytest.raises(UserError, match=sentence):
        MACEModel.from_file(tmp_path / "other.model")


def test_importing_mace_leaves_torchs_loading_restricted() -> None:
    code = "import dyntrain.adapters.mace, os; print('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' in os.environ)"
    # Here the tests have imported MACE themselves.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TORCH_FORCE")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert (done.stdout, done.stderr) == ("False\n", "")


# --- new models and training ----------------------------------------------------------------------------


def test_statistics() -> None:
    model = small()
    assert_starts_at_the_scale_of_its_data(model)
    assert [i.avg_num_neighbors for i in model.module.interactions] == [12.0, 12.0]
    assert model.config["architecture"]["avg_num_neighbors"] == 12.0


def test_what_the_settings_give_is_not_taken_from_the_data() -> None:
    energies = {"H": -13.6, "C": -1030.0, "O": -2040.0, "Mg": -5400.0, "Cu": -45000.0}
    model = small(E0s=energies, scale=0.5, avg_num_neighbors=20.0)
    assert model.module.atomic_energies_fn.atomic_energies.tolist() == list(energies.values())
    assert float(model.module.scale_shift.scale) == 0.5
    assert model.module.interactions[0].avg_num_neighbors == 20.0
    with pytest.raises(UserError, match="E0s: there is no energy for the element of atomic number 6"):
        small(E0s={"H": -13.6})


def test_an_element_it_does_not_know() -> None:
    with pytest.raises(UserError, match="holds S"):
        predict(small(), State.from_arrays([[0.0, 0, 0]], [16], [32.0]))


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="has no setting `num_chanels`: did you mean `num_channels`"):
        small(num_chanels=3)


def test_memory_is_flat_in_the_segment_length() -> None:
    assert_flat_memory(small(), State.from_ase(ethanol()))


@pytest.mark.shared
def test_training_through_a_roll_out(shared_data: Path) -> None:
    losses = losses_of_fine_tuning(small("float32"), shared_data, lr=2e-2)
    assert losses[-1] < 0.9 * losses[0]


def test_copper_alone_sees_only_its_images() -> None:
    assert float(predict(small(), State.from_ase(copper())).forces.abs().max()) < 1e-12
    assert float(predict(small(), State.from_ase(ethanol())).forces.abs().max()) > 1e-2
