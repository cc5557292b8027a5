"""The arguments that several commands share, and what they name: a store, a Longbow server."""

import argparse
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from fletcher_core.errors import ConfigError
from fletcher_core.longbow.client import LongbowSettings
from fletcher_core.longbow.credentials import Credentials
from fletcher_core.longbow.embedded import announced_address, embedded_credentials, ensure_embedded
from fletcher_core.store import Generation, VectorStore

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
_LONGBOW = "127.0.0.1:3000"
_TOKEN = "FLETCHER_LONGBOW_TOKEN"
_TOKEN_HEADER = "FLETCHER_LONGBOW_TOKEN_HEADER"
_TLS_OPTIONS = {
    "--longbow-ca": "PEM file that vouches for a server at grpc+tls://host:port; the system's authorities by default",
    "--longbow-cert": "PEM file of the client's certificate, for mutual TLS",
    "--longbow-key": "PEM file of its key",
    "--longbow-server-name": f"name in the server's certificate, if not the host's; a token is taken from ${_TOKEN}",
}


_SETTINGS = {
    "tls_ca": "--longbow-ca",
    "tls_certificate": "--longbow-cert",
    "tls_key": "--longbow-key",
    "tls_server_name": "--longbow-server-name",
    "token_env": f"${_TOKEN}",
    "token_header": f"${_TOKEN_HEADER}",
}
"""What the command line calls the settings that errors name."""


def add_store(command: argparse.ArgumentParser) -> None:
    """`--store` and `--collection`."""
    command.add_argument(
        "--store", type=Path, required=True, help="folder of the vector store, or a resource's store_path"
    )
    command.add_argument("--collection", required=True, help="name of the collection, as in the asset's key")


def add_longbow(command: argparse.ArgumentParser) -> None:
    """`--longbow`, `--longbow-meta` and what TLS needs."""
    command.add_argument(
        "--longbow",
        default="",
        help=f"Longbow's data address; the embedded server beside the store by default, or {_LONGBOW}",
    )
    command.add_argument("--longbow-meta", default="", help="its meta address; the next port by default")
    for option, described in _TLS_OPTIONS.items():
        command.add_argument(option, default="", help=described)


def seconds(text: str) -> float:
    """A time above 0, for argparse."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 seconds")
    return value


def open_store(options: argparse.Namespace) -> VectorStore:
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


def newest(store: VectorStore) -> Generation:
    """The generation that search asks. Of a store that `open_store` opened, which has one."""
    generation = store.current()
    assert generation is not None
    return generation


def in_options(message: str) -> str:
    """An error's message, with what the command line calls the settings that it names."""
    named = [f"{name} is {option}" for name, option in _SETTINGS.items() if re.search(rf"\b{name}\b", message)]
    return f"{message} (on the command line {', '.join(named)})" if named else message


def longbow_settings(options: argparse.Namespace, store: VectorStore) -> LongbowSettings:
    """The server that was named, else the embedded one beside the store, else one at Longbow's own port.

    The embedded one is started again if it has ended. Raises ConfigError for an address that is none and for settings
    of an address without one, LongbowUnavailable when the embedded server does not start.
    """
    folders = [folder / ".longbow" for folder in (store.root, store.root.parent)]
    embedded = next((folder for folder in folders if announced_address(folder) is not None), None)
    if options.longbow:
        named = LongbowSettings(options.longbow, options.longbow_meta, credentials=_credentials(options))
        if embedded is None or named.credentials.has_token or announced_address(embedded) != named.address:
            return named
        return replace(named, credentials=embedded_credentials(embedded))
    names = ("longbow_meta", "longbow_ca", "longbow_cert", "longbow_key", "longbow_server_name")
    if given := [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]:
        raise ConfigError(f"{', '.join(given)}: set, but --longbow is not; give the address of the server, too")
    if embedded is not None:
        address = ensure_embedded(embedded, private=embedded_credentials(embedded).has_token)
        return LongbowSettings(address.data, address.meta, credentials=embedded_credentials(embedded))
    return LongbowSettings(_LONGBOW, credentials=_credentials(options))


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
