"""All commands as one typer application. Importing it brings typer, and nothing that computes."""

from typing import Any

import typer

from fletcher_core.commands import (
    bench,
    compact,
    deliver,
    drop,
    embed,
    models,
    quarantine,
    reconcile,
    search,
    selftest,
    serve,
    status,
)

UsageError: Any = typer.BadParameter.__base__
"""What typer raises for arguments that it cannot use."""

# Plain help: it is aligned, can be searched and copied, and costs no import of a renderer.
app = typer.Typer(
    name="fletcher",
    help="Embeddings of texts in files, DuckDB and Parquet tables; a store of them; and their way to Longbow.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

app.command("embed")(embed.embed)
app.command("search")(search.search)
app.command("status")(status.status)
app.command("deliver")(deliver.deliver)
app.command("reconcile")(reconcile.reconcile)
app.add_typer(quarantine.group, name="quarantine")
app.command("compact")(compact.compact)
app.command("drop")(drop.drop)
app.command("serve")(serve.serve)
app.command("models")(models.models)
app.command("bench")(bench.bench)
app.command("selftest")(selftest.selftest)
