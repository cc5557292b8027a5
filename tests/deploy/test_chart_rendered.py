"""What Helm makes of the chart is what Kubernetes, KubeRay and the Prometheus operator take, and it fits together."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import CHART, EXAMPLES

from deploy.helm.installation import KUBERNETES, NotInstalled, program, schemas

Objects = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def helm() -> Path:
    return _found("helm")


def _found(name: str) -> Path:
    try:
        return program(name)
    except NotInstalled as reason:
        pytest.skip(str(reason))


def render(helm: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [helm, "template", "release", CHART, "--namespace", "shop", "--kube-version", KUBERNETES, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def rendered(helm: Path, *arguments: str | Path) -> Objects:
    done = render(helm, *arguments)
    assert done.returncode == 0, done.stderr
    objects = [each for each in yaml.safe_load_all(done.stdout) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


def pods(objects: Objects) -> dict[str, dict[str, Any]]:
    """Every pod's template by its first container's name."""
    found = [each["spec"]["template"] for (kind, _), each in objects.items() if kind == "Deployment"]
    for (kind, _), cluster in objects.items():
        if kind == "RayCluster":
            found += [
                group["template"] for group in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"])
            ]
    return {template["spec"]["containers"][0]["name"]: template for template in found}


def test_helm_finds_nothing_to_say(helm: Path) -> None:
    done = subprocess.run([helm, "lint", "--strict", CHART], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", [None, *EXAMPLES], ids=lambda file: file.stem if file else "defaults")
def test_every_object_is_one_that_the_cluster_takes(helm: Path, file: Path | None) -> None:
    kubeconform = _found("kubeconform")
    try:
        location = schemas()
    except NotInstalled as reason:
        pytest.skip(str(reason))
    made = render(helm, *(["-f", file] if file else []))
    assert made.returncode == 0, made.stderr
    command = [kubeconform, "-strict", "-schema-location", location]
    for text, is_well in ((made.stdout, True), (made.stdout.replace("metadata:", "metadate:"), False)):
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
        assert (done.returncode == 0) == is_well, done.stdout


@pytest.mark.parametrize("file", [None, *EXAMPLES], ids=lambda file: file.stem if file else "defaults")
def test_what_names_another_object_or_port_finds_it(helm: Path, file: Path | None) -> None:
    objects = rendered(helm, *(["-f", file] if file else []))
    templates = pods(objects)
    assert templates
    for (kind, name), each in objects.items():
        if kind == "Service":
            wanted = each["spec"]["selector"].items()
            (chosen,) = [
                template for template in templates.values() if wanted <= template["metadata"]["labels"].items()
            ]
            ports = {port["name"] for port in chosen["spec"]["containers"][0]["ports"]}
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports, name
        if kind == "Deployment":
            assert (
                each["spec"]["selector"]["matchLabels"].items()
                <= each["spec"]["template"]["metadata"]["labels"].items()
            )
    for name, template in templates.items():
        spec = template["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == volumes, name
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
        for volume in spec["volumes"]:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim in (None, "models") or ("PersistentVolumeClaim", claim) in objects


@pytest.mark.parametrize("file", [None, *EXAMPLES], ids=lambda file: file.stem if file else "defaults")
def test_nobody_asks_for_more_than_its_limit(helm: Path, file: Path | None) -> None:
    for name, template in pods(rendered(helm, *(["-f", file] if file else []))).items():
        resources = template["spec"]["containers"][0]["resources"]
        for kind, asked in resources["requests"].items():
            assert quantity(asked) <= quantity(resources["limits"][kind]), (name, kind)


def quantity(text: str) -> float:
    units = {"": 1.0, "m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30}
    number = text.rstrip("mMGi")
    return float(number) * units[text[len(number) :]]


def test_a_pod_has_the_time_to_drain(helm: Path) -> None:
    spec = pods(rendered(helm, "--set", "serve.drainSeconds=120", "--set", "serve.preStopSeconds=7"))["fletcher"][
        "spec"
    ]
    assert "--drain-timeout=120" in spec["containers"][0]["args"]
    pause = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause == 7
    assert spec["terminationGracePeriodSeconds"] > 120 + pause


def test_rays_nodes_and_the_code_location_agree(helm: Path) -> None:
    objects = rendered(helm, "-f", CHART / "examples" / "dagster-ray.yaml")
    containers = {name: template["spec"]["containers"][0] for name, template in pods(objects).items()}
    assert set(containers) == {"code-location", "ray-head", "ray-worker"}
    assert len({container["image"] for container in containers.values()}) == 1
    told = {name: {entry["name"]: entry for entry in each["env"]} for name, each in containers.items()}
    for name in ("FLETCHER_STORE", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        assert told["code-location"][name] == told["ray-head"][name] == told["ray-worker"][name], name
    assert told["code-location"]["RAY_ADDRESS"]["value"] == "ray://release-ray-head-svc:10001"
    assert ("RayCluster", "release-ray") in objects
    assert containers["ray-worker"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    stores = [mount for each in containers.values() for mount in each["volumeMounts"] if mount["name"] == "store"]
    assert stores == [{"name": "store", "mountPath": "/store"}] * 3


def test_a_store_in_a_bucket_needs_no_volume(helm: Path) -> None:
    objects = rendered(helm, "-f", CHART / "examples" / "s3.yaml")
    assert not [name for kind, name in objects if kind == "PersistentVolumeClaim"]
    for name in ("code-location", "ray-head", "ray-worker"):
        container = pods(objects)[name]["spec"]["containers"][0]
        assert {"secretRef": {"name": "vectors-bucket"}} in container["envFrom"]
        assert {"name": "FLETCHER_STORE", "value": "s3://vectors/shop"} in container["env"]


def test_the_workspace_leads_to_the_code_location(helm: Path) -> None:
    objects = rendered(helm, "-f", CHART / "examples" / "s3.yaml")
    text = objects["ConfigMap", "release-dagster-workspace"]["data"]["workspace.yaml"]
    (entry,) = [each["grpc_server"] for each in yaml.safe_load(text)["load_from"]]
    assert (entry["host"], entry["port"]) == ("release-dagster.shop", 4000)
    assert ("Service", "release-dagster") in objects


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("serve.replicaCount=2", "additional properties 'replicaCount' not allowed"),
        ("serve.httpPort=80", "/serve/httpPort"),
        ("serve.args[0]=model", "/serve/args/0"),
        ("serve.apiKey.secret=", "/serve/apiKey/secret"),
        ("serve.drainSeconds=soon", "/serve/drainSeconds"),
        ("store.url=/vectors", "/store/url"),
        ("store.accessMode=Many", "/store/accessMode"),
        ("dagster.enabled=true", "dagster.module is empty"),
        ("ray.enabled=true", "ray.enabled without dagster.enabled"),
        ("dagster.enabled=true,dagster.module=shop,ray.enabled=true", "set store.accessMode to ReadWriteMany"),
        ("serve.autoscaling.enabled=true,serve.autoscaling.cpuUtilization=0", "set cpuUtilization or queueTokens"),
    ],
)
def test_a_value_that_cannot_work_is_named(helm: Path, setting: str, said: str) -> None:
    done = render(helm, "--set", setting)
    assert done.returncode != 0
    assert said in done.stderr
