"""`fletcher status`: a store in; what it holds, what waits for Longbow, and who is at work out. Loads no model."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fletcher_core.commands import options
from fletcher_core.commands.options import LongbowOptions, embedded_folder
from fletcher_core.commands.output import counted, print_json, size
from fletcher_core.errors import ConfigError, LongbowError

if TYPE_CHECKING:
    from fletcher_core.store.status import CollectionStatus, GenerationStatus

_CALL_SECONDS = 2.0


def status(
    store: options.Store,
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection",
            autocompletion=options.complete_collection,
            help="Of this one alone.",
            show_default="all of the store",
        ),
    ] = None,
    longbow: Annotated[
        str,
        typer.Option(
            "--longbow",
            metavar="HOST:PORT",
            help="Ask this server, too.",
            show_default="the embedded one, if it runs",
        ),
    ] = "",
    longbow_meta: options.LongbowMeta = "",
    longbow_ca: options.LongbowCa = "",
    longbow_cert: options.LongbowCert = "",
    longbow_key: options.LongbowKey = "",
    longbow_server_name: options.LongbowServerName = "",
    as_json: options.Json = False,
) -> int:
    """Tell what a store holds, what waits for Longbow, and who is writing."""
    from fletcher_core.store.status import collection_status, find_collections

    found = find_collections(store)
    chosen = [(root, name) for root, name in found if collection in (None, name)]
    if not chosen:
        known = ", ".join(sorted({name for _, name in found}))
        what = f"there are no vectors of {collection!r}" if collection else "there is no vector store"
        raise ConfigError(
            f"{what} in {store}: " + (f"it has {known}" if known else "give the folder that a run wrote to")
        )
    said = LongbowOptions(longbow, longbow_meta, longbow_ca, longbow_cert, longbow_key, longbow_server_name)
    servers: dict[str, dict[str, Any]] = {}
    for root, name in chosen:
        state = collection_status(root, name)
        server = _server(said, state.root)
        servers[server.get("address", "")] = server
        if as_json:
            print_json({**asdict(state), "longbow": server})
        else:
            print("\n".join(_lines(state)))
    if not as_json:
        for server in servers.values():
            print(_server_line(server))
    return 0


def _server(said: LongbowOptions, root: Path) -> dict[str, Any]:
    """What can be said of the server, which is asked if its address is known; none is started."""
    from fletcher_core.longbow.breaker import breaker_of
    from fletcher_core.longbow.client import LongbowClient, LongbowSettings
    from fletcher_core.longbow.embedded import announced_address, embedded_credentials
    from fletcher_core.longbow.server.catalog import owner

    folder = embedded_folder(root)
    process = None if folder is None else owner(folder)
    facts: dict[str, Any] = {"embedded": None if folder is None else "running" if process is not None else "ended"}
    if said.data:
        settings = LongbowSettings(said.data, said.meta, call_timeout=_CALL_SECONDS, credentials=said.credentials())
    elif folder is not None and process is not None and (address := announced_address(folder)) is not None:
        settings = LongbowSettings(
            address.data, address.meta, call_timeout=_CALL_SECONDS, credentials=embedded_credentials(folder)
        )
    else:
        return facts
    facts |= {"address": settings.address.data, "reachable": True, "problem": ""}
    try:
        with LongbowClient(settings) as client:
            facts["readiness"] = client.readiness().status
    except LongbowError as error:
        facts |= {"reachable": False, "problem": str(error)}
    facts["breaker"] = breaker_of(settings.address.data).state
    return facts


def _lines(state: "CollectionStatus") -> list[str]:
    lines = [f"{state.collection} in {state.address}"]
    for generation in state.generations:
        lines += _generation_lines(generation)
    aside = ", ".join(f"{count} {reason}" for reason, count in state.quarantine.items())
    return [*lines, _fact("quarantine", aside or "empty"), ""]


def _generation_lines(generation: "GenerationStatus") -> list[str]:
    vectors = f"{generation.dimension} {generation.vector_type}"
    lines = [
        _fact("generation", generation.name),
        _fact("model", f"{generation.model} ({generation.fingerprint[:12]}), vectors of {vectors}"),
        _fact(
            "rows",
            f"{generation.rows:,} in {counted(generation.files, 'file', 'files')}, {size(generation.bytes)}, "
            f"{counted(generation.partitions, 'partition', 'partitions')}",
        ),
    ]
    if generation.last_run_at is not None:
        at = datetime.fromtimestamp(generation.last_run_at, UTC)
        lines.append(_fact("last run", f"{at:%Y-%m-%d %H:%M:%S} UTC ({generation.last_run_id})"))
    for target, rows in generation.outbox.items():
        names = {"searchable": "live rows searchable"}
        states = ", ".join(f"{count:,} {names.get(name, name)}" for name, count in rows.items() if count)
        lines.append(_fact("outbox", f"{target}: {states or 'empty'}"))
    if not generation.outbox:
        waiting = (
            f"{counted(generation.pending, 'row waits', 'rows wait')} for a first delivery"
            if generation.pending
            else "empty"
        )
        lines.append(_fact("outbox", f"{waiting}; nothing was ever sent to a Longbow"))
    lines.append(_fact("lock", ", ".join(generation.locked_by) or "nobody is writing"))
    return lines


def _fact(name: str, value: str) -> str:
    return f"  {name:<11} {value}"


def _server_line(server: dict[str, Any]) -> str:
    embedded = {None: "none", "running": "running", "ended": "ended; the next command starts it"}[server["embedded"]]
    if "address" not in server:
        return f"longbow: no address is known; embedded server: {embedded}"
    answer = f"reachable, {server['readiness']}" if server["reachable"] else f"not reachable: {server['problem']}"
    return f"longbow: {server['address']} {answer}; breaker {server['breaker']}; embedded server: {embedded}"
