"""A project in a temporary folder with one component in it, loaded as Dagster loads it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster.components.testing import create_defs_folder_sandbox

from fletcher_dagster import FletcherEmbeddingsComponent

REVIEWS = {
    "type": "duckdb",
    "database": "data/shop.duckdb",
    "table": "reviews",
    "text_columns": ["title", "body"],
    "partition_column": "day",
}


@contextmanager
def loaded(
    *entries: dict[str, Any],
    fletcher: dict[str, Any] | None = None,
    component: type[FletcherEmbeddingsComponent] = FletcherEmbeddingsComponent,
    text: str = "",
    modules: Mapping[str, str] | None = None,
) -> Iterator[tuple[FletcherEmbeddingsComponent, dg.Definitions]]:
    """A project with one component of these `embeddings`, or with what `text` says as it stands. `modules` are files of
    Python beside it."""
    attributes = {"fletcher": {"store_path": "vectors", **(fletcher or {})}, "embeddings": list(entries)}
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=component,
            defs_yaml_contents={"type": _type_name(component), "attributes": attributes},
        )
        for name, code in (modules or {}).items():
            (path / name).write_text(code)
        if text:
            (path / "defs.yaml").write_text(text)
        with sandbox.load_component_and_build_defs(defs_path=path) as (loaded_component, defs):
            assert isinstance(loaded_component, component)
            yield loaded_component, defs


def _type_name(component: type[FletcherEmbeddingsComponent]) -> str:
    return f"{component.__module__}.{component.__name__}"


def spec_of(defs: dg.Definitions, key: str) -> dg.AssetSpec:
    return next(spec for spec in defs.resolve_all_asset_specs() if spec.key.to_user_string() == key)
