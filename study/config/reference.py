"""The reference of all keys, made from the schema.

`python -m study.config > docs/configuration.md` writes it.
"""

import json
from collections.abc import Iterator
from typing import Any

from study.config.schema import StudyConfig


def write_reference() -> str:
    """Every key with its type, default and meaning, as Markdown."""
    lines = [
        "# Configuration",
        "",
        "A study is one YAML file. Only `name` is required. Unknown keys are refused. Numbers and"
        " words are those of YAML 1.2 (`1e-3` is a number, `on` is a word). Any key can be set from"
        " the command line as `dotted.key=value`.",
        "",
        "A file may ask for the studies of several corpora: `corpora` then maps their names to the"
        " settings in which they differ (`corpora: {jigs: {corpus: {source: jigs.zip}}}`). The"
        " study of each is kept in a folder of its name below that of the file's `name`, where"
        " their verdicts are joined.",
        "",
        "A study's identity is everything but `name`, `core_gate`, `search.region`, `selection` and"
        " `execution`, with the corpus known by its content and not by its path.",
        "",
        *_HEADER,
    ]
    for key, schema, required in list_keys():
        if "properties" in schema and "." not in key:
            lines += ["", f"## {key}", "", _text(schema), "", *_HEADER]
        elif "properties" not in schema:
            default = "required" if required else f"`{json.dumps(schema.get('default'))}`"
            lines.append(f"| `{key}` | {_type(schema)} | {default} | {_text(schema)} |")
    return "\n".join(lines) + "\n"


_HEADER = ("| Key | Type | Default | Meaning |", "|---|---|---|---|")


def list_keys() -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every dotted key, sections before what is in them: its JSON schema, and if it is required."""
    root = StudyConfig.model_json_schema()

    def below(schema: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
        for key, value in schema["properties"].items():
            # What a key says of itself goes before what its type says.
            target = root["$defs"][value["$ref"].rsplit("/")[-1]] if "$ref" in value else {}
            merged = {**target, **value}
            yield prefix + key, merged, key in schema.get("required", ())
            if "properties" in merged:
                yield from below(merged, f"{prefix}{key}.")

    return below(root, "")


def _text(schema: dict[str, Any]) -> str:
    # Fields that a section inherits have no text of their own; only readers inherit, from the VAE.
    return " ".join(schema.get("description", "As in `core`.").split())


def _type(schema: dict[str, Any]) -> str:
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(map(_type, choices))
    if "prefixItems" in schema:
        return f"[{', '.join(map(_type, schema['prefixItems']))}]"
    for container, content in (("list of", "items"), ("mapping to", "additionalProperties")):
        if content in schema:
            return f"{container} {_type(schema[content])}"
    if words := schema.get("enum") or [schema[key] for key in ("const",) if key in schema]:
        return " or ".join(f"`{word}`" for word in words)
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[name]}" for name, sign in signs.items() if name in schema]
    kind = schema.get("type") or schema["$ref"].rsplit("/")[-1].lower()
    return " ".join([kind, ", ".join(limits)]).strip()
