"""The tutorial's commands run as they stand, in a new environment with the built wheel in it."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from fletcher_core.longbow.embedded import stop_embedded

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
PURE = ("--config-setting=wheel.cmake=false", "--config-setting=wheel.py-api=py3")
SCRIPT = (
    "#!{python}\nimport sys\nfrom {module} import {function}\nif __name__ == '__main__':\n    sys.exit({function}())\n"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fletcher's wheel without its C++ parts, which take a minute, where the tutorial expects one: ~/fletcher/dist."""
    home = tmp_path_factory.mktemp("home")
    dist = home / "fletcher" / "dist"
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", *PURE, "--outdir", str(dist), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=1800)
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path) -> dict[str, str]:
    """A home whose `python3 -m venv` makes environments that see the packages of this one, except Fletcher, which the
    tutorial installs; nothing is downloaded."""
    home = wheel.parents[2]
    packages = home / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.suffix != ".pth" and not entry.name.lower().startswith(("fletcher", "_editable")):
            (packages / entry.name).symlink_to(entry)
    venv = home / "tutorial" / ".venv"
    site = venv / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for folder in (site, venv / "bin", home / "bin"):
        folder.mkdir(parents=True)
    (site / "packages.pth").write_text(f"{packages}\n")
    for name in ("dg", "dagster", "pip"):
        (script,) = entry_points(group="console_scripts", name=name)
        text = SCRIPT.format(python=venv / "bin" / "python", module=script.module, function=script.attr)
        write_command(venv / "bin" / name, text)
    # pip is among the packages above, so that the environment need not get one of its own.
    write_command(home / "bin" / "python3", f'#!/bin/sh\nexec {sys.executable} "$@" --without-pip\n')
    kept = {name: value for name, value in os.environ.items() if name.startswith(("LANG", "LC_", "TMP"))}
    path = f"{home / 'bin'}:/usr/local/bin:/usr/bin:/bin"
    return {**kept, "HOME": str(home), "PATH": path, "PIP_NO_INDEX": "1", "DAGSTER_DISABLE_TELEMETRY": "1"}


def write_command(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o755)


def bash(script: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Standard output and errors together."""
    command = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(
        command, env=environment, cwd=folder, text=True, stdout=-1, stderr=subprocess.STDOUT, timeout=1800
    )


def test_the_wheel_holds_the_packages_their_types_and_the_entry_points(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = {name for name in names if name.endswith(".dist-info/entry_points.txt")}
        declared = archive.read(metadata).decode()
    for package, folder in (("fletcher_core", ""), ("fletcher_dagster", ""), ("fletcher_kernels", "kernels")):
        files = {
            file.relative_to(ROOT / folder).as_posix()
            for file in (ROOT / folder / package).rglob("*")
            if file.suffix in (".py", ".pyi", ".typed", ".k", ".h")
        }
        assert files
        assert files <= names
    assert {"fletcher_core/py.typed", "fletcher_dagster/py.typed"} <= names
    assert "[dagster_dg_cli.registry_modules]\nfletcher_dagster=fletcher_dagster" in declared.replace(" = ", "=")
    assert "fletcher=fletcher_core.cli:main" in declared.replace(" = ", "=")
    assert not any(name.startswith(("tests/", "demo/", "bench/")) for name in names)


def test_every_command_of_the_tutorial_works(environment: dict[str, str]) -> None:
    home = Path(environment["HOME"])
    # The folder is there already, for the packages in it.
    text = TUTORIAL.read_text(encoding="utf-8").replace("mkdir tutorial &&", "mkdir -p tutorial &&")
    commands = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    project = home / "tutorial" / "shop"
    try:
        done = bash("\n".join(commands), environment, home)
    finally:
        stop_embedded(project / "vectors" / ".longbow")
    assert done.returncode == 0, done.stdout
    assert "fletcher_dagster.FletcherEmbeddingsComponent" in done.stdout
    assert "All definitions loaded successfully." in done.stdout
    first, second = re.findall(r"^\S* *\d  title=.*$", done.stdout, re.MULTILINE)
    (shown,) = re.findall(r"^```text\n(.*?)\n```", text, re.MULTILINE | re.DOTALL)
    assert first.split("  ", 1)[1] == shown.split("  ", 1)[1]
    assert second.endswith("4  title=Tent")
    assert len(re.findall(r"reviews_embeddings: 4 rows in the store", done.stdout)) == 2
    assert re.search(r"reviews_embeddings: 4 rows in the store.*1 changed.*3 unchanged", done.stdout), done.stdout
    # What someone does next: mistype a setting, and a word among those that it takes.
    yaml = project / "shop" / "defs" / "reviews" / "defs.yaml"
    lines = yaml.read_text().splitlines()
    lines[3:4] = ["    store_pth: vectors", "    engine: gpuu"]
    lines[-1] = lines[-1].replace("metadata_columns", "metadata_colums")
    yaml.write_text("\n".join(lines))
    checked = bash(". ../.venv/bin/activate; dg check yaml", environment, project)
    assert checked.returncode == 1
    for line, key in ((4, "store_pth"), (5, "engine"), (len(lines), "source.metadata_colums")):
        assert re.search(rf"defs\.yaml:{line} .*{key}", checked.stdout), checked.stdout
