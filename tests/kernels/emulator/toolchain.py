"""The compilers, the three builds of a kernel, and the cache of what they made.

- STRICT: clang with real address spaces; a float that becomes a half by itself, or a double, is an error.
- ERASED: clang without address spaces, where UBSan sees every access: misaligned, out of an array's bounds.
- GCC: g++, a second compiler's opinion; vectors have no swizzles.

clang 17 or later comes from the system, or from the wheel `ziglang`, which carries one.
"""

import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from .errors import CompileError, EmulatorError
from .translate import KERNEL_FILE

_HERE = Path(__file__).resolve().parent
_SHIM = _HERE / "shim"
_METAL = _SHIM / "msl" / "metal.h"
_RUNTIME = _HERE / "runtime"
_OLDEST_CLANG = 17
_OLDEST_GCC = 12
_CLANG_NAMES = ("clang++", *(f"clang++-{version}" for version in range(22, _OLDEST_CLANG - 1, -1)))

# One processor type for everybody: a cached object runs on every machine of the last ten years, and half has its
# conversions in hardware. `haswell` is a name that clang, g++ and zig all know.
_MACHINE = ("-march=haswell",) if os.uname().machine == "x86_64" else ()
_COMMON = (
    "-std=c++17",
    "-O2",
    "-g1",
    "-gdwarf-4",  # addr2line of binutils 2.40 takes g++'s file names amiss in version 5
    "-fPIC",
    "-fno-exceptions",
    "-fno-rtti",
    "-ffp-contract=off",
    "-fstack-clash-protection",
    *_MACHINE,
)
_ROUND_EVERY_OPERATION = tuple(
    flag for name in ("float16", "bfloat16") for flag in ("-Xclang", f"-f{name}-excess-precision=none")
)
_RUNTIME_FLAGS = (
    "-std=c++17",
    "-O2",
    "-g1",
    "-fPIC",
    "-shared",
    "-fno-exceptions",
    "-fno-rtti",
    "-ftls-model=initial-exec",
)
_CLANG = (*_ROUND_EVERY_OPERATION, "-Wno-everything")


class Build(Enum):
    STRICT = "strict"
    ERASED = "erased"
    GCC = "gcc"


_FLAGS = {
    Build.STRICT: (
        *_CLANG,
        "-DEMULATOR_ADDRESS_SPACES",
        "-Wdouble-promotion",  # also says where a half becomes a float, which Metal allows: see _refuse_double
        "-Werror=implicit-float-conversion",
        "-Wno-implicit-int-float-conversion",
        "-Werror=return-type",
        "-Werror=uninitialized",
        "-Werror=sometimes-uninitialized",
        "-Werror=array-bounds",
    ),
    Build.ERASED: (
        *_CLANG,
        "-fsanitize=alignment,array-bounds,bool,float-cast-overflow,integer-divide-by-zero,null,return,shift,"
        "signed-integer-overflow,unreachable",
        "-fno-sanitize-recover=all",
    ),
    Build.GCC: ("-w",),
}


@dataclass(frozen=True)
class Compiler:
    command: tuple[str, ...]
    version: str


def unavailable(build: Build) -> str | None:
    """Why this build cannot be had here, or None."""
    if sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"):
        return "the emulator runs on Linux, on x86-64 or aarch64"
    if build is Build.GCC:
        return None if _gcc() else f"no g++ {_OLDEST_GCC} or later on the PATH"
    return None if _clang() else f"no clang++ {_OLDEST_CLANG} or later on the PATH, and no `pip install ziglang`"


def compile_kernel(cpp: str, build: Build, include: tuple[Path, ...] = ()) -> Path:
    """The shared object of a translation unit, from the cache if it was compiled before."""
    reason = unavailable(build)
    if reason is not None:
        raise EmulatorError(reason)
    compiler = _gcc() if build is Build.GCC else _clang()
    assert compiler is not None
    flags = (*_COMMON, *_FLAGS[build], "-isystem", str(_SHIM))
    folders = tuple(flag for folder in include for flag in ("-isystem", str(folder)))

    def build_kernel(folder: Path) -> None:
        _build_kernel(compiler, (*flags, *_precompiled(compiler, flags), *folders), cpp, folder)

    return _cached("kernel.so", (compiler.command, flags, folders), cpp, build_kernel)


def runtime() -> Path:
    """The shared object with the fibres, one for the kernels of all three builds."""
    sources = sorted(_RUNTIME.glob("*.cpp"))

    def build(folder: Path) -> None:
        _run((*_linker(), *_RUNTIME_FLAGS, *map(str, sources), "-o", str(folder / "out"), "-lpthread"), folder)

    return _cached("runtime.so", (_linker(), _RUNTIME_FLAGS), "", build)


def line_of(library: Path, offset: int) -> int | None:
    """The kernel's line of an instruction, if addr2line is there to tell."""
    if shutil.which("addr2line") is None:
        return None
    command = ("addr2line", "-i", "-e", str(library), hex(offset))
    places = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(rf"{re.escape(KERNEL_FILE)}:(\d+)", places)
    return int(found[1]) if found else None


@functools.cache
def _clang() -> Compiler | None:
    for name in _CLANG_NAMES:
        path = shutil.which(name)
        version = _version((path,)) if path else None
        if path and version and _major(r"clang version (\d+)", version) >= _OLDEST_CLANG:
            return Compiler((path,), version)
    wheel = importlib.util.find_spec("ziglang")
    if wheel is None or wheel.origin is None:
        return None
    command = (str(Path(wheel.origin).parent / "zig"), "c++")
    version = _version(command)
    return Compiler(command, version) if version else None


@functools.cache
def _gcc() -> Compiler | None:
    path = shutil.which("g++")
    version = _version((path,)) if path else None
    if path is None or version is None or _major(r"\) (\d+)\.", version) < _OLDEST_GCC:
        return None
    return Compiler((path,), version)


@functools.cache
def _linker() -> tuple[str, ...]:
    """g++ if there is one. `zig c++` as a linker would first build its C++ library, for 41 s; `zig cc` does not."""
    gcc = _gcc()
    if gcc is not None:
        return gcc.command
    clang = _clang()
    assert clang is not None
    return (clang.command[0], "cc") if clang.command[-1] == "c++" else clang.command


def _version(command: tuple[str, ...]) -> str | None:
    done = subprocess.run((*command, "--version"), capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else None


def _major(pattern: str, version: str) -> int:
    found = re.search(pattern, version)
    return int(found[1]) if found else 0


def _build_kernel(compiler: Compiler, flags: tuple[str, ...], cpp: str, folder: Path) -> None:
    source = folder / "kernel.cpp"
    source.write_text(cpp)
    _refuse_double(_run((*compiler.command, *flags, "-c", str(source), "-o", str(folder / "kernel.o")), folder))
    # -O2 keeps zig from linking a sanitizer's runtime of its own, which would end the process; ours stays undefined.
    _run((*_linker(), "-shared", "-O2", str(folder / "kernel.o"), "-o", str(folder / "out"), "-lm"), folder)


def _precompiled(compiler: Compiler, flags: tuple[str, ...]) -> tuple[str, ...]:
    """The flags with which Metal's own headers are taken as compiled before: half of what most kernels take."""
    if len(compiler.command) > 1:
        return ()  # zig makes of it more than one file
    # What the headers say is in the name of what is made of them; clang would also go by their times.
    timeless = () if compiler == _gcc() else ("-Xclang", "-fno-pch-timestamp")

    def build(folder: Path) -> None:
        _run((*compiler.command, *flags, *timeless, "-x", "c++-header", str(_METAL), "-o", str(folder / "out")), folder)

    compiled = _cached("metal.h.gch", (compiler.command, flags), "", build)
    # g++ looks beside a header for the compiled one; the header itself need not be there.
    return ("-include-pch", str(compiled)) if timeless else ("-include", str(compiled.with_suffix("")))


def _refuse_double(warnings: str) -> None:
    lines = warnings.splitlines()
    first = next((i for i, line in enumerate(lines) if re.search(r"increases floating-point.* to 'double", line)), None)
    if first is not None:
        raise CompileError("\n".join(lines[first : first + 3]))


def _run(command: tuple[str, ...], folder: Path) -> str:
    # zig keeps what it compiled in a cache of its own; ours is enough.
    environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(_cache() / "zig"), "ZIG_LOCAL_CACHE_DIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    if done.returncode != 0:
        raise CompileError(_errors(done.stderr))
    return done.stderr


def _errors(stderr: str) -> str:
    """The first errors with the lines that belong to them; the rest repeats them for every instantiation."""
    lines = stderr.splitlines()
    first = next((i for i, line in enumerate(lines) if "error:" in line), 0)
    return "\n".join(lines[first : first + 24])


def _cached(name: str, inputs: object, text: str, build: Callable[[Path], None]) -> Path:
    """What `build` leaves as `out` in a folder; if processes want the same at once, one builds it for all of them."""
    digest = hashlib.sha256(f"{inputs}\0{_own_sources()}\0{text}".encode()).hexdigest()[:24]
    made = _cache() / f"{digest}-{name}"
    if made.exists():
        return made
    with made.with_name(f"{digest}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=_cache()) as folder:
                build(Path(folder))
                os.replace(Path(folder) / "out", made)
    return made


@functools.cache
def _own_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(path for folder in (_SHIM, _RUNTIME) for path in folder.rglob("*") if path.is_file()):
        digest.update(path.read_bytes())
    versions = [compiler.version for compiler in (_clang(), _gcc()) if compiler is not None]
    return digest.hexdigest() + "".join(versions)


@functools.cache
def _cache() -> Path:
    """In pytest's cache, which `pytest --cache-clear` empties; in the temporary folder where that is read-only."""
    preferred = _HERE.parents[2] / ".pytest_cache" / "d" / "emulator"
    fallback = Path(tempfile.gettempdir()) / f"fletcher-emulator-{os.getuid()}"
    for folder in (preferred, fallback):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise EmulatorError(f"neither {preferred} nor {fallback} can be written")
