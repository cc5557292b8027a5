"""Longbow's own servers, built with Go's package client: a version in, the path of a binary and how to run it out.

Built once into `FLETCHER_LONGBOW_CACHE` (~/.cache/fletcher-longbow), under a lock, as several test processes may ask at
once. Run as a script it builds all of them beforehand: `python tests/core/longbow/real/longbow_installation.py`.
"""

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_MODULE = "github.com/23skdu/longbow"
_BUILD_SECONDS = 900
_ASK_AGAIN = 3600.0  # seconds after which a version that could not be had is asked for again


@dataclass(frozen=True)
class Release:
    """A pinned version and the processor that it is built for; '' is this machine's."""

    version: str
    processor: str = ""


# The newest does not compile for x86 (an assembler file repeats Go functions): there it is run under emulation.
NEWEST = Release("v0.1.2-rc14.0.20260201005318-987003c95ba3", "arm64")
V0_1_1 = Release("v0.1.1")


class NotInstalled(Exception):
    """The reason why a release cannot be run here."""


def command(release: Release) -> list[str]:
    """How to start the release, which is built if need be. Raises NotInstalled with the reason when it cannot be."""
    emulator: list[str] = []
    if release.processor == "arm64" and platform.machine() not in ("arm64", "aarch64"):
        found = shutil.which("qemu-aarch64-static")
        if found is None:
            raise NotInstalled("qemu-aarch64-static, which runs arm64 programs, is not on the PATH")
        emulator = [found]
    cache = Path(os.environ.get("FLETCHER_LONGBOW_CACHE") or Path.home() / ".cache" / "fletcher-longbow")
    cache.mkdir(parents=True, exist_ok=True)
    binary = cache / f"longbow-{release.version}"
    if not binary.exists():
        with (cache / "build.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not binary.exists():
                _build(release, cache, binary)
    return [*emulator, str(binary)]


def _build(release: Release, cache: Path, binary: Path) -> None:
    """As `go install` does, by way of a module of our own: `go install` itself also asks for a list of all versions,
    which not every module proxy gives out."""
    go = shutil.which("go", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/go/bin"]))
    if go is None:
        raise NotInstalled("no Go toolchain is on the PATH")
    refused = cache / f"{release.version}.refused"
    if refused.exists() and time.time() - refused.stat().st_mtime < _ASK_AGAIN:
        raise NotInstalled(refused.read_text())
    module = cache / f"module-{release.version}"
    shutil.rmtree(module, ignore_errors=True)
    module.mkdir()
    (module / "go.mod").write_text(f"module servers\n\ngo 1.24\n\nrequire {_MODULE} {release.version}\n")
    environment = {
        **os.environ,
        "GOPATH": str(cache / "go"),
        "GOCACHE": str(cache / "build"),
        "GOFLAGS": "-mod=mod -buildvcs=false -modcacherw",
        "CGO_ENABLED": "0",
        **({"GOARCH": release.processor} if release.processor else {}),
    }
    temporary = cache / f"{binary.name}.{os.getpid()}"
    arguments = ["nice", "-n", "19", go, "build", "-trimpath", "-o", str(temporary), f"{_MODULE}/cmd/longbow"]
    try:
        subprocess.run(
            arguments, cwd=module, env=environment, check=True, capture_output=True, text=True, timeout=_BUILD_SECONDS
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = error.stderr.strip().splitlines()[-1] if isinstance(error.stderr, str) and error.stderr else str(error)
        reason = f"Go cannot install Longbow {release.version}: {said.strip()}"
        refused.write_text(reason)
        raise NotInstalled(reason) from error
    finally:
        # Sources and objects are some 1.3 GB, and a version is built once.
        for folder in (cache / "build", cache / "go", module):
            shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(binary)


if __name__ == "__main__":
    for wanted in (NEWEST, V0_1_1):
        began = time.monotonic()
        try:
            print(f"Longbow {wanted.version}: {' '.join(command(wanted))} ({time.monotonic() - began:.0f} s)")
        except NotInstalled as reason:
            print(f"not installed: {reason}", file=sys.stderr)
