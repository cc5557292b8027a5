"""Files that are not on this machine: `s3://`, `gs://`, `https://` and whatever else fsspec knows, for DuckDB.

In come a DuckDB connection and paths; afterwards the connection can read them, through DuckDB's own extension where it
is installed, else through fsspec. Credentials are those of DuckDB's secrets, of fsspec's configuration, or of the
environment.
"""

from collections.abc import Iterable

import duckdb

from fletcher_core.errors import SourceError
from fletcher_core.object_files import filesystem
from fletcher_core.sql import first_line

_EXTENSIONS = {
    **dict.fromkeys(("s3", "s3a", "s3n", "gs", "gcs", "r2", "http", "https", "hf"), "httpfs"),
    **dict.fromkeys(("az", "azure", "abfs", "abfss"), "azure"),
}


def make_readable(connection: duckdb.DuckDBPyConnection, paths: Iterable[str]) -> None:
    """Lets `connection` read `paths`, which may be globs; paths of this machine need nothing.

    Raises:
        SourceError: a protocol for which neither DuckDB's extension nor a package of fsspec is there; says which.
    """
    for protocol in sorted({path.split("://", 1)[0].lower() for path in paths if "://" in path} - {"file"}):
        extension = _EXTENSIONS.get(protocol)
        if extension and _succeeds(connection, f"LOAD {extension}"):
            continue
        problem = _register(connection, protocol)
        if problem is None:
            continue
        # Last, since it asks a server, which takes its time to fail where there is no way to it.
        if extension and _succeeds(connection, f"INSTALL {extension}; LOAD {extension}"):
            continue
        own = f", or DuckDB's extension (INSTALL {extension} on a machine with a way to it)" if extension else ""
        raise SourceError(f"cannot read {protocol}:// paths: {problem}: install the package of fsspec for it{own}")


def _succeeds(connection: duckdb.DuckDBPyConnection, statement: str) -> bool:
    try:
        connection.execute(statement)
    except duckdb.Error:
        return False
    return True


def _register(connection: duckdb.DuckDBPyConnection, protocol: str) -> str | None:
    """Registers fsspec's filesystem; what is in the way if it cannot be."""
    try:
        files = filesystem(protocol)
    except (ImportError, ValueError) as error:  # the package of the protocol, or the protocol itself, is not known
        return first_line(error).rstrip(".")
    files.invalidate_cache()  # one object serves the process, and files may have come since it last listed them
    try:
        connection.register_filesystem(files)
    except duckdb.InvalidInputException as error:
        if "already been registered" not in str(error):
            raise
    return None
