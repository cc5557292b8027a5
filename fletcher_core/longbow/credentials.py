"""How a client proves who it is and learns who the server is: TLS files and a token in, Flight's arguments out.

Certificates are read when a connection is made, the token for every call, so that one that is replaced is used at once.
"""

import os
import re
import ssl
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fletcher_core.errors import ConfigError
from fletcher_core.longbow.address import LongbowAddress
from fletcher_core.longbow.secret import Secret

MAX_TOKEN_BYTES = 4096
"""Longest token; gRPC drops calls whose headers are over 8 KiB."""

_TOKEN = re.compile(r"[\x21-\x7e]+")
_HEADER = re.compile(r"[a-z0-9][a-z0-9_.-]*")


@dataclass(frozen=True)
class Credentials:
    """What a client shows and checks. All empty: plain gRPC without a token, which is all that Longbow itself speaks.

    TLS is on when the address is `grpc+tls://host:port`; the files then say more. Of the three ways to give a token
    one is to be used. Raises ConfigError for settings that cannot work together, without the token in its message.
    """

    tls_ca: str = ""
    """PEM file of the authorities that may vouch for the server; empty: those that the system trusts."""
    tls_certificate: str = ""
    """PEM file of the certificate that the server asks the client for (mutual TLS), with `tls_key`."""
    tls_key: str = ""
    tls_server_name: str = ""
    """The name to expect in the server's certificate when it is not the address's host."""
    token: Secret | str = ""
    token_file: str = ""
    """File that holds the token, read again for every call: tokens that a secret store rotates stay valid."""
    token_env: str = ""
    """Name of an environment variable that holds the token."""
    token_header: str = "authorization"
    """`authorization` sends `Bearer <token>`; any other, such as `x-api-key`, the token as it is."""
    allow_plaintext_token: bool = False
    """Send the token without TLS to a host that is not this one, where everybody on the way can read it."""

    def __post_init__(self) -> None:
        if isinstance(self.token, str):
            object.__setattr__(self, "token", Secret(self.token))
        given = [name for name in ("token", "token_file", "token_env") if getattr(self, name)]
        if len(given) > 1:
            raise ConfigError(f"Longbow {' and '.join(given)} are both set: give the token in one way")
        if bool(self.tls_certificate) != bool(self.tls_key):
            missing = "tls_key" if self.tls_certificate else "tls_certificate"
            raise ConfigError(
                f"Longbow {missing} is empty: a client certificate needs both tls_certificate and tls_key"
            )
        if not _HEADER.fullmatch(self.token_header) or self.token_header.startswith("grpc-"):
            raise ConfigError(
                f"Longbow token_header: {self.token_header!r} is no header name; write it in lower case, such as "
                "'authorization' or 'x-api-key'"
            )
        if self.token_header.endswith("-bin"):
            raise ConfigError(f"Longbow token_header: {self.token_header!r} ends in '-bin', which gRPC keeps for bytes")
        if self.token:
            check_token(self.token.reveal(), "Longbow token")  # type: ignore[union-attr]

    @property
    def has_token(self) -> bool:
        return bool(self.token or self.token_file or self.token_env)

    def check(self, address: LongbowAddress) -> None:
        """Raises ConfigError when these do not fit the address: TLS files without TLS, a token that all could read."""
        files = [f.name for f in fields(self) if f.name.startswith("tls_") and getattr(self, f.name)]
        if files and not address.tls:
            raise ConfigError(
                f"Longbow {', '.join(files)}: set, but the address {address.data!r} is one without TLS; write "
                f"'grpc+tls://{address.data}', or leave the TLS settings out"
            )
        if self.has_token and not address.tls and not address.is_loopback and not self.allow_plaintext_token:
            raise ConfigError(
                f"Longbow token: {address.data!r} is another machine and the connection has no TLS, so that everybody "
                f"on the way could read the token; write 'grpc+tls://{address.data}', or set allow_plaintext_token "
                "where something else encrypts the way, such as a service mesh"
            )

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of one call. Raises ConfigError when the token's file or variable cannot be read."""
        if not self.has_token:
            return []
        token = self._read_token()
        value = f"Bearer {token}" if self.token_header == "authorization" else token
        return [(self.token_header.encode(), value.encode())]

    def _read_token(self) -> str:
        if self.token_file:
            return read_token_file(self.token_file, "Longbow token_file")
        if self.token_env:
            if self.token_env not in os.environ:
                raise ConfigError(f"Longbow token_env: there is no environment variable {self.token_env}; export it")
            return check_token(os.environ[self.token_env].strip(), f"Longbow token_env {self.token_env}")
        assert isinstance(self.token, Secret)
        return self.token.reveal()

    def flight_arguments(self) -> dict[str, Any]:
        """The arguments of `FlightClient` for TLS.

        Raises ConfigError, naming the setting, for a file that is missing, no PEM, or a key of another certificate.
        """
        arguments: dict[str, Any] = {}
        if self.tls_ca:
            arguments["tls_root_certs"] = read_authorities(self.tls_ca, "Longbow tls_ca")
        if self.tls_certificate:
            arguments["cert_chain"], arguments["private_key"] = read_key_pair(
                self.tls_certificate, self.tls_key, "Longbow tls_certificate", "Longbow tls_key"
            )
        if self.tls_server_name:
            arguments["override_hostname"] = self.tls_server_name
        return arguments


def check_token(text: str, setting: str) -> str:
    """The token, if it can travel in a header. Raises ConfigError that names the setting and not the token."""
    if not _TOKEN.fullmatch(text):
        what = "is empty" if not text else "holds a space, a line break or a character that is not ASCII"
        raise ConfigError(f"{setting}: the token {what}; a header cannot carry it. Store it again, in one line")
    if len(text) > MAX_TOKEN_BYTES:
        raise ConfigError(f"{setting}: the token has {len(text)} bytes, over the limit of {MAX_TOKEN_BYTES}")
    return text


def read_token_file(path: str | Path, setting: str) -> str:
    """The token in a file, without the white space around it. Raises ConfigError for none that can be sent."""
    try:
        with Path(path).open("rb") as file:
            held = file.read(MAX_TOKEN_BYTES + 64)
    except OSError as error:
        raise ConfigError(f"{setting}: {str(path)!r} cannot be read ({_reason(error)}); correct the path") from error
    return check_token(held.decode("utf-8", "replace").strip(), f"{setting} {str(path)!r}")


def read_authorities(path: str | Path, setting: str) -> bytes:
    """A PEM file of certificates. Raises ConfigError, naming the setting, when it is missing or holds none."""
    content = _read_pem(path, setting)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"{setting}: {str(path)!r} holds no certificate in PEM form ({_reason(error)})") from error
    return content


def read_key_pair(
    certificate: str | Path, key: str | Path, certificate_setting: str, key_setting: str
) -> tuple[bytes, bytes]:
    """A PEM certificate (with its chain) and its key. Raises ConfigError when one is unusable or they are no pair."""
    chain, private = _read_pem(certificate, certificate_setting), _read_pem(key, key_setting)
    if b"ENCRYPTED" in private:
        raise ConfigError(
            f"{key_setting}: {str(key)!r} is locked with a passphrase, which gRPC cannot ask for; unlock it"
        )
    read_authorities(certificate, certificate_setting)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"{key_setting}: {str(key)!r} is not the PEM key of the certificate {str(certificate)!r} ({_reason(error)})"
        ) from error
    return chain, private


def _read_pem(path: str | Path, setting: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting}: {str(path)!r} cannot be read ({_reason(error)}); correct the path") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or getattr(error, "reason", None) or type(error).__name__
