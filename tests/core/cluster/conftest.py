"""Two nodes of Ray on this machine, each with one CPU."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="package")
def nodes() -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster`; a test that takes a node away adds another."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed here")
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20}
    )
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    yield cluster
    cluster.shutdown()
