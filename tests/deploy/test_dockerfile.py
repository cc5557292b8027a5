"""The image is made of what the project has. It is not built here: every name in the Dockerfile is looked up."""

import re
import tomllib

from chart import ROOT, TEMPLATES, VALUES

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
PAGE = (ROOT / "docs" / "kubernetes.md").read_text("utf-8")
PINS = {
    line.split("==")[0].replace("_", "-")
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    if "==" in line
}


def test_every_extra_exists() -> None:
    there = set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"])
    lists = re.findall(r"EXTRAS=([a-z,]+[a-z])", DOCKERFILE + PAGE)
    assert len(lists) >= 3
    assert {extra for names in lists for extra in names.split(",")} <= there


def test_what_is_installed_by_name_is_pinned() -> None:
    installed = re.findall(r"pip\"? install -c constraints.txt ([^\n|&;]+)", DOCKERFILE)
    assert len(installed) == DOCKERFILE.count('pip" install') + DOCKERFILE.count("pip install")
    named = {name for packages in installed for name in packages.split() if re.fullmatch(r"[a-z][a-z0-9-]+", name)}
    (model,) = re.findall(r"^ARG MODEL=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert {"pip", "scikit-build-core", "nanobind"} <= named
    assert named | {model} <= PINS


def test_the_build_has_all_that_it_copies_and_what_the_wheel_is_made_of() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages = {path.split("/")[0] for path in build["tool"]["scikit-build"]["wheel"]["packages"]}
    assert packages | {"constraints.txt", "pyproject.toml", build["project"]["readme"], "LICENSE"} == kept
    for name in kept:
        assert (ROOT / name).exists(), name


def test_the_image_runs_as_the_user_that_the_chart_names() -> None:
    (user,) = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)
    assert f"runAsUser: {user}\n" in TEMPLATES["_pods.tpl"]
    assert f"--uid {user} " in DOCKERFILE


def test_no_registry_and_no_address_is_recorded() -> None:
    assert not re.search(r"https?://|index-url|find-links|trusted-host", DOCKERFILE)
    images = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert images
    for image in [*images, VALUES["image"]["repository"], VALUES["dagster"]["image"], VALUES["ray"]["image"]]:
        assert "/" not in image, image
