"""`fletcher search`: a text in, the rows nearest to it out, best first."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fletcher_core.commands import options
from fletcher_core.commands.options import LongbowOptions, longbow_client, newest, open_store
from fletcher_core.commands.output import note, print_json, printable

if TYPE_CHECKING:
    from fletcher_core.longbow.client import LongbowClient
    from fletcher_core.store import Generation


def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    store: options.Store,
    collection: options.Collection,
    k: Annotated[int, typer.Option("-k", min=1, help="How many hits.")] = 10,
    model: options.Model = options.DEFAULT_MODEL,
    query_prompt: Annotated[
        str | None, typer.Option("--query-prompt", help="Prompt for queries.", show_default="the model's")
    ] = None,
    max_length: options.MaxLength = None,
    dimension: options.Dimension = None,
    prompt: options.Prompt = None,
    long_text: options.LongText = "truncate",
    longbow: options.Longbow = "",
    longbow_meta: options.LongbowMeta = "",
    longbow_ca: options.LongbowCa = "",
    longbow_cert: options.LongbowCert = "",
    longbow_key: options.LongbowKey = "",
    longbow_server_name: options.LongbowServerName = "",
    as_json: options.Json = False,
) -> int:
    """Find the rows nearest to a text.

    Prints a hit a line: cosine, id, metadata. The model and its settings must be those that the rows were embedded
    with.
    """
    said = LongbowOptions(longbow, longbow_meta, longbow_ca, longbow_cert, longbow_key, longbow_server_name)
    with open_store(store, collection) as opened, longbow_client(said, opened, store) as client:
        from fletcher_core.embedder import Embedder
        from fletcher_core.search import search as nearest

        embedder = Embedder.load(
            model,
            query_prompt=query_prompt,
            max_length=max_length,
            dimension=dimension,
            prompt=prompt,
            long_text=long_text,
        )
        hits = nearest(opened, client, embedder, query, k)
        for hit in hits:
            if as_json:
                print_json(asdict(hit))
                continue
            described = "  ".join(f"{name}={value}" for name, value in hit.metadata.items())
            print(printable(f"{hit.cosine:.4f}  {hit.id}  {described}".rstrip()))
        if len(hits) < k:
            _tell_what_is_missing(newest(opened), client, len(hits))
    return 0


def _tell_what_is_missing(generation: "Generation", client: "LongbowClient", found: int) -> None:
    """Whether there is no more to find, or the server lacks rows."""
    rows = generation.row_count()
    if found >= rows:
        note(f"that is all: {generation.name} has {rows} rows" if rows else f"{generation.name} has no rows")
        return
    indexed = client.readiness(generation.name).index_len
    looked = "" if indexed is None else f"; its searches look at {indexed}"
    note(
        f"{found or 'nothing'} found, but the store has {rows} rows: Longbow at {client.address.target} does not have "
        f"them all{looked}. `fletcher deliver` sends what waits, `fletcher reconcile` finds what the server lost"
    )
