"""YAML shapes that are derived from what Python already says, so that a new setting needs one place.

In goes a resource, a dataclass or a function with its docstring; out comes a pydantic model with the same names,
defaults and descriptions. A value that is no text may be a template instead, such as `{{ env.MAX_LENGTH }}`.
"""

import enum
import inspect
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import dagster as dg
from pydantic import Field, StringConstraints, TypeAdapter, ValidationError, create_model

from fletcher_core.errors import ConfigError
from fletcher_dagster.setting_checks import CHOICES

Template = Annotated[str, StringConstraints(pattern=r"\{\{.*\}\}")]
"""What stands for a value that is no text: `{{ env.MAX_LENGTH }}`."""


def resource_model(resource: type[dg.ConfigurableResource[Any]], **nested: Any) -> type[dg.Model]:
    """The YAML shape of a resource: its fields, with their descriptions and defaults; `nested` gives the shapes of
    fields that are resources themselves."""
    return _model(
        f"{resource.__name__}Model",
        f"See `{resource.__name__}`.",
        {
            name: (
                nested.get(name) or _yaml_type(name, field.annotation),
                Field(description=field.description)
                if field.is_required()
                else Field(field.default, description=field.description),
            )
            for name, field in resource.model_fields.items()
        },
    )


def call_model(
    called: Callable[..., Any], *, without: tuple[str, ...] = (), kind: str | None = None, name: str | None = None
) -> type[dg.Model]:
    """The YAML shape of what a function or a dataclass is called with.

    The descriptions are those under `Args:` or `Attributes:` in its docstring. `without` are parameters that are not
    for YAML; `kind` is what `type` says where several shapes may stand in one place.
    """
    said = _descriptions(called)
    fields: dict[str, Any] = {}
    if kind is not None:
        fields["type"] = (Literal[kind], Field(description=f"Of `{called.__name__}`."))
    for setting, parameter in _parameters(called, without).items():
        default = parameter.default
        if default is inspect.Parameter.empty:
            default = ...
        elif isinstance(default, enum.Enum):
            default = default.value
        elif callable(default):  # has no place in a schema
            default = None
        fields[setting] = (_yaml_type(setting, parameter.annotation), Field(default, description=said.get(setting)))
    return _model(name or f"{_camel(called.__name__)}Model", f"See `{called.__name__}`.", fields)


def call_settings(called: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, as rendered from YAML, as what the function or dataclass takes: "RUNNING" as the status, `off` (which
    YAML reads as False) as the word.

    Raises:
        ConfigError: a template gave a value of another type.
    """
    others = set(inspect.signature(called).parameters) - set(given)
    parameters = _parameters(called, tuple(others))
    settings: dict[str, Any] = {}
    for name, value in given.items():
        annotation = parameters[name].annotation
        word = "off" if value is False and "off" in get_args(annotation) else value
        try:
            settings[name] = TypeAdapter(annotation).validate_python(word)
        except ValidationError as error:
            raise ConfigError(f"{name} is {value!r}: {_lowered(error.errors()[0]['msg'])}") from None
    return settings


def _parameters(called: Callable[..., Any], without: tuple[str, ...]) -> dict[str, inspect.Parameter]:
    """By name, with annotations that are types; the one of the result may name what only a type checker imports."""
    given = [one for one in inspect.signature(called).parameters.values() if one.name not in without]
    annotations = SimpleNamespace(__annotations__={one.name: one.annotation for one in given})
    namespace = getattr(called, "__globals__", {})
    hints = get_type_hints(annotations, namespace)
    return {one.name: one.replace(annotation=hints[one.name]) for one in given}


def _descriptions(called: Callable[..., Any]) -> dict[str, str]:
    """What `Args:` or `Attributes:` of a docstring say of each name."""
    part = re.search(r"^(?:Args|Attributes):\n((?:    .*\n|\n)+)", f"{inspect.getdoc(called)}\n", re.MULTILINE)
    entries = re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", part[1] if part else "", re.MULTILINE)
    return {name: text[0].upper() + " ".join(text[1:].split()) for names, text in entries for name in names.split(", ")}


def _yaml_type(name: str, annotation: Any) -> Any:
    """As annotated, and a template; of words, only those that exist."""
    if name in CHOICES:
        return CHOICES[name] | (Template | None if type(None) in get_args(annotation) else Template)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return Literal[tuple(member.value for member in annotation)] | Template
    if get_origin(annotation) is Callable:
        return Template
    if "off" in get_args(annotation):
        return annotation | Literal[False] | Template  # YAML reads a bare `off` as False
    return annotation if str in (annotation, *get_args(annotation)) else annotation | Template


def _model(name: str, documentation: str, fields: Mapping[str, Any]) -> type[dg.Model]:
    model: type[dg.Model] = create_model(name, __base__=dg.Model, __doc__=documentation, **fields)
    return model


def _camel(name: str) -> str:
    return "".join(part.title() if part.islower() else part for part in name.split("_"))


def _lowered(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
