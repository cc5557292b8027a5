"""`fletcher serve` names its own options in what it refuses, before it loads a model."""

from pathlib import Path
from typing import Any

import pytest

from fletcher_core import Embedder
from fletcher_core.cli import main
from fletcher_core.errors import ConfigError
from fletcher_core.service.run import serve
from fletcher_core.service.settings import ServiceSettings


@pytest.fixture(autouse=True)
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(Embedder, "load", refuse)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tls-cert", "bad.pem"], "--tls-cert and --tls-key belong together"),
        (["--tls-cert", "none.pem", "--tls-key", "bad.pem"], "--tls-cert: 'none.pem' cannot be read (No such file"),
        (["--tls-cert", "bad.pem", "--tls-key", "bad.pem"], "--tls-cert: 'bad.pem' "),
        (["--drain-timeout", "0"], "--drain-timeout is 0.0"),
        (["--request-timeout", "0"], "--request-timeout is 0.0"),
        (["--longbow", "grpc+tls://localhost:3000", "--longbow-cert", "x"], "--longbow-cert"),
    ],
)
def test_errors_name_the_options(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.pem").write_text("no PEM")
    assert main(["serve", *arguments]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert ("--longbow" in err) == ("--longbow" in arguments)


@pytest.mark.parametrize("arguments", [["--port", "99999"], ["--flight-port", "-1"], ["--window-ms", "1001"]])
def test_numbers_out_of_range_are_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["serve", *arguments])
    assert arguments[0] in capsys.readouterr().err


def test_the_service_says_which_file_is_no_pem(
    minilm: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Embedder, "close", lambda self: None)
    (tmp_path / "bad.pem").write_text("no PEM")
    settings = ServiceSettings(port=0, tls_certificate=tmp_path / "bad.pem", tls_key=tmp_path / "bad.pem")
    with pytest.raises(ConfigError, match=r"tls_certificate: '.*bad\.pem'"):
        serve(minilm, settings)
