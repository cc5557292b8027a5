"""A real S3 server, moto's, behind a proxy that can do harm; and stores on it, each with a working copy of its own."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from s3_proxy import OpenOn, Proxy, s3_client

from fletcher_core.store import VectorStore
from fletcher_core.store.cloud import bucket

_names = itertools.count()


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    pytest.importorskip("obstore", reason="a store on object storage needs obstore")
    pytest.importorskip("moto", reason="the S3 server of the tests is moto's")
    command = [sys.executable, str(Path(__file__).with_name("s3_server.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        yield int(server.stdout.readline())
        server.stdin.close()


@pytest.fixture
def proxy(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Between this test and the server; the environment names it, with short times."""
    proxy = Proxy(s3_port)
    monkeypatch.setattr(bucket, "_FIRST_WAIT", 0.005)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "the-key",
        "AWS_SECRET_ACCESS_KEY": "the-secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": proxy.endpoint,
        "NO_PROXY": "127.0.0.1",
        "FLETCHER_LEASE_SECONDS": "0.6",
        "FLETCHER_CLOUD_PATIENCE": "5",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    yield proxy
    proxy.close()


@pytest.fixture
def address(proxy: Proxy) -> str:
    """Of a store that is not there yet, in a bucket of its own."""
    name = f"bucket-{os.getpid()}-{next(_names)}"
    s3_client(proxy).create_bucket(Bucket=name)
    return f"s3://{name}/some/folder"


@pytest.fixture
def on(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenOn]:
    """Opens the store as a machine of this name would, with its own working copy; they are closed in the end."""
    with ExitStack() as stack:

        def open_on(machine: str) -> VectorStore:
            monkeypatch.setenv("FLETCHER_CLOUD_CACHE", str(tmp_path / machine))
            return stack.enter_context(VectorStore.open(address, collection="docs"))

        yield open_on
