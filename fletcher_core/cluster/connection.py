"""The way to a Ray cluster: the one that this process is connected to, one at an address, or one of its own."""

import logging
import os
import socket
from typing import Any

from fletcher_core.cluster.ray_settings import RaySettings
from fletcher_core.errors import ConfigError
from fletcher_core.sql import first_line

_CONNECT_SECONDS = 10.0


def ray_module() -> Any:
    """Ray, imported on first use.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"Ray cannot be imported ({error}): install Fletcher's extra `ray`") from error
    return ray


def connect(settings: RaySettings) -> bool:
    """Connects this process to the cluster of `settings`; False when it was connected already.

    Raises:
        ConfigError: there is none, or it does not let us in.
    """
    ray = ray_module()
    if ray.is_initialized():
        return False
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        _check_answers(address)
        ray.init(address=address, logging_level=logging.WARNING, include_dashboard=False)
    except Exception as error:
        raise ConfigError(
            f"the Ray cluster at {address!r} cannot be reached: {first_line(error)}. Give the address of one that "
            "runs (ray start --head prints it), or 'local'; with token authentication, set RAY_AUTH_MODE=token and "
            "the token here too"
        ) from error
    return True


def _check_answers(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself tries for many minutes, and cannot be interrupted meanwhile."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
