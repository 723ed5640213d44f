"""MkDocs hook: the tables of docs/configuration.md, made from the schema that reads the YAML."""

from __future__ import annotations

import re
from typing import Any

from dyntrain.config.schema import Config

_PLACE = "<!-- configuration tables -->"
_SCALARS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace(_PLACE, _tables(Config.model_json_schema()))


def _tables(schema: dict[str, Any]) -> str:
    sections = [_table("Top level", schema)]
    sections += [_table(_title(name), part) for name, part in schema["$defs"].items() if "properties" in part]
    return "\n\n".join(sections)


def _title(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.removesuffix("Config")).capitalize()


def _table(title: str, schema: dict[str, Any]) -> str:
    rows = [
        f"| `{key}` | {_kind(field)} | {_default(key, field, schema)} | {field.get('description', '')} |"
        for key, field in schema["properties"].items()
    ]
    head = [
        f"## {title}",
        "",
        schema.get("description", ""),
        "",
        "| key | value | default | |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows])


def _kind(field: dict[str, Any]) -> str:
    """What a key may hold, in words; other sections as links."""
    if "$ref" in field:
        title = _title(field["$ref"].rsplit("/", 1)[-1])
        return f"[{title}](#{title.lower().replace(' ', '-')})"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    for choice in ("anyOf", "oneOf"):
        if choice in field:
            kinds = [_kind(option) for option in field[choice] if option.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if field.get("type") == "array":
        return f"list of {_kind(field['items'])}"
    return _SCALARS.get(field.get("type", ""), "mapping")


def _default(key: str, field: dict[str, Any], schema: dict[str, Any]) -> str:
    if key in schema.get("required", []):
        return "must be given"
    value = field.get("default")
    if value is None:
        return ""
    if isinstance(value, dict | list) and value:
        return "see there"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
