"""Settings that cannot work are refused when definitions load; those of an EnvVar when the run knows them."""

import re
from typing import Any

import dagster as dg
import pytest
from embedding_project import Project

from fletcher_core.errors import ConfigError
from fletcher_dagster import FletcherResource, LongbowResource


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"engine": "gpuu"}, "engine is 'gpuu'; choose one of auto"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"isolation": "x"}, "isolation is 'x'; choose one of auto, process, none"),
        ({"long_text": "cut"}, "long_text is 'cut'"),
        ({"vector_type": "float8"}, "vector_type is 'float8'"),
        ({"on_empty": "x"}, "on_empty is 'x'"),
        ({"on_duplicate": "x"}, "on_duplicate is 'x'"),
        ({"engine": "mlx", "precision": "int8"}, "only OpenVINO has it"),
        ({"engine": "native", "precision": "fp32"}, "the native engine computes in bf16"),
        ({"metrics": "banana"}, "metrics is 'banana'"),
        ({"memory_limit": "2 bananas"}, "memory_limit='2 bananas'"),
        ({"max_length": 0}, "max_length is 0"),
        ({"dimension": -1}, "dimension is -1"),
        ({"threads": 0}, "threads is 0"),
        ({"devices": 0}, "devices is 0; give a number from 1 to 64"),
        ({"devices": 2, "isolation": "none"}, "each device needs a process of its own"),
        ({"chunk_overlap": -1}, "chunk_overlap is -1"),
        ({"cache_bytes": -1}, "cache_bytes is -1"),
        ({"commit_seconds": float("nan")}, "commit_seconds is nan"),
        ({"min_free_bytes": -1}, "min_free_bytes is -1"),
        ({"quarantine_limit": 2}, "quarantine_limit is 2"),
    ],
)
def test_a_fletcher_resource_is_not_made(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FletcherResource(store_path="vectors", **settings)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"transport": "x"}, "Longbow transport: 'x'"),
        ({"compression": "zip"}, "Longbow compression: 'zip'"),
        ({"data_address": "nowhere"}, "'nowhere' is not an address"),
        ({"meta_address": "a:1"}, "data_address is empty"),
        ({"call_timeout": 0}, "Longbow call_timeout: 0"),
        ({"delivery_timeout": -1}, "delivery_timeout is -1"),
        ({"data_address": "127.0.0.1:1", "tls_ca": "ca.pem"}, "Longbow tls_ca: set, but the address"),
        ({"token_env": "T"}, "Longbow token_env: set, but data_address is empty"),
        ({"data_address": dg.EnvVar("A"), "transport": "x"}, "Longbow transport: 'x'"),
        ({"data_address": dg.EnvVar("A"), "token_file": "f", "token_env": "T"}, "give the token in one way"),
    ],
)
def test_a_longbow_resource_is_not_made(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LongbowResource(**settings)
    assert words in str(caught.value)


def test_what_an_environment_variable_gives_is_checked_in_the_run_alone(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = FletcherResource(
        store_path=project.fletcher.store_path,
        engine=dg.EnvVar("TEST_ENGINE"),
        metrics=dg.EnvVar("TEST_METRICS"),
        memory_limit=dg.EnvVar("TEST_MEMORY"),
        max_length=dg.EnvVar.int("TEST_LENGTH"),
        longbow=LongbowResource(data_address=dg.EnvVar("TEST_ADDRESS"), token=dg.EnvVar("TEST_TOKEN")),
    )
    project.fletcher = later
    values = {"ENGINE": "gpuu", "METRICS": "", "MEMORY": "1GB", "LENGTH": "32", "ADDRESS": "127.0.0.1:1", "TOKEN": ""}
    for name, value in values.items():
        monkeypatch.setenv(f"TEST_{name}", value)
    result = project.run(project.assets(project.docs()))
    assert not result.success
    shown = {
        event.event_type_value: event.event_specific_data.error
        for event in result.all_events
        if event.event_type_value in ("RESOURCE_INIT_FAILURE", "PIPELINE_FAILURE")
    }
    assert len(shown) == 2
    for error in shown.values():
        assert re.match(r"fletcher_\S+: engine is 'gpuu'; choose one of auto", error.message)
