"""The page on the service over Flight: its example runs as it stands there."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fletcher_core.service.flight import FlightService

PAGE = Path(__file__).parents[3] / "docs" / "service.md"


def test_the_example_of_the_page_runs(serve: Callable[..., FlightService], capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    (example,) = [text for text in examples if "grpc://127.0.0.1:8815" in text]
    here = example.replace("grpc://127.0.0.1:8815", serve(keys=["KEY"]).address)
    exec(compile(here, PAGE.name, "exec"), {})
    assert capsys.readouterr().out == "2 ['id', 'body', 'vector']\n"
