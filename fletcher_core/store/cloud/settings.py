"""What the environment says of stores on object storage: where working copies are, and how long to wait for what."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from fletcher_core.errors import ConfigError
from fletcher_core.store.schema import slug


@dataclass(frozen=True)
class CloudSettings:
    """`cache` is the folder of the working copies (FLETCHER_CLOUD_CACHE); `lease_seconds` how long a run that is not
    heard of keeps its locks (FLETCHER_LEASE_SECONDS, alike on all machines); `patience` for how many seconds requests
    are made again (FLETCHER_CLOUD_PATIENCE)."""

    cache: Path
    lease_seconds: float = 60.0
    patience: float = 30.0

    @classmethod
    def from_environment(cls) -> "CloudSettings":
        """Raises ConfigError for times that are none."""
        cache = os.environ.get("FLETCHER_CLOUD_CACHE") or Path(
            os.environ.get("XDG_CACHE_HOME") or "~/.cache", "fletcher", "stores"
        )
        return cls(
            Path(cache).expanduser().absolute(),
            _seconds("FLETCHER_LEASE_SECONDS", cls.lease_seconds),
            _seconds("FLETCHER_CLOUD_PATIENCE", cls.patience),
        )

    def folder(self, address: str) -> Path:
        """Of the working copy of the store at `address`: one for each address and endpoint."""
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        digest = hashlib.sha256(f"{endpoint}\n{address}".encode()).hexdigest()[:12]
        return self.cache / f"{slug(address)}-{digest}"


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{name} is {text!r}: it must be a number of seconds above 0")
    return seconds
