"""Reference of all config keys: as help text, as a page of the docs and as a JSON schema.

All three are generated from the config models, so they always match what is read.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine.config import Config

BASE = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    "description": "config files that this one extends, relative to it; later ones override "
    "earlier ones, and this one overrides all",
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}

HELP_WIDTH = 100  # characters in a line of --help

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
        name: dotted path.
        kind: type of its value, in words.
        default: default value as written in a file.
        meaning: its description.
    """

    name: str
    kind: str
    default: str
    meaning: str


def config_schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors; every key may be left out."""
    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    # Shorthands accepted on reading: a transform by its name only, a single size.
    transform = definitions["DataConfig"]["properties"]["augment"]["items"]
    transform["additionalProperties"]["type"] = ["object", "null"]
    definitions["DataConfig"]["properties"]["augment"] |= {
        "type": ["array", "null"],
        "items": {"anyOf": [{"type": "string"}, transform]},
    }
    sizes = definitions["AnchorConfig"]["properties"]["sizes"]["anyOf"][0]
    sizes["items"] = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, sizes["items"]]}
    schema["properties"] = {"base": BASE, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """The text of ``configs/schema.json``."""
    return json.dumps(config_schema(), indent=1, ensure_ascii=False) + "\n"


def keys() -> list[Key]:
    """List all keys that hold a value, in the order of the models."""
    schema = Config.model_json_schema()
    return list(_keys(schema, schema["$defs"], ""))


def help_text() -> str:
    """List all keys for ``train.py --help``."""
    lines = ["config keys, with their defaults:"]
    for key in keys():
        lines.append(f"  {key.name} = {key.default}   ({key.kind})")
        lines += textwrap.wrap(
            key.meaning,
            HELP_WIDTH,
            initial_indent="      ",
            subsequent_indent="      ",
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def reference_page() -> str:
    """The text of ``docs/configuration.md``: one table per block."""
    lines = [
        "# Configuration",
        "",
        "Every key of a config file, with its default. `scripts/config_reference.py` writes this",
        "page from the config models; `python train.py --help` prints the same, and",
        "`configs/schema.json` is the schema for editors. How files, `base:` and overrides",
        "combine: [Guide](guide.md#configs).",
    ]
    block = None
    for key in keys():
        name, _, leaf = key.name.rpartition(".")
        if name != block:
            block = name
            lines += [
                "",
                f"## {name}",
                "",
                "| key | holds | default | meaning |",
                "|---|---|---|---|",
            ]
        cells = (f"`{leaf}`", _escaped(key.kind), f"`{key.default}`", _escaped(key.meaning))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _keys(schema: Schema, definitions: Schema, prefix: str) -> Iterator[Key]:
    """Yield the keys of a schema, values before nested blocks, so that each block is contiguous."""
    fields: list[tuple[str, Schema]] = list(schema["properties"].items())
    for name, field in fields:
        if "$ref" not in field:
            default = json.dumps(field.get("default"), ensure_ascii=False).replace('"', "")
            yield Key(prefix + name, _kind(field, definitions), default, field["description"])
    for name, field in fields:
        if "$ref" in field:
            below = definitions[field["$ref"].rpartition("/")[2]]
            yield from _keys(below, definitions, f"{prefix}{name}.")


def _kind(field: Schema, definitions: Schema) -> str:
    """Describe in words which values a field accepts."""
    if "anyOf" in field:
        return " or ".join(_kind(choice, definitions) for choice in field["anyOf"])
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if field.get("type") == "array":
        if "prefixItems" in field:
            return f"[{', '.join(_kind(item, definitions) for item in field['prefixItems'])}]"
        return f"list of ({_kind(field['items'], definitions)})"
    if field.get("type") == "object":
        below = field["additionalProperties"]
        return "mapping" if below is True else f"mapping to ({_kind(below, definitions)})"
    words = {"string": "text", "boolean": "true, false", "null": "null"}
    kind = field.get("type", "anything")
    bounds = [f"{sign} {field[key]}" for key, sign in BOUNDS.items() if key in field]
    return f"{words.get(kind, kind)} {', '.join(bounds)}".rstrip()


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
