"""A JSON schema that lets `dg check yaml` name the line of a mistyped key, not only the block that it stands in.

In goes the schema that Dagster derives for a component: every field is `anyOf` its shape and a string, for templates,
and a validator says of a shape that does not fit no more than that none does. Out goes one that first asks what a value
is, a mapping or a list, and of which `type`, and then holds it to that shape alone. Of a word that is none of those
allowed the validator lists these.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel


def told_apart(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema` with every `anyOf` that has shapes of mappings or lists in it asked step by step."""
    definitions = schema.get("$defs", {})

    def rewritten(node: Any) -> Any:
        if isinstance(node, list):
            return [rewritten(item) for item in node]
        if not isinstance(node, dict):
            return node
        node = {key: rewritten(value) for key, value in node.items()}
        options = node.get("anyOf", ())
        template = next((option for option in options if "pattern" in option), None)
        words = _words([option for option in options if option is not template])
        if template and words:
            del node["anyOf"]
            return node | {"if": template, "else": {"enum": words}}
        shapes = [(_sign(option, definitions), option) for option in options]
        if not any(sign for sign, _ in shapes):
            return node
        kinds = [sign["properties"]["type"]["const"] for sign, _ in shapes if sign and "required" in sign]
        node["anyOf"] = [
            {"type": sign["type"]} if sign and "required" in sign else sign or option for sign, option in shapes
        ]
        node["allOf"] = [{"if": sign, "then": option} for sign, option in shapes if sign]
        if kinds and not any(sign == {"type": "object"} for sign, _ in shapes):
            of_kinds = {"required": ["type"], "properties": {"type": {"enum": kinds}}}
            node["allOf"] = [{"if": {"type": "object"}, "then": of_kinds}, *node["allOf"]]
        return node

    result: dict[str, Any] = rewritten(dict(schema))
    return result


def _words(options: Sequence[Mapping[str, Any]]) -> list[Any]:
    """All that a value may be, where that is a choice of words; none of them where it is anything else."""
    words: list[Any] = []
    for option in options:
        if option.get("type") == "null":
            words.append(None)
        elif "enum" in option or "const" in option:
            words += option.get("enum", [option.get("const")])
        else:
            return []
    return words


def _sign(option: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any] | None:
    """By what a value for a shape is told from others; None of what is no mapping and no list."""
    shape = definitions[option["$ref"].rsplit("/", 1)[-1]] if "$ref" in option else option
    if shape.get("type") == "array":
        return {"type": "array", "items": {}}  # Dagster's sample of a component's YAML looks for items
    if shape.get("type") != "object" or "properties" not in shape:
        return None
    kind = shape["properties"].get("type", {}).get("const")
    if kind is None:
        return {"type": "object"}
    return {"type": "object", "properties": {"type": {"const": kind}}, "required": ["type"]}


def with_lines(model: type[BaseModel]) -> type[BaseModel]:
    """The same model with such a schema."""

    class Told(model):  # type: ignore[valid-type,misc]
        @classmethod
        def model_json_schema(cls, *arguments: Any, **named: Any) -> dict[str, Any]:
            return told_apart(super().model_json_schema(*arguments, **named))

    Told.__name__ = model.__name__
    return Told
