"""Real certificates for the tests, made by the `openssl` command: authorities, servers and clients, as PEM files."""

import shutil
import subprocess
from pathlib import Path

import pytest

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """A certificate authority in a folder, and what it signs. All keys are of one curve, so this takes milliseconds."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        folder.mkdir(parents=True, exist_ok=True)
        _openssl(folder, "req", "-x509", *_KEY, "-days", "30", "-subj", f"/CN={name}", *_files(name))

    @property
    def certificate(self) -> Path:
        return self.folder / f"{self.name}.pem"

    def sign(self, name: str, *alternatives: str, days: int = 30) -> tuple[Path, Path]:
        """Certificate and key of `name`, valid for such hosts as `IP:127.0.0.1` or `DNS:localhost`."""
        request, extension = f"{name}.csr", self.folder / f"{name}.ext"
        extension.write_text(f"subjectAltName={','.join(alternatives)}\n")
        _openssl(self.folder, "req", "-new", *_KEY, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", request)
        signing = ("-CA", f"{self.name}.pem", "-CAkey", f"{self.name}.key", "-set_serial", "7")
        given = ("-days", str(days), "-extfile", extension.name, "-out", f"{name}.pem")
        _openssl(self.folder, "x509", "-req", "-in", request, *signing, *given)
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"


def _files(name: str) -> tuple[str, ...]:
    return ("-keyout", f"{name}.key", "-out", f"{name}.pem")


def _openssl(folder: Path, *arguments: str) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed: no certificates can be made")
    run = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if run.returncode and "-1" in arguments:
        pytest.skip(f"this openssl makes no expired certificate: {run.stderr.strip().splitlines()[-1:]}")
    assert run.returncode == 0, run.stderr
