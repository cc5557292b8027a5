"""An embedded server that speaks Longbow's protocol on loopback, for demos, development and tests."""

from fletcher_core.longbow.server.access import ServerTls
from fletcher_core.longbow.server.faults import Faults
from fletcher_core.longbow.server.limits import Limits
from fletcher_core.longbow.server.ports import LongbowServer

__all__ = ["Faults", "Limits", "LongbowServer", "ServerTls"]
