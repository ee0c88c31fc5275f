"""The reference of all configuration keys, written from the models.

Owns the generated part of docs/configuration.md and the JSON Schemas beside the example. From a checkout,
`python -m gpumodd.config.reference` brings both up to date; a test fails while they are not.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gpumodd.config import schema
from gpumodd.config.environment import PREFIX

BEGIN = "<!-- generated from the models: begin -->"
END = "<!-- generated from the models: end -->"

_HEADINGS = {
    "gpumodd": ("gpumodd.yaml", "Every key is optional. The variable sets the same key and wins over the file."),
    "service": ("services/*.yaml", "`id` and `driver` are required."),
    "mode": ("modes/*.yaml", "`id` is required."),
}


def reference() -> str:
    """The Markdown tables of all three kinds of files."""
    parts = []
    for kind, (heading, text) in _HEADINGS.items():
        head = ["key", "default", "values", "what it means"]
        rows = [list(row) for row in _rows(schema.FILES[kind], json_schema=schema.json_schema(kind))]
        if kind == "gpumodd":
            head.append("variable")
            rows = [[*row, f"`{variable(row[0].strip('`'))}`"] for row in rows]
        table = [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows)]
        parts.append("\n".join([f"### `{heading}`", "", text, "", *table]))
    return "\n\n".join(parts)


def variable(key: str) -> str:
    """The environment variable of a key of gpumodd.yaml."""
    return PREFIX + key.replace(".", "__").upper()


def updated(text: str) -> str:
    """A document with its generated part replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}"


def schemas() -> dict[str, str]:
    """The JSON Schemas as files: name and text."""
    return {
        f"{kind}.json": json.dumps(schema.json_schema(kind), indent=2, ensure_ascii=False) + "\n"
        for kind in schema.FILES
    }


def _rows(model: type[BaseModel], json_schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    for name, info in model.model_fields.items():
        key = prefix + name
        section = info.annotation
        if isinstance(section, type) and issubclass(section, schema.Section):
            yield from _rows(section, json_schema, f"{key}.")
            continue
        default = "required" if info.is_required() else f"`{_yaml(info.get_default(call_default_factory=True))}`"
        node = _node(json_schema, key)
        if key == "devices":
            default = "`auto`"
        yield f"`{key}`", default, _values(node, json_schema), info.description or ""


def _node(root: dict[str, Any], key: str) -> dict[str, Any]:
    """The JSON Schema of one dotted key."""
    node = root
    for step in key.split("."):
        node = _resolved(node, root)["properties"][step]
    return node


def _resolved(node: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = root["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _values(node: dict[str, Any], root: dict[str, Any]) -> str:
    """What may stand there, in a few words."""
    if "anyOf" in node:
        options = [_values(option, root) for option in node["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(options))
    if "$ref" in node:
        inner = _resolved(node, root)
        return "mapping of " + ", ".join(f"`{key}`" for key in inner["properties"])
    if "enum" in node:
        return " ".join(f"`{value}`" for value in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    kind = node.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(_words(word) for word in kind)
    if kind == "array":
        return "list"
    bounds = [f"> {node['exclusiveMinimum']:g}"] if "exclusiveMinimum" in node else []
    bounds += [f"≥ {node['minimum']:g}"] if "minimum" in node else []
    bounds += [f"≤ {int(node['maximum'])}"] if "maximum" in node else []
    return " ".join([_words(kind), *bounds])


def _words(kind: str) -> str:
    return {"string": "text", "integer": "whole number", "boolean": "`true` `false`", "object": "mapping"}.get(
        kind, kind
    )


def _yaml(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case tuple() | list():
            return f"[{', '.join(map(str, value))}]"
        case dict():
            return "{}"
        case "":
            return '""'
        case _:
            return str(value)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    """Writes the generated files of a checkout."""
    root = Path(__file__).parents[2]
    page = root / "docs/configuration.md"
    page.write_text(updated(page.read_text(encoding="utf-8")), encoding="utf-8")
    for name, text in schemas().items():
        (root / "config/schema" / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
