"""Where a Longbow server listens: one host:port for data, one for metadata, whatever way the user wrote them."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from fletcher_core.errors import ConfigError

_SCHEMES = ("grpc", "grpc+tcp")


def parse_address(text: str, *, setting: str) -> str:
    """`127.0.0.1:3000`, `grpc://127.0.0.1:3000` or `grpc+tcp://...` -> `127.0.0.1:3000`.

    Raises ConfigError, naming `setting`, when the text is no host and port, or asks for TLS, which Longbow lacks.
    """
    url = urlsplit(text.strip() if "://" in text else f"grpc://{text.strip()}")
    if url.scheme not in _SCHEMES:
        raise ConfigError(
            f"{setting}: {text!r} has the scheme {url.scheme!r}; Longbow speaks plain gRPC, write 'host:port'"
        )
    try:
        host, port = url.hostname, url.port
    except ValueError as error:
        raise ConfigError(f"{setting}: {text!r} has no valid port ({error}); write 'host:port'") from error
    if not host or not port or url.path.strip("/") or url.query or url.username:
        raise ConfigError(f"{setting}: {text!r} is not an address; write 'host:port', as in '127.0.0.1:3000'")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True)
class LongbowAddress:
    """Both ports of a server, each as `host:port`. `data` alone is enough: metadata is then one port above."""

    data: str
    meta: str = ""

    def __post_init__(self) -> None:
        data = parse_address(self.data, setting="Longbow data address")
        host, _, port = data.rpartition(":")
        meta = self.meta or f"{host}:{int(port) + 1}"
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "meta", parse_address(meta, setting="Longbow meta address"))
