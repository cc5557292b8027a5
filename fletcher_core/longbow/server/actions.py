"""The actions of both ports: name and JSON body in, result bytes out, with Longbow's answers word for word."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from fletcher_core.errors import ConfigError
from fletcher_core.longbow.server.faults import faults_from
from fletcher_core.longbow.server.limits import refuse
from fletcher_core.longbow.server.state import ServerState
from fletcher_core.longbow.server.stored_batch import Hits

Action = Callable[[ServerState, Mapping[str, Any]], list[bytes]]


def run_action(state: ServerState, name: str, body: bytes, *, meta: bool) -> list[bytes]:
    """Raises NotImplementedError for an unknown name, ArrowInvalid for a body that is no JSON object or too large."""
    action = (_META if meta else _DATA).get(name) or _COMMON.get(name)
    if action is None:
        raise NotImplementedError(f"unknown action {name[:64]}")
    request = state.limits.parse_json(body, "action body", state.limits.action_bytes) if body.strip() else {}
    if not isinstance(request, dict):
        raise pa.ArrowInvalid("invalid action body: not a JSON object")
    return action(state, request)


def hits_batch(hits: Hits) -> pa.RecordBatch:
    """The two columns of a search answer: id uint64, score float32."""
    return pa.record_batch({"id": pa.array(hits.ids), "score": pa.array(hits.scores)})


def _check_readiness(state: ServerState, request: Mapping[str, Any]) -> list[bytes]:
    return [_json(state.readiness(_text(request, "dataset") if "dataset" in request else None))]


def _delete(state: ServerState, request: Mapping[str, Any]) -> list[bytes]:
    identifier = _text(request, "id")
    if not state.dataset(_text(request, "dataset")).delete(identifier, state.faults):
        raise pa.ArrowKeyError(f"id {identifier[:100]} not found")
    return [b"deleted"]


def _delete_vector(state: ServerState, request: Mapping[str, Any]) -> list[bytes]:
    ordinal = request.get("vector_id")
    if type(ordinal) is not int or ordinal < 0:
        raise pa.ArrowInvalid("vector_id must be a number")
    if not state.dataset(_text(request, "dataset")).delete_ordinal(ordinal, state.faults):
        raise pa.ArrowKeyError(f"vector {ordinal} not found")
    return [b"deleted"]


def _delete_dataset(state: ServerState, request: Mapping[str, Any]) -> list[bytes]:
    state.delete_dataset(_text(request, "dataset"))
    return [b"deleted"]


def _vector_search(state: ServerState, request: Mapping[str, Any]) -> list[bytes]:
    results = []
    for hits in state.search(request):
        batch, sink = hits_batch(hits), pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        results.append(sink.getvalue().to_pybytes())
    return results


def _vector_search_by_id(state: ServerState, request: Mapping[str, Any]) -> list[bytes]:
    identifier = _text(request, "id")
    vector = state.dataset(_text(request, "dataset")).vector_of(identifier)
    if vector is None:
        raise pa.ArrowKeyError(f"id {identifier} not found")
    (hits,) = state.search({"dataset": request["dataset"], "k": request.get("k", 0), "vector": vector.tolist()})
    return [_json({"ids": hits.ids.tolist(), "scores": [_finite(score) for score in hits.scores.tolist()]})]


def _hybrid_search(state: ServerState, request: Mapping[str, Any]) -> list[bytes]:
    """Ranks by vector alone: the embedded server keeps no text index."""
    (hits,) = state.search({name: request.get(name) for name in ("dataset", "vector", "k")})
    found = zip(hits.ids.tolist(), hits.scores.tolist(), strict=True)
    return [
        _json(
            [
                {"ID": row, "Distance": _finite(1 / score - 1) if score else None, "Score": _finite(score)}
                | {"Metadata": None, "Vector": None}
                for row, score in found
            ]
        )
    ]


def _fault(state: ServerState, request: Mapping[str, Any]) -> list[bytes]:
    """Not Longbow's: sets the faults to exactly those in the body, and answers with all of them."""
    try:
        state.faults = faults_from(dict(request))
    except ConfigError as error:
        raise pa.ArrowInvalid(str(error)) from error
    return [_json(dataclasses.asdict(state.faults))]


def _create_namespace(state: ServerState, request: Mapping[str, Any]) -> list[bytes]:
    name = _text(request, "name")
    state.limits.check_name(name, "a namespace")
    if name in state.namespaces:
        raise flight.FlightInternalError(f"namespace {name} already exists")
    if len(state.namespaces) >= state.limits.namespaces:
        refuse(f"this would be namespace {len(state.namespaces) + 1}", state.limits.namespaces)
    state.namespaces.append(name)
    return [b"created"]


def _delete_namespace(state: ServerState, request: Mapping[str, Any]) -> list[bytes]:
    name = _text(request, "name")
    if name == "default" or name not in state.namespaces:
        raise flight.FlightInternalError(f"namespace {name} is protected or does not exist")
    state.namespaces.remove(name)
    return [b"deleted"]


def _list_namespaces(state: ServerState, request: Mapping[str, Any]) -> list[bytes]:
    return [_json({"namespaces": state.namespaces})]


def _count_namespaces(state: ServerState, request: Mapping[str, Any]) -> list[bytes]:
    return [_json({"count": len(state.namespaces)})]


def _count_namespace_datasets(state: ServerState, request: Mapping[str, Any]) -> list[bytes]:
    """Always 0: on a real server too, no dataset ever belongs to a namespace."""
    return [_json({"count": 0})]


def _cluster_status(state: ServerState, request: Mapping[str, Any]) -> list[bytes]:
    raise flight.FlightUnavailableError("gossip is not enabled")


def _text(request: Mapping[str, Any], name: str) -> str:
    value = request.get(name, "")
    if not isinstance(value, str):
        raise pa.ArrowInvalid(f"invalid action body: {name} must be a string")
    return value


def _finite(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


_COMMON: dict[str, Action] = {
    "check_readiness": _check_readiness,
    "delete": _delete,
    "Delete": _delete,
    "delete-vector": _delete_vector,
    "delete-dataset": _delete_dataset,
    "VectorSearch": _vector_search,
    "VectorSearchByID": _vector_search_by_id,
    "HybridSearch": _hybrid_search,
    "cluster-status": _cluster_status,
    "fault": _fault,
}
_DATA: dict[str, Action] = {"DeleteNamespace": _delete_dataset}
_META: dict[str, Action] = {
    "CreateNamespace": _create_namespace,
    "DeleteNamespace": _delete_namespace,
    "ListNamespaces": _list_namespaces,
    "GetTotalNamespaceCount": _count_namespaces,
    "GetNamespaceDatasetCount": _count_namespace_datasets,
}
