"""How `fletcher serve` behaves, in one value."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fletcher_core.errors import ConfigError
from fletcher_core.longbow.client import LongbowSettings
from fletcher_core.longbow.secret import Secret
from fletcher_core.service.flight_access import check_exposure, check_keys

_DAY = 86_400  # seconds


@dataclass(frozen=True)
class BatcherSettings:
    """How requests are put together.

    Args:
        window_seconds: how long an idle engine waits for company to a request that came alone.
        max_queue_tokens: tokens that may wait for the engine, estimated by the texts' length; a request that finds
            more is turned away at once.
        request_timeout: seconds from a request's arrival to its answer.
    """

    window_seconds: float = 0.002
    max_queue_tokens: int = 1 << 20
    request_timeout: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.window_seconds <= 1:
            raise ConfigError(f"window_seconds is {self.window_seconds}; it must be from 0 to 1")
        if self.max_queue_tokens < 1:
            raise ConfigError(f"max_queue_tokens is {self.max_queue_tokens}; it must be at least 1")
        if not 0 < self.request_timeout <= _DAY:
            raise ConfigError(f"request_timeout is {self.request_timeout}; it must be above 0 seconds, up to {_DAY}")


@dataclass(frozen=True)
class ServiceSettings:
    """What the service listens to and lets through.

    Args:
        host, port: of HTTP; port 0 takes a free one.
        flight_port: of Arrow Flight; None serves none.
        api_keys: of which a request must carry one; none lets everybody in.
        model_aliases: further names that requests may call the model by.
        tls_certificate, tls_key: PEM files; both or neither.
        batching: how requests are put together.
        max_body_bytes: of one HTTP request: no other is answered while its JSON is read, a second for 8 MiB at worst.
        max_held_bytes: of all HTTP requests' bodies together, from their arrival to their answer.
        max_items: texts of one HTTP request.
        max_connections: of HTTP at a time; more are answered 503.
        max_flight_calls: of Flight at a time.
        body_timeout: seconds that a client may take to send a request's body.
        drain_timeout: seconds that requests in progress get at the end.
        probe_timeout: seconds in which the engine must compute a known text to be ready.
        longbow: where Flight's DoPut forwards to; None nowhere.
        metrics: whether `/metrics` is served.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    flight_port: int | None = None
    api_keys: Sequence[Secret | str] = field(default=(), repr=False)
    model_aliases: tuple[str, ...] = ()
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    batching: BatcherSettings = field(default_factory=BatcherSettings)
    max_body_bytes: int = 8 * 2**20
    max_held_bytes: int = 256 * 2**20
    max_items: int = 2048
    max_connections: int = 4096
    max_flight_calls: int = 64
    body_timeout: float = 30.0
    drain_timeout: float = 30.0
    probe_timeout: float = 0.8
    longbow: LongbowSettings | None = None
    metrics: bool = True

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("tls_certificate and tls_key belong together: set both, or neither")
        object.__setattr__(self, "api_keys", check_keys(self.api_keys))
        check_exposure(self.host, self.hidden_keys, None)
        if self.port not in range(65536) or self.flight_port not in (None, *range(65536)):
            raise ConfigError(f"port {self.port} or flight_port {self.flight_port} is none: give 0 to 65535")
        for name, least in {
            "max_body_bytes": 1024,
            "max_held_bytes": 1024,
            "max_items": 1,
            "max_connections": 1,
            "max_flight_calls": 1,
        }.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("body_timeout", "drain_timeout", "probe_timeout"):
            if not 0 < getattr(self, name) <= _DAY:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0 seconds, up to {_DAY}")

    @property
    def hidden_keys(self) -> tuple[Secret, ...]:
        """The API keys."""
        return check_keys(self.api_keys)
