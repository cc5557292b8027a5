"""Places of vector stores as users write them: folders, and addresses of object storage such as `s3://bucket/folder`."""

import os
import re
from pathlib import Path

from fletcher_core.errors import ConfigError

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl")
Where = str | os.PathLike[str]


def is_address(place: Where) -> bool:
    """Whether `place` is an address rather than a path."""
    return isinstance(place, str) and bool(re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", place))


def checked_address(address: str) -> str:
    """`address` in its one form, without slashes at its end.

    Raises:
        ConfigError: a protocol that no store can be on, no bucket, or credentials in the address.
    """
    protocol, rest = address.split("://", 1)
    bucket, _, folder = rest.partition("/")
    if protocol.lower() not in SCHEMES:
        raise ConfigError(
            f"a vector store cannot be at {without_secrets(address)!r}: give a folder, or an address that begins with "
            "s3://, gs:// or az://"
        )
    has_user = "@" in bucket and not protocol.lower().startswith("abfs")
    if not bucket or has_user or any(sign in rest for sign in "?#"):
        raise ConfigError(
            f"the vector store's address {without_secrets(address)!r} must be {protocol}://BUCKET/FOLDER and nothing "
            "else: credentials and options are taken from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and "
            "the like)"
        )
    parts = [part for part in folder.split("/") if part]
    if any(part in (".", "..") for part in parts):
        raise ConfigError(f"the vector store's address {address!r} has a part '.' or '..': name the folder itself")
    return "/".join([f"{protocol.lower()}://{bucket}", *parts])


def below(place: Where, name: str) -> str | Path:
    """The folder `name` in a folder or below an address."""
    if is_address(place):
        return f"{str(place).rstrip('/')}/{name}"
    return Path(place) / name


def without_secrets(text: str) -> str:
    """A text with addresses, without what may be secret in them: what stands before @, and queries."""
    return re.sub(r"\?\S*", "?...", re.sub(r"://[^/@\s]*@", "://...@", text))
