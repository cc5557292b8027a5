"""An earlier commit beside the working tree: its checkout, its compiled extensions, and processes that measure each."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import ROOT

NATIVE_SOURCES = "kernels/simd"
INSTALLED = Path(sysconfig.get_path("platlib"))


@dataclass(frozen=True)
class Tree:
    """Where the Python files of one side are, its extensions, and a folder for its tables and stores."""

    root: Path
    native: Path
    folder: Path


def git(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=check)


def commit_of(revision: str) -> str | None:
    """Its full name; None if this clone does not have it."""
    try:
        found = git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", check=False)
    except FileNotFoundError:  # no git, so no clone either
        return None
    return found.stdout.strip() or None


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """`commit`, checked out in `folder`, and gone afterwards."""
    git("worktree", "add", "--detach", "--quiet", str(folder), commit)
    try:
        yield folder
    finally:
        git("worktree", "remove", "--force", str(folder))


def native_folder(base: str, tree: Path, target: Path) -> Path | None:
    """Where the base's extensions are: this tree's own, unless the base's would differ. None: they cannot be built."""
    if not extensions(INSTALLED) or same_native(base, tree):  # none: no compiler here, and both do without
        return INSTALLED
    print(f"{NATIVE_SOURCES} or its build differs: building the base's, outside the time given", flush=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    built = subprocess.run([*command, "--no-build-isolation", "--target", str(target), str(tree)], check=False)
    return target if built.returncode == 0 and extensions(target) else None


def extensions(folder: Path) -> list[Path]:
    """Compiled modules in an installation of Fletcher."""
    return [file for file in folder.glob("fletcher_core/**/*") if file.suffix in (".so", ".pyd")]


def same_native(base: str, tree: Path) -> bool:
    """Neither the extensions' sources nor their build differ; a file that git does not know yet is a difference."""
    if git("diff", "--quiet", base, "--", NATIVE_SOURCES, check=False).returncode:
        return False
    if git("ls-files", "--others", "--exclude-standard", "--", NATIVE_SOURCES).stdout:
        return False
    return build_settings(tree) == build_settings(ROOT)


def build_settings(tree: Path) -> list[Any]:
    project = tomllib.loads((tree / "pyproject.toml").read_text("utf-8"))
    pins = (tree / "constraints.txt").read_text("utf-8").splitlines()
    tools = [pin for pin in pins if pin.startswith(("cmake", "nanobind", "ninja", "scikit-build-core"))]
    return [project["build-system"], project["tool"]["scikit-build"], tools]


@contextmanager
def measuring(tree: Tree, texts: Path) -> Iterator["Child"]:
    """A process that measures `tree`, ended afterwards."""
    child = Child(tree, texts)
    try:
        yield child
    finally:
        child.stop()


class Child:
    """A process of `bench/short_form.py`, which is this tree's whatever it measures."""

    def __init__(self, tree: Tree, texts: Path) -> None:
        tree.folder.mkdir(exist_ok=True)
        script = Path(__file__).with_name("short_form.py")
        files = ["--texts", texts, "--native", tree.native, "--folder", tree.folder]
        path = os.pathsep.join([str(tree.root), str(tree.root / "kernels")])
        self._root = tree.root
        self._process = subprocess.Popen(
            [sys.executable, str(script), *map(str, files)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )

    def check(self) -> None:
        """Waits until it has imported Fletcher, and makes sure that it is this tree's.

        Raises:
            RuntimeError: it is another's, or cannot be imported.
        """
        answer = self._answer()
        if "error" in answer:
            raise RuntimeError(f"{self._root} cannot be measured: {answer['error']}")
        if not Path(answer["imported"]).is_relative_to(self._root):
            raise RuntimeError(f"{answer['imported']} was imported, which is not of {self._root}")

    def seconds(self, name: str) -> float | str:
        """Of one item of the measurement `name`, or why it cannot be measured."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is gone, and that it does not answer says so
            print(name, file=self._process.stdin, flush=True)
        answer = self._answer()
        return answer["seconds"] if "seconds" in answer else answer["error"]

    def stop(self) -> None:
        self._process.kill()
        with suppress(BrokenPipeError):
            self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": f"its process ended with {self._process.wait()}"}
