"""Helm and kubeconform for whoever checks the chart: a program's name in, its path out; and the schemas of the objects.

What is on the PATH is taken. Else they are what Go's package client compiled, once, into `FLETCHER_HELM_CACHE`
(~/.cache/fletcher-helm), and schemas are made of the descriptions that Kubernetes, KubeRay and the Prometheus operator
publish as Go modules. Both are made by `python deploy/helm/installation.py`.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = "1.37.2"
"""The release whose objects the chart is checked against."""

_PROGRAMS = {
    "helm": "helm.sh/helm/v3/cmd/helm@v3.22.0",
    "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0",
}
_OPENAPI = (f"k8s.io/kubernetes@v{KUBERNETES}", "api/openapi-spec/swagger.json")
_CUSTOM = (
    ("github.com/ray-project/kuberay/ray-operator@v1.5.0", "config/crd/bases/ray.io_rayclusters.yaml"),
    (
        "github.com/prometheus-operator/prometheus-operator@v0.85.0",
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
    ),
)
_GO_SECONDS = 1200  # both programs and the modules took two minutes on two cores, and 700 MB on the way


class NotInstalled(Exception):
    """The reason why a program or the schemas cannot be had."""


def program(name: str) -> Path:
    """The path of `helm` or `kubeconform`. Raises NotInstalled with the reason when it cannot be had."""
    found = shutil.which(name) or shutil.which(name, path=_cache() / "bin")
    if found is None:
        raise NotInstalled(f"{name} is neither on the PATH nor built: run deploy/helm/installation.py, which needs Go")
    return Path(found)


def schemas() -> str:
    """Where kubeconform finds the objects' schemas. Raises NotInstalled when they have not been made."""
    folder = _cache() / "schemas" / KUBERNETES
    if not folder.is_dir():
        raise NotInstalled("the schemas of Kubernetes' objects are not there: run deploy/helm/installation.py")
    return f"{folder}/{{{{.ResourceKind}}}}-{{{{.Group}}}}-{{{{.ResourceAPIVersion}}}}.json"


def install() -> None:
    """Have all of it. Raises NotInstalled with the reason when it cannot be had."""
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, package in _PROGRAMS.items():
            if shutil.which(name) is None and not (cache / "bin" / name).exists():
                _go(cache, "install", "-ldflags=-s -w", package)
        if not (cache / "schemas" / KUBERNETES).is_dir():
            _make_schemas(cache)
    shutil.rmtree(cache / "work", ignore_errors=True)


def _make_schemas(cache: Path) -> None:
    made = cache / "schemas" / f"{KUBERNETES}.part"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    module, path = _OPENAPI
    described = json.loads((_module(cache, module) / path).read_text("utf-8"))["definitions"]
    for name, definition in described.items():
        for kind in definition.get("x-kubernetes-group-version-kind", ()):
            schema = {"$ref": f"#/definitions/{name}", "definitions": _closure(name, described)}
            _write(made, kind["group"], kind["version"], kind["kind"], schema)
    for module, path in _CUSTOM:
        custom = yaml.safe_load((_module(cache, module) / path).read_text("utf-8"))["spec"]
        for version in custom["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            _write(made, custom["group"], version["name"], custom["names"]["kind"], schema)
    made.rename(made.with_suffix(""))


def _write(folder: Path, group: str, version: str, kind: str, schema: dict[str, Any]) -> None:
    """Under the name by which kubeconform looks for it: where there is no group, the version stands in its place."""
    (folder / f"{kind}-{group or version}-{version}.json".lower()).write_text(json.dumps(schema), "utf-8")


def _closure(name: str, described: dict[str, Any]) -> dict[str, Any]:
    """The definition and all that it refers to, none of which lets an unknown field pass."""
    found: dict[str, Any] = {}
    open_ones = [name]
    while open_ones:
        next_one = open_ones.pop()
        if next_one not in found:
            found[next_one] = strict(described[next_one])
            open_ones += _references(described[next_one])
    return found


def _references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"].removeprefix("#/definitions/")] if isinstance(part.get("$ref"), str) else []
        return own + [name for value in part.values() for name in _references(value)]
    return [name for value in part for name in _references(value)] if isinstance(part, list) else []


def strict(schema: Any) -> Any:
    """A schema that refuses fields that it does not name, as Kubernetes' own, which drops them silently, does not."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    whole_number_or_text = schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int-or-string"
    made = {key: strict(value) for key, value in schema.items() if key != "format"}
    if whole_number_or_text:
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and "$ref" not in schema and not is_open:
        made["additionalProperties"] = False
    return made


def _module(cache: Path, module: str) -> Path:
    return Path(json.loads(_go(cache, "mod", "download", "-json", module))["Dir"])


def _go(cache: Path, *arguments: str) -> str:
    work = cache / "work"
    work.mkdir(parents=True, exist_ok=True)
    (work / "go.mod").write_text("module checks\n", "utf-8")
    # `install` takes no module to work in; modules are read once, and may be deleted with the rest of the folder.
    environment = {
        **os.environ,
        "GOBIN": str(cache / "bin"),
        "GOCACHE": str(work / "build"),
        "GOMODCACHE": str(work / "modules"),
        "GOFLAGS": "-mod=mod -modcacherw",
    }
    try:
        done = subprocess.run(
            ["go", *arguments], cwd=work, env=environment, capture_output=True, text=True, timeout=_GO_SECONDS
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"Go's package client cannot be asked for {arguments[-1]}: {error}") from error
    if done.returncode:
        raise NotInstalled(f"Go's package client cannot get {arguments[-1]}: {done.stderr.strip()[-500:]}")
    return done.stdout


def _cache() -> Path:
    return Path(os.environ.get("FLETCHER_HELM_CACHE") or Path.home() / ".cache" / "fletcher-helm")


if __name__ == "__main__":
    try:
        install()
    except NotInstalled as reason:
        sys.exit(str(reason))
