"""What the shell offers when Tab is pressed after `--collection` or `--model`."""

from typing import Any

import typer


def complete_collection(context: typer.Context, incomplete: str) -> list[str]:
    """Collections of the store that `--store` names before."""
    folder: Any = context.params.get("store")
    if folder is None:
        return []
    from fletcher_core.store.status import find_collections

    found = {name for _, name in find_collections(folder)}
    return sorted(name for name in found if name.startswith(incomplete))


def complete_model(incomplete: str) -> list[str]:
    """Models on this machine."""
    from fletcher_core.models.installed import installed_models

    return sorted(name for name, _ in installed_models() if name.startswith(incomplete))
