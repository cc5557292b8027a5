"""Delivery to Longbow: client, background sender, and an embedded server for demos and tests."""

from fletcher_core.longbow.address import LongbowAddress
from fletcher_core.longbow.client import LongbowClient, LongbowSettings, PutResult, Readiness
from fletcher_core.longbow.credentials import Credentials
from fletcher_core.longbow.embedded import embedded_credentials, ensure_embedded, stop_embedded
from fletcher_core.longbow.secret import Secret
from fletcher_core.longbow.sender import DeliveryReport, Sender, SenderSettings

__all__ = [
    "Credentials",
    "DeliveryReport",
    "LongbowAddress",
    "LongbowClient",
    "LongbowSettings",
    "PutResult",
    "Readiness",
    "Secret",
    "Sender",
    "SenderSettings",
    "embedded_credentials",
    "ensure_embedded",
    "stop_embedded",
]
