"""Why a server's door stayed shut: pyarrow's error in, LongbowRejected with the setting to correct out.

gRPC reports every failed TLS handshake as UNAVAILABLE, as if the server were down and the call worth trying again.
"""

import contextlib
import socket
import ssl
from collections.abc import Iterator

import pyarrow.flight as flight

from fletcher_core.errors import LongbowRejected
from fletcher_core.longbow.calls import server_words
from fletcher_core.longbow.credentials import Credentials

_PROBE_SECONDS = 2.0
_EXPLAINED = {
    "certificate has expired": "the server's certificate has expired; renew it there",
    "certificate is not yet valid": "the server's certificate is not valid yet; correct the clocks or the certificate",
    "wrong version number": (
        "the server does not speak TLS; write the address as 'host:port', or put a proxy with TLS in front of it"
    ),
    "is not in peer certificate": (
        "the server's certificate is for another host; use a name that stands in it as the address, or give it as "
        "tls_server_name"
    ),
    "certificate verify failed": (
        "the server's certificate is not signed by an authority that is trusted; give the PEM file of the one that "
        "signed it as tls_ca"
    ),
}
"""Words of gRPC's, the narrower first, and what they mean to the user."""


@contextlib.contextmanager
def explain_refusals(address: str, call: str, credentials: Credentials) -> Iterator[None]:
    """Raises LongbowRejected for a handshake that will fail again and for a token that the server does not take."""
    try:
        yield
    except flight.FlightUnauthenticatedError as error:
        raise LongbowRejected(
            f"Longbow at {address}, {call}: access refused ({server_words(error)}). {_about_token(credentials)}"
        ) from error
    except flight.FlightInternalError as error:
        if address.startswith("grpc+tls") and "header with status: 400" in server_words(error):
            raise LongbowRejected(
                f"Longbow at {address}, {call}: the proxy there answers HTTP 400, as nginx does to a client without a "
                "certificate that it trusts; give tls_certificate and tls_key, or see the proxy's log"
            ) from error
        raise
    except flight.FlightUnavailableError as error:
        why = refusal(server_words(error), address, credentials)
        if why:
            raise LongbowRejected(f"Longbow at {address}, {call}: {why}") from error
        raise


def refusal(said: str, address: str, credentials: Credentials) -> str:
    """What is wrong with a connection that gRPC says is unavailable; '' when the server is merely not there."""
    if "failed to connect" not in said:
        return ""
    for words, meaning in _EXPLAINED.items():
        if words in said:
            return meaning
    if "handshake failed" in said.lower():
        return f"the TLS handshake failed ({said}); see the server's or its proxy's log"
    if "socket closed" in said.lower() or "connection reset" in said.lower():
        return _closed_at_once(address, credentials)
    return ""


def _closed_at_once(address: str, credentials: Credentials) -> str:
    """Ask the server by a handshake of our own: gRPC does not pass on why a server hung up, nor that it speaks TLS."""
    answer = _probe(address, credentials)
    if answer is None:  # no TLS there either, or nobody: it may come back
        return ""
    if not address.startswith("grpc+tls"):
        return f"the server speaks TLS; write its address as 'grpc+tls://{address}'"
    if not answer:
        return ""
    if not credentials.tls_certificate:
        return f"the server asks for a client certificate ({answer}); give tls_certificate and tls_key"
    return (
        f"the server does not take the client certificate {credentials.tls_certificate!r} ({answer}); give one that "
        "its authority signed and that has not expired, as tls_certificate and tls_key"
    )


def _probe(address: str, credentials: Credentials) -> str | None:
    """How the server ends a TLS handshake with us: '' when it stays and talks, None when there is no handshake."""
    host, _, port = address.removeprefix("grpc+tls://").rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent to it; the connection that carries rows does verify
    context.set_alpn_protocols(["h2"])
    try:
        if credentials.tls_certificate:
            context.load_cert_chain(credentials.tls_certificate, credentials.tls_key, password=lambda: "")
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS) as plain,
            context.wrap_socket(plain) as connection,
        ):
            # TLS 1.3 refuses a certificate after our side of the handshake; a server that stays sends its settings.
            try:
                return "" if connection.recv(1) else "it hung up after the handshake"
            except ConnectionResetError:
                return "it hung up after the handshake"
    except ssl.SSLError as error:
        return error.reason if error.reason and "ALERT" in error.reason else None
    except OSError:
        return None


def _about_token(credentials: Credentials) -> str:
    if not credentials.has_token:
        return "The server asks for a token: set token_file or token_env (or token)"
    given = "token_file" if credentials.token_file else "token_env" if credentials.token_env else "token"
    return f"It does not take the token given by {given}, sent as {credentials.token_header!r}: has it been replaced?"
