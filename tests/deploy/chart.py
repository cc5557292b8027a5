"""The chart's files for the tests that read them: templates as text, values and their schema as data."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "fletcher"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
TEMPLATES = {path.name: path.read_text("utf-8") for path in sorted((CHART / "templates").iterdir())}
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text("utf-8"))


def settings(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Every value that can be set, by its path with dots; an empty object is one, as is a resources or volume part."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{above}{name}"
        is_part = isinstance(value, dict) and value and name != "resources"
        found |= settings(value, f"{path}.") if is_part else {path: value}
    return found


def described(path: str) -> dict[str, Any]:
    """The schema's words on a value. Raises KeyError for one that it does not know."""
    part = SCHEMA
    for name in path.split("."):
        part = part["properties"][name]
        while "$ref" in part:
            part = SCHEMA["definitions"][part["$ref"].rsplit("/", 1)[1]]
    return part


def options(template: str) -> set[str]:
    """The options that the template's containers are started with."""
    return set(re.findall(r"^\s*- (--[a-z-]+)", TEMPLATES[template], re.MULTILINE))
