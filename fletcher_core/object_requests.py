"""Requests to object storage through obstore: how long they may take, and what is said of their failures."""

import os
import re
from datetime import timedelta
from typing import Any

from fletcher_core.addresses import without_secrets

_CONNECT = timedelta(seconds=5)
_READ = timedelta(seconds=20)
_WHOLE = timedelta(hours=1)  # a large file over a slow line; a line that is dead is found by _READ


def client_options() -> dict[str, Any]:
    """How long to wait for an answer; plain HTTP where the environment names an endpoint with it."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    plain = {"allow_http": True} if endpoint.startswith("http://") else {}
    return {"connect_timeout": _CONNECT, "read_timeout": _READ, "timeout": _WHOLE, **plain}


def reason(error: BaseException) -> str:
    """An error in few words, without what a server's answer repeats of the request's signature and keys."""
    text = str(error)
    code, told = (re.search(rf"<{tag}>([^<]*)</{tag}>", text) for tag in ("Code", "Message"))
    status = re.search(r"status code: (\d{3}[^:<]*)", text)
    parts = [found[1].strip() for found in (status, code, told) if found]
    plain = "; ".join(dict.fromkeys(parts)) or text.split("<?xml")[0].split("Debug source")[0]
    return without_secrets(" ".join(plain.split()))[:300].rstrip(". ") or type(error).__name__
