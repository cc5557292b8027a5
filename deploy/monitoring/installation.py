"""Prometheus' own programs for whoever checks this folder: a program's name in, its path out.

What is on the PATH is taken. Else Debian's package is unpacked, once, without installing it, into
`FLETCHER_PROMETHEUS_CACHE` (~/.cache/fletcher-prometheus). Run as a script it does so beforehand:
`python deploy/monitoring/installation.py`. (Built with Go it took 6 minutes on two cores, unpacked it takes 3 s.)
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_PACKAGE = "prometheus"
_SECONDS = 120


class NotInstalled(Exception):
    """The reason why a program cannot be had."""


def program(name: str) -> Path:
    """The path of `prometheus` or `promtool`. Raises NotInstalled with the reason when it cannot be had."""
    found = shutil.which(name)
    if found is not None:
        return Path(found)
    cache = Path(os.environ.get("FLETCHER_PROMETHEUS_CACHE") or Path.home() / ".cache" / "fletcher-prometheus")
    path = cache / "unpacked" / "usr" / "bin" / name
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "unpack.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _unpack(cache)
    if not path.exists():
        raise NotInstalled(f"Debian's package {_PACKAGE} has no {name}")
    return path


def _unpack(cache: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NotInstalled("prometheus and promtool are not on the PATH, and this is no Debian to take them from")
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        try:
            _run(["apt-get", "download", "-qq", _PACKAGE], folder)
            (archive,) = Path(folder).glob("*.deb")
            _run(["dpkg-deb", "-x", archive.name, "unpacked"], folder)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            said = (error.stderr or "").strip() if isinstance(error.stderr, str) else ""
            raise NotInstalled(
                f"prometheus and promtool are not on the PATH, and Debian's package cannot be had: {said or error}"
            ) from error
        shutil.rmtree(cache / "unpacked", ignore_errors=True)
        (Path(folder) / "unpacked").replace(cache / "unpacked")


def _run(command: list[str], folder: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=_SECONDS)


if __name__ == "__main__":
    try:
        print(f"Prometheus: {program('prometheus')}, {program('promtool')}")
    except NotInstalled as reason:
        print(f"not installed: {reason}", file=sys.stderr)
