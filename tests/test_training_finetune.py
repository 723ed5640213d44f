"""Fine-tuning: the energy zero is the data's, frozen parts stay, replayed runs come in their share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dyntrain.config import parse_config
from dyntrain.data.readers import read_trajectories
from dyntrain.errors import UserError
from dyntrain.models import families
from dyntrain.models.files import build_model, save_model
from dyntrain.potential import Conservative
from dyntrain.training.finetune import align_energies, element_shifts, freeze, replay_runs
from dyntrain.training.sampling import Sampler
from dyntrain.training.setup import potential_to_train
from fake_family import Springs
from training_runs import config_of, run, small_config, weights, write_runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return write_runs(tmp_path_factory.mktemp("runs"))


def egnn() -> Conservative:
    torch.manual_seed(0)
    return Conservative(build_model("egnn", elements=[1, 6, 8], cutoff=4.0, width=8, n_channels=4))


def native_file(folder: Path) -> str:
    Springs([1, 6, 8], stiffness=0.5).export(folder / "native.pkl")
    return str(folder / "native.pkl")


@pytest.fixture
def springs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.MODELS, "springs", Springs)
    monkeypatch.setattr(families, "family_of", lambda contents: Springs)
    monkeypatch.setattr("dyntrain.models.files.family_of", lambda contents: Springs)


# --- the energy zero ------------------------------------------------------------------------------------


def test_aligned_energies_have_the_mean_of_each_run(data: dict[str, list[str]]) -> None:
    runs, potential = read_trajectories(data["train"]), egnn()
    before = element_shifts(potential, runs)
    assert max(abs(shift) for shift in before.values()) > 0.1
    align_energies(potential, runs)
    after = element_shifts(potential, runs)
    assert max(abs(shift) for shift in after.values()) < 1e-6
    expected = torch.tensor([before[z] for z in (1, 6, 8)], dtype=torch.float64)
    torch.testing.assert_close(potential.energy_model.energy_shifts, expected, rtol=1e-12, atol=1e-12)


def test_an_element_that_the_runs_lack_keeps_its_energy(data: dict[str, list[str]]) -> None:
    potential = egnn()
    align_energies(potential, read_trajectories(data["train"][1:2]))  # carbon and hydrogen alone
    assert float(potential.energy_model.energy_shifts[2]) == 0.0
    assert float(potential.energy_model.energy_shifts[0]) != 0.0


@pytest.mark.usefixtures("springs")
@pytest.mark.parametrize(
    ("finetune", "ours", "aligned"),
    [
        ({}, False, True),
        ({"align_energies": False}, False, False),
        ({}, True, False),
        ({"align_energies": True}, True, True),
    ],
)
def test_other_peoples_models_are_aligned_unless_told_otherwise(
    finetune: dict[str, Any], ours: bool, aligned: bool, data: dict[str, list[str]], tmp_path: Path
) -> None:
    start = native_file(tmp_path)
    if ours:
        start = str(tmp_path / "model.pt")
        save_model(Conservative(Springs([1, 6, 8])), start)
    config = config_of(data, tmp_path / "out", start_from=start, trust=True, finetune=finetune, model={})
    model = potential_to_train(config, read_trajectories(data["train"])).energy_model
    assert bool(model.module.energies.any()) == aligned


def test_a_family_without_energies_of_elements_is_told(data: dict[str, list[str]]) -> None:
    potential = Conservative(build_model("paper_egnn", elements=[1, 6, 8], width=8, n_frequencies=4))
    with pytest.raises(UserError, match="the paper_egnn family has no energy per element"):
        align_energies(potential, read_trajectories(data["train"]))


# --- frozen parts ------------------------------------------------------------------------------------------


def test_frozen_parameters_stay_and_the_others_learn(data: dict[str, list[str]], tmp_path: Path) -> None:
    first = run(data, tmp_path / "first", max_epochs=1)
    changes = {"start_from": str(first.model), "finetune": {"freeze": ["update?.0.*", "mixing"]}}
    run(data, tmp_path / "second", **changes, ema=0.5)
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    for name in ("update1.0.weight", "update2.0.bias", "mixing"):
        assert torch.equal(before[name], after[name]), name
    for name in ("update1.2.weight", "read_out.0.weight"):
        assert not torch.equal(before[name], after[name]), name


def test_names_are_those_of_the_familys_own_module() -> None:
    potential = Conservative(Springs([1, 6, 8]))
    freeze(potential, ["length"])
    assert [p.requires_grad for p in potential.parameters()] == [True, False]


@pytest.mark.parametrize(
    ("patterns", "sentence"),
    [
        (["update3.*"], "no parameter of the model matches 'update3.\\*'; near it are update"),
        (["*"], "freeze every parameter, so nothing is left to learn"),
    ],
)
def test_patterns_that_make_no_sense(patterns: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        freeze(egnn(), patterns)


# --- replay -------------------------------------------------------------------------------------------


def replay_config(data: dict[str, list[str]], output: Path, replayed: list[str], share: float = 0.4) -> Any:
    finetune = {"replay": {"data": replayed, "share": share}}
    return parse_config(small_config(data, output, start_from="model.pt", finetune=finetune))


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_each_pass_holds_the_share_of_replayed_windows(
    share: float, data: dict[str, list[str]], tmp_path: Path
) -> None:
    config = replay_config(data, tmp_path, data["validation"], share)
    training, replay = read_trajectories(data["train"]), read_trajectories(data["validation"])
    sampler = Sampler(config, training, replay)
    passes = []
    for number in range(2):
        drawn: list[tuple[int, int]] = []
        while len(drawn) < sampler.n_windows(3):
            batch = sampler.batch(3, number * sampler.n_windows(3) + len(drawn))
            drawn += [(segment.run, segment.start) for segment in batch]
        own = [window for window in drawn if window[0] < len(training)]
        assert sorted(own) == [(r, s) for r, one in enumerate(training) for s in range(one.n_frames - 2)]
        assert len(own) / len(drawn) == pytest.approx(1.0 - share, abs=0.01)
        passes.append(set(drawn) - set(own))
        assert {r for r, _ in passes[-1]} == {len(training)}
    # A resumed run draws the same.
    again = Sampler(config, training, replay).batch(3, sampler.n_windows(3))
    assert list(again) == list(sampler.batch(3, sampler.n_windows(3)))
    if share < 0.2:
        assert passes[0] != passes[1]


def test_replayed_energies_have_the_models_zero(data: dict[str, list[str]], tmp_path: Path) -> None:
    config, potential = replay_config(data, tmp_path, data["validation"]), egnn()
    potential.energy_model.shift_energies(torch.tensor([-10.0, -1000.0, -2000.0], dtype=torch.float64))
    (moved,) = replay_runs(config, potential)
    (original,) = read_trajectories(data["validation"])
    assert max(abs(shift) for shift in element_shifts(potential, [moved]).values()) < 1e-6
    np.testing.assert_allclose(np.diff(moved.energies), np.diff(original.energies), atol=1e-9)


def test_structures_are_replayed_like_runs(data: dict[str, list[str]], tmp_path: Path) -> None:
    finetune = {"replay": {"structures": data["validation"], "share": 0.4}}
    config = parse_config(small_config(data, tmp_path, start_from="model.pt", finetune=finetune))
    (replayed,) = replay_runs(config, egnn())
    assert replayed.alone
    sampler = Sampler(config, read_trajectories(data["train"]), [replayed])
    assert {segment.run for segment in sampler.batch(1, 0)} <= {0, 1, 2, 3}
    with pytest.raises(UserError, match="No replay run holds a segment of 3 frames"):
        sampler.n_windows(3)


def test_training_with_replay_goes_on_to_the_same_numbers(data: dict[str, list[str]], tmp_path: Path) -> None:
    first = run(
        {"train": data["train"][:1], "validation": data["validation"]}, tmp_path / "first", max_epochs=1
    )
    changes = {
        "start_from": str(first.model),
        "finetune": {"replay": {"data": data["validation"], "share": 0.3}},
    }
    hydroxyl = {"train": data["train"][:1], "validation": []}
    run(hydroxyl, tmp_path / "whole", **changes)
    run(hydroxyl, tmp_path / "parts", **changes, max_epochs=1)
    run(hydroxyl, tmp_path / "parts", **changes)
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "parts")[name]), name


def test_replay_of_elements_the_model_does_not_know(data: dict[str, list[str]], tmp_path: Path) -> None:
    config = replay_config(data, tmp_path, data["validation"])
    with pytest.raises(UserError, match=r"finetune.replay: the model does not know C, O"):
        replay_runs(config, Conservative(build_model("egnn", elements=[1], width=8)))


def test_a_new_network_has_nothing_to_keep(data: dict[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="finetune: a new network knows nothing that could be kept"):
        run(data, tmp_path, finetune={"freeze": ["mixing"]})
