"""Where a Longbow server listens: one host:port for data, one for metadata, whatever way the user wrote them."""

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from fletcher_core.errors import ConfigError

_PLAIN = ("grpc", "grpc+tcp")
_TLS = "grpc+tls"


def parse_address(text: str, *, setting: str) -> str:
    """`127.0.0.1:3000`, `grpc://127.0.0.1:3000` or `grpc+tcp://...` -> `127.0.0.1:3000`; `grpc+tls://` stays.

    Raises ConfigError, naming `setting`, when the text is no host and port.
    """
    url = urlsplit(text.strip() if "://" in text else f"grpc://{text.strip()}")
    if url.username or url.password:  # never repeat it: it may be a password
        raise ConfigError(f"{setting}: a name or password stands in the address; give a token by the token settings")
    if url.scheme not in (*_PLAIN, _TLS):
        raise ConfigError(
            f"{setting}: {text!r} has the scheme {url.scheme!r}; write 'host:port' for plain gRPC, "
            "or 'grpc+tls://host:port' for TLS"
        )
    try:
        host, port = url.hostname, url.port
    except ValueError as error:
        raise ConfigError(f"{setting}: {text!r} has no valid port ({error}); write 'host:port'") from error
    if not host or not port or url.path.strip("/") or url.query or url.fragment:
        raise ConfigError(f"{setting}: {text!r} is not an address; write 'host:port', as in '127.0.0.1:3000'")
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"{_TLS}://{place}" if url.scheme == _TLS else place


@dataclass(frozen=True)
class LongbowAddress:
    """Both ports of a server, as `host:port`, or `grpc+tls://host:port` where TLS is spoken on both.

    `data` alone is enough: metadata is then one port above, and speaks TLS when data does.
    """

    data: str
    meta: str = ""

    def __post_init__(self) -> None:
        data = parse_address(self.data, setting="Longbow data address")
        head, _, port = data.rpartition(":")
        meta = self.meta.strip() or f"{head}:{int(port) + 1}"
        if data.startswith(_TLS) and "://" not in meta:
            meta = f"{_TLS}://{meta}"
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "meta", parse_address(meta, setting="Longbow meta address"))
        if self.meta.startswith(_TLS) != data.startswith(_TLS):
            raise ConfigError(
                f"Longbow meta address: {self.meta!r} and the data address {data!r} do not agree on TLS; write both "
                "with 'grpc+tls://', or none"
            )

    @property
    def tls(self) -> bool:
        """Whether TLS is spoken."""
        return self.data.startswith(_TLS)

    @property
    def target(self) -> str:
        """The data port as `host:port`: the name under which a store remembers what this server holds."""
        return self.data.removeprefix(f"{_TLS}://")

    @property
    def is_loopback(self) -> bool:
        """Whether both ports are on this machine, so that nobody else can listen in on the way."""
        return all(
            is_loopback_host(address.rpartition(":")[0].removeprefix(f"{_TLS}://"))
            for address in (self.data, self.meta)
        )


def is_loopback_host(host: str) -> bool:
    """Whether a host, by name or number, is this machine and can be reached from nowhere else."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
