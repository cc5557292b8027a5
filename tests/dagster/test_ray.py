"""Assets whose vectors a Ray cluster computes: by address, by a resource of dagster-ray, from YAML."""

import os
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg
import pytest
from component_sandbox import REVIEWS, loaded
from embedding_project import Project

from fletcher_core.errors import ConfigError
from fletcher_dagster import FletcherRayResource, FletcherResource, fletcher_assets

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def on_ray(project: Project, **ray: Any) -> FletcherResource:
    return FletcherResource(
        store_path=project.fletcher.store_path,
        longbow=project.fletcher.longbow,
        engine="ray",
        ray=FletcherRayResource(worker_engine="native", workers=1, **ray),
    )


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="Ray is not installed here")
    # Who names no address gets the cluster that this folder tells of, and other tests have their own. Sockets lie
    # in it, so its path must be short.
    with TemporaryDirectory(prefix="ray-") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield ray
        ray.shutdown()


def test_a_cluster_embeds_what_is_new_and_the_run_says_so(project: Project, ray: Any) -> None:
    project.fletcher = on_ray(project, address="local")
    docs = project.assets(project.docs())
    assert project.run(docs).success
    figures = project.figures()
    assert figures["fletcher/rows_embedded"] == 6
    assert figures["fletcher/engine"] == "native bf16"
    assert "Ray workers" in figures["fletcher/device"]
    assert not ray.is_initialized(), "a cluster of the run's own ends with it"
    assert project.fletcher.search("docs_embeddings", "a text", k=3), "queries need no cluster"


def test_a_connection_of_dagster_ray_is_used_and_left(project: Project, ray: Any) -> None:
    from dagster_ray import LocalRay, RayResource

    project.fletcher = on_ray(project)

    @fletcher_assets(sources=[project.docs()])
    def docs(context: dg.AssetExecutionContext, fletcher: FletcherResource, ray: RayResource) -> Iterator[Any]:
        yield from fletcher.run(context=context)
        assert ray.context is not None
        connected.append(ray.context.address_info["gcs_address"])

    connected: list[str] = []
    cluster = LocalRay(ray_init_options={"num_cpus": 1, "include_dashboard": False})
    result = dg.materialize([docs], instance=project.instance, resources={"fletcher": project.fletcher, "ray": cluster})
    assert result.success
    assert connected
    (event,) = result.asset_materializations_for_node("docs")
    assert event.metadata["fletcher/rows_embedded"].value == 6


def test_settings_that_cannot_work_are_refused_when_definitions_load(project: Project) -> None:
    with pytest.raises(ConfigError, match="ray is set, but engine is 'auto': set engine='ray'"):
        FletcherResource(store_path="vectors", ray=FletcherRayResource())
    with pytest.raises(ConfigError, match="workers is 0"):
        FletcherRayResource(workers=0)
    with pytest.raises(ConfigError, match="only OpenVINO has it"):
        FletcherResource(
            store_path="vectors", engine="ray", precision="int8", ray=FletcherRayResource(worker_engine="native")
        )
    FletcherResource(store_path="vectors", engine="ray", ray=FletcherRayResource(address=dg.EnvVar("ADDRESS")))


def test_yaml_says_engine_ray() -> None:
    ray = {"address": "{{ env.RAY_HEAD }}", "workers": 4, "cpus": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_HEAD", "head:6379")
        with loaded({"source": REVIEWS}, fletcher={"engine": "ray", "ray": ray}) as (component, _):
            assert component.fletcher.engine == "ray"
            assert component.fletcher.ray is not None
            assert (component.fletcher.ray.address, component.fletcher.ray.workers) == ("head:6379", 4)
    with loaded({"source": REVIEWS}, fletcher={"engine": "ray"}) as (component, _):
        assert component.fletcher.ray is None
