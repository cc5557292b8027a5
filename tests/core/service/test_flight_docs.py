"""The page on the service over Flight: its example runs as it stands there."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fletcher_core.service.flight import FlightService

PAGE = Path(__file__).parents[3] / "docs" / "service-flight.md"


def test_the_example_of_the_page_runs(serve: Callable[..., FlightService], capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert "grpc://127.0.0.1:8815" in example
    here = example.replace("grpc://127.0.0.1:8815", serve(keys=["KEY"]).address)
    exec(compile(here, PAGE.name, "exec"), {})
    assert capsys.readouterr().out == "2 ['id', 'body', 'vector']\n"
