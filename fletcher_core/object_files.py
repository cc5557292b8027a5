"""Files on object storage for whatever reads through fsspec, by obstore: where no package of the protocol's own is.

Credentials and endpoint are those of the environment, as for a vector store on object storage.
"""

import asyncio
import importlib
from collections.abc import Awaitable, Callable
from typing import Any

from fletcher_core.addresses import SCHEMES
from fletcher_core.object_requests import client_options, reason

_WAITS = (0.1, 0.3, 1.0, 3.0)  # seconds between attempts to list, whose answers obstore does not ask for again


def filesystem(protocol: str) -> Any:
    """fsspec's file system for `protocol`: that of the package for it (s3fs, gcsfs, adlfs), else obstore's.

    Raises:
        ImportError: neither is installed; says what to install.
        ValueError: there is no such protocol.
    """
    fsspec: Any = importlib.import_module("fsspec")
    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:
        if protocol not in SCHEMES:
            raise
        try:
            base: Any = importlib.import_module("obstore.fsspec").FsspecStore
        except ImportError:
            raise ImportError(f"{str(error).rstrip('.')}, or install Fletcher's extra `cloud`") from error
    return _patient(base, protocol)(protocol, client_options=client_options())


def _patient(base: Any, protocol: str) -> Any:
    """A class of obstore's file system that lists again when a list was cut off on its way, and fails with OSError."""
    errors = importlib.import_module("obstore.exceptions")

    class ObjectFiles(base):  # type: ignore[misc]
        async def _ls(self, *arguments: Any, **named: Any) -> Any:
            return await _again(lambda: super(ObjectFiles, self)._ls(*arguments, **named))

        async def _info(self, *arguments: Any, **named: Any) -> Any:
            return await _again(lambda: super(ObjectFiles, self)._info(*arguments, **named))

    async def _again(call: Callable[[], Awaitable[Any]]) -> Any:
        for wait in (*_WAITS, None):
            try:
                return await call()
            except errors.GenericError as error:
                if wait is None:
                    raise OSError(reason(error)) from None  # obstore's own text repeats the signature
                await asyncio.sleep(wait)
            except errors.BaseError as error:
                raise OSError(reason(error)) from None  # obstore's own text repeats the signature
        raise AssertionError("unreachable")

    ObjectFiles.protocol = protocol
    return ObjectFiles
