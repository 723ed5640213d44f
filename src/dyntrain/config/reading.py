"""From a YAML file to a Config and back; each mistake is told in one sentence with the nearest key."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from dyntrain.config.presets import PRESETS
from dyntrain.config.schema import Config, kind_of
from dyntrain.config.sections import DataFiles, PlateauConfig, ScheduleConfig, TruncatedConfig
from dyntrain.errors import UserError


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``, section by section."""
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _with_preset(values: dict[str, Any]) -> dict[str, Any]:
    """The values on top of the preset they name; a curriculum of another kind replaces the preset's."""
    name = values.get("preset")
    if not isinstance(name, str) or name not in PRESETS:
        return values
    preset, own = dict(PRESETS[name]), values.get("curriculum")
    kind = preset["curriculum"]["kind"]
    if isinstance(own, dict) and kind_of(own, default=kind) != kind:
        del preset["curriculum"]
    return _merged(preset, values)


def _at_home(values: dict[str, Any]) -> dict[str, Any]:
    """The values with ``~`` at the head of single paths as the home folder; those of `data` are read so."""
    paths = {key: values[key] for key in ("output", "start_from") if isinstance(values.get(key), str)}
    return values | {key: os.path.expanduser(path) for key, path in paths.items()}


def parse_config(values: Any, source: str = "configuration") -> Config:
    """A checked Config from the plain values of a YAML file.

    Raises:
        UserError: what is wrong, with the key, what was expected and what came.
    """
    if not isinstance(values, dict):
        came = "nothing" if values is None else type(values).__name__
        raise UserError(f"{source}: expected keys and values (as `data: [run.extxyz]`), got {came}")
    try:
        return Config.model_validate(_at_home(_with_preset(values)))
    except ValidationError as error:
        raise UserError(f"{source}: " + "; ".join(map(_sentence, error.errors()))) from None


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, instead of forgetting the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise yaml.YAMLError(f"the key `{min(twice)}` is given twice in one section")
        return super().construct_mapping(node, deep)


def read_config(path: Path | str) -> Config:
    """A checked Config from a YAML file.

    Raises:
        UserError: no such file, no YAML, or a mistake in it.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text file (UTF-8), so no configuration") from error
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    return parse_config(values, str(path))


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML; reading it gives the same Config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


_WORDS = {
    "model_type": "should be a section of keys and values",
    "model_attributes_type": "should be a section of keys and values",
    "list_type": "should be a list",
}


def _sentence(problem: Any) -> str:
    *place, last = [str(part) for part in problem["loc"]]
    keys = [part for part in place if not part.startswith("(")]
    if problem["type"] == "extra_forbidden":
        return f"unknown key `{'.'.join([*keys, last])}`: {_hint(last, problem['loc'][:-1])}"
    name = ".".join(keys if last.startswith("(") else [*keys, last])
    if problem["type"] == "missing":
        return f"`{name}` is missing"
    came = problem.get("input")
    shown = f", got {came!r}" if isinstance(came, str | int | float | bool | list | type(None)) else ""
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = _WORDS.get(problem["type"], message)
    return f"`{name}`: {message}" + ("" if "got" in message else shown)


def _hint(key: str, location: Sequence[str | int]) -> str:
    known = _known_keys(location)
    if not location:
        sections = {name: _sections_in(field.annotation) for name, field in Config.model_fields.items()}
        for name, found in sections.items():
            if any(key in section.model_fields for section in found):
                return f"it belongs under `{name}`"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"


_TAGGED: dict[str | int, type[BaseModel]] = {
    "(plateau)": PlateauConfig,
    "(schedule)": ScheduleConfig,
    "(splits)": DataFiles,
    "(truncated)": TruncatedConfig,
}


def _known_keys(location: Sequence[str | int]) -> list[str]:
    """Keys of the section at a location in Config (field names, tags of unions, numbers of list items)."""
    section: type[BaseModel] = Config
    for part in location:
        if part in _TAGGED:
            section = _TAGGED[part]
        elif isinstance(part, str):
            section = next(_sections_in(section.model_fields[part].annotation), section)
    return sorted(section.model_fields)


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections_in(inner)
