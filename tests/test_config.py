"""The configuration: each mistake is one sentence with the nearest key; written and read it is the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dyntrain.config import PRESETS, Config, dump_config, parse_config, read_config
from dyntrain.errors import UserError

# Every section there is, so that a wrong key can be put into any of them.
COMPLETE: list[dict[str, Any]] = [
    {
        "data": {"train": ["a.traj"], "validation": ["b.traj"], "test": ["c.traj"]},
        "model": {"name": "paper_egnn", "settings": {"width": 16}},
        "loss": {
            "forces": {"kind": "huber", "per_element": True},
            "energy": {"weight": 0.5, "only_single_frames": True},
            "positions": {"weight": 0.1},
            "velocities": {"weight": 0.2, "kind": "l2"},
        },
        "backprop": {"truncated": 3},
        "curriculum": {"kind": "plateau", "max_length": 4},
        "validation": {"n_starts": 3},
        "budget": {"evaluations": 100, "costs": {"one_step": 1.0, "rollout": 1.3}},
        "logger": {"name": "mlflow", "project": "mine"},
        "max_time": "90s",
    },
    {
        "data": ["a.traj", "runs/*.extxyz"],
        "backprop": "adjoint",
        "curriculum": {"kind": "schedule", "stages": [{"segment_length": 2, "share": 1.0}]},
        "max_epochs": 3,
    },
]

# Free: the network's own arguments, which the network checks.
_FREE = {("model", "settings")}


def sections(values: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where in nested values there is a section of keys."""
    if isinstance(values, dict) and path not in _FREE:
        yield path
        for key, inner in values.items():
            yield from sections(inner, (*path, key))
    elif isinstance(values, list):
        for number, inner in enumerate(values):
            yield from sections(inner, (*path, number))


PLACES = [(number, path) for number, values in enumerate(COMPLETE) for path in sections(values)]


def at(values: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        values = values[part]
    return values


def refusal(values: Any) -> str:
    with pytest.raises(UserError) as error:
        parse_config(values)
    return str(error.value)


def all_keys() -> set[str]:
    definitions = [Config.model_json_schema(), *Config.model_json_schema()["$defs"].values()]
    return {key for definition in definitions for key in definition.get("properties", {})}


@given(
    place=st.sampled_from(PLACES),
    key=st.text(min_size=1, max_size=12).filter(lambda key: key not in all_keys()),
    value=st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2)),
)
def test_an_unknown_key_anywhere_is_refused_and_named(
    place: tuple[int, tuple[str | int, ...]], key: str, value: Any
) -> None:
    number, path = place
    values = copy.deepcopy(COMPLETE[number])
    at(values, path)[key] = value
    message = refusal(values)
    assert f"unknown key `{'.'.join([*map(str, path), key])}`: " in message
    assert message.count("unknown key") == 1


@given(place=st.sampled_from(PLACES), data=st.data())
def test_a_misspelt_key_is_answered_with_the_right_one(
    place: tuple[int, tuple[str | int, ...]], data: st.DataObject
) -> None:
    number, path = place
    values = copy.deepcopy(COMPLETE[number])
    section = at(values, path)
    known = all_keys()
    key = data.draw(st.sampled_from([k for k in sorted(section) if len(k) > 2 and k + "s" not in known]))
    section[key + "s"] = section[key] if key == "kind" else section.pop(key)
    assert f"did you mean `{key}`?" in refusal(values)


@pytest.mark.parametrize("values", COMPLETE)
def test_what_is_written_is_read_again_as_the_same(values: dict[str, Any], tmp_path: Path) -> None:
    config = parse_config(values)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    again = read_config(path)
    assert again == config
    assert dump_config(again) == dump_config(config)


positive = st.floats(min_value=1e-9, max_value=1e9)
whole = st.integers(min_value=1, max_value=10**6)


@given(
    values=st.fixed_dictionaries(
        {"data": st.one_of(st.lists(st.text(min_size=1), min_size=1), st.just(COMPLETE[0]["data"]))},
        optional={
            "dt": st.none() | positive,
            "seed": st.integers(min_value=0, max_value=2**31),
            "output": st.text(min_size=1),
            "preset": st.sampled_from([None, "dynamic", "paper"]),
            "batch_size": whole,
            "training_points": st.none() | whole,
            "ema": st.floats(min_value=0, max_value=0.999),
            "max_time": st.none() | st.sampled_from(["90s", "1.5h", "5m", "2d"]),
            "max_epochs": st.none() | whole,
            "backprop": st.sampled_from(["full", "adjoint", "stop_gradient", {"truncated": 2}]),
            "loss": st.fixed_dictionaries(
                {}, optional={"forces": st.none() | st.fixed_dictionaries({"weight": positive})}
            ),
            "curriculum": st.sampled_from([{"patience": 3}, {"warmup": 0.1}, {"kind": "plateau"}, {}]),
            "budget": st.none()
            | st.fixed_dictionaries(
                {"evaluations": positive, "costs": st.fixed_dictionaries({"rollout": positive})}
            ),
        },
    )
)
def test_dump_and_parse_is_the_identity(values: dict[str, Any]) -> None:
    config = parse_config(values)
    assert parse_config(yaml.safe_load(dump_config(config))) == config


def test_data_alone_is_enough() -> None:
    config = parse_config({"data": ["run.traj"]})
    assert (config.model.name, config.backprop, config.precision) == ("egnn", "full", "float32")
    assert config.curriculum.kind == "schedule"
    assert config.max_length == 1  # docs/research.md says why
    assert config.max_seconds == 3600.0


def test_a_given_budget_needs_no_time() -> None:
    config = parse_config({"data": ["a"], "budget": {"evaluations": 10, "costs": {"rollout": 1.2}}})
    assert config.max_time is None and config.max_seconds is None


def test_the_paper_preset_is_the_published_table() -> None:
    config = parse_config({"data": ["a"], "preset": "paper"})
    assert (config.model.name, config.model.cutoff) == ("paper_egnn", 5.0)
    assert (config.batch_size, config.training_points) == (32, 256)
    assert (config.validation.n_starts, config.validation.batch_size) == (256, 256)
    assert config.validation.n_steps == 120
    curriculum = config.curriculum
    assert curriculum.kind == "plateau"
    assert (curriculum.max_length, curriculum.lr, curriculum.restart_lr) == (7, 1e-3, 1e-4)
    assert (curriculum.factor, curriculum.patience, curriculum.floor) == (0.33, 15, 2e-6)
    assert config.gradient_clip == 1.0
    assert config.backprop == "stop_gradient"
    forces, energy = config.loss.forces, config.loss.energy
    assert forces is not None and energy is not None
    assert (forces.kind, forces.per_element, forces.weight) == ("l1", True, 1.0)
    assert (energy.kind, energy.only_single_frames, energy.weight) == ("l1", True, 1.0)
    assert config.loss.positions is None and config.loss.velocities is None
    assert (config.loss.first_step_weight, config.loss.later_step_weight) == (50.0, 1.0)
    assert config.ema == 0.0
    assert config.max_time is None


def test_the_dynamic_preset_is_longer_segments_and_nothing_else() -> None:
    config = parse_config({"data": ["a"], "preset": "dynamic", "curriculum": {"lr": 0.02}})
    lengths = [stage.segment_length for stage in config.curriculum.stages]
    assert lengths == [1, 2, 4, 8] and config.curriculum.lr == 0.02
    rest = {"preset", "curriculum"}
    plain = parse_config({"data": ["a"]})
    assert config.model_dump(exclude=rest) == plain.model_dump(exclude=rest)


def test_what_the_user_says_comes_on_top_of_the_preset() -> None:
    own = {"loss": {"forces": {"kind": "l2"}, "energy": None}, "curriculum": {"patience": 2}, "batch_size": 8}
    before = copy.deepcopy(PRESETS)
    config = parse_config({"data": ["a"], "preset": "paper", **own})
    assert before == PRESETS
    forces, curriculum = config.loss.forces, config.curriculum
    assert forces is not None and (forces.kind, forces.per_element) == ("l2", True)
    assert config.loss.energy is None
    assert curriculum.kind == "plateau" and (curriculum.patience, curriculum.max_length) == (2, 7)
    assert (config.batch_size, config.gradient_clip) == (8, 1.0)


@pytest.mark.parametrize("own", [{"kind": "schedule"}, {"stages": [{"segment_length": 1, "share": 1}]}])
def test_a_curriculum_of_another_kind_replaces_the_presets(own: dict[str, Any]) -> None:
    config = parse_config({"data": ["a"], "preset": "paper", "curriculum": own})
    assert config.curriculum.kind == "schedule"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "`data` is missing"),
        ({"data": "run.traj"}, "`data`: should be a list, got 'run.traj'"),
        ({"data": None}, "`data`: should be a list, got None"),
        ({"data": [1]}, "`data.0`: should be a valid string, got 1"),
        ({"data": {"validation": ["a"]}}, "`data.train` is missing"),
        ({"data": ["a"], "lr": 1e-3}, "unknown key `lr`: it belongs under `curriculum`"),
        ({"data": ["a"], "xyzzy": 1}, "unknown key `xyzzy`: known here: backprop, batch_size,"),
        ({"data": ["a"], "batch_size": "many"}, "`batch_size`: should be a valid integer"),
        ({"data": ["a"], "batch_size": 0}, "`batch_size`: should be greater than or equal to 1, got 0"),
        ({"data": ["a"], "seed": None}, "`seed`: should be a valid integer, got None"),
        ({"data": ["a"], "dt": math.inf}, "`dt`: should be a finite number, got inf"),
        ({"data": ["a"], "dt": math.nan}, "`dt`: should be"),
        ({"data": ["a"], "ema": 1.0}, "`ema`: should be less than 1, got 1.0"),
        ({"data": ["a"], "device": "tpu"}, "`device`: should be 'auto', 'cpu' or 'cuda', got 'tpu'"),
        ({"data": ["a"], "preset": "papr"}, "`preset`: should be 'dynamic' or 'paper', got 'papr'"),
        ({"data": ["a"], "model": 3}, "`model`: should be a section of keys and values, got 3"),
        ({"data": ["a"], "loss": {"forces": 3}}, "`loss.forces`: should be a section of keys and values"),
        ({"data": ["a"], "backprop": "ful"}, "`backprop`: should be 'stop_gradient', 'full' or 'adjoint'"),
        ({"data": ["a"], "backprop": {"truncated": 0}}, "`backprop.truncated`: should be greater than"),
        ({"data": ["a"], "curriculum": {"kind": "plateu"}}, "kind should be 'plateau' or 'schedule'"),
        ({"data": ["a"], "curriculum": {"stages": []}}, "`curriculum.stages`: List should have at least 1"),
        ({"data": ["a"], "curriculum": 5}, "`curriculum`: should be a section of keys and values, got 5"),
        ({"data": ["a"], "max_time": 90}, "a time is a number with s, m, h or d behind it (90s, 5m, 2h)"),
        ({"data": ["a"], "max_time": "0s"}, "a time is a number with s, m, h or d behind it"),
        ({"data": ["a"], "logger": {"name": "neptune"}}, "`logger.name`: should be 'wandb' or 'mlflow'"),
        ({"data": ["a"], 1: 2}, "`1`: Keys should be strings"),
        ([1], "expected keys and values (as `data: [run.extxyz]`), got list"),
        (None, "expected keys and values (as `data: [run.extxyz]`), got nothing"),
    ],
)
def test_wrong_values_are_told_in_one_sentence(values: Any, sentence: str) -> None:
    message = refusal(values)
    assert sentence in message
    assert "\n" not in message and message.startswith("configuration: ")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"data: [a", "is not valid YAML: "),
        (b"data: [a]\nseed: 1\nseed: 2\n", "the key `seed` is given twice"),
        (
            b"data: !!python/object/apply:os.getcwd []\n",
            "is not valid YAML: could not determine a constructor",
        ),
        (b"\xff\xfe\x00", "is no text file (UTF-8)"),
        (b"", "expected keys and values"),
    ],
)
def test_unreadable_files_are_told_in_one_sentence(text: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text)
    with pytest.raises(UserError) as error:
        read_config(path)
    assert sentence in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the configuration .*none\.yaml: No such file"):
        read_config(tmp_path / "none.yaml")


def test_the_json_schema_describes_every_key() -> None:
    """Structure by hand: no validator of schemas is among the test dependencies."""
    schema = Config.model_json_schema()
    assert schema["type"] == "object" and schema["required"] == ["data"]
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Config.model_fields)

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from ([value["$ref"]] if "$ref" in value else [])
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    found = set(references(schema))
    assert found == {f"#/$defs/{name}" for name in schema["$defs"]}
    for definition in schema["$defs"].values():
        assert definition["type"] == "object" and definition["additionalProperties"] is False


def test_paths_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config = parse_config({"data": ["a"], "output": "~/out", "start_from": "~/model.pt"})
    assert (config.output, config.start_from) == ("/home/someone/out", "/home/someone/model.pt")
