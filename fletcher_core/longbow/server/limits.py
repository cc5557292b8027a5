"""How much the embedded server takes from the network: a request in, the same out, or ArrowInvalid with the limit.

The defaults lie far above what Fletcher sends. A gRPC message is in memory before Python sees it, and pyarrow offers
no limit on it, so these bound what is done with it, not the message itself.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import pyarrow as pa

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


@dataclass(frozen=True)
class Limits:
    """The most that is taken. Sizes in bytes, the rest are counts."""

    action_bytes: int = 16 * 2**20
    """Of an action's JSON: some 2,000 query vectors of 384 elements. Parsed, it may take 25 times as much."""
    ticket_bytes: int = 4 * 2**20
    json_depth: int = 16
    filters: int = 100
    k: int = 10_000_000
    queries: int = 10_000
    """Query vectors of one search."""
    distances: int = 2**28
    """Query vectors times rows of one search, 4 bytes each in memory."""
    hits: int = 10_000_000
    """Of all query vectors of one search together."""
    dimension: int = 65_536
    name_bytes: int = 1024
    """Of a dataset, a namespace, an id or a column."""
    path_elements: int = 16
    datasets: int = 10_000
    namespaces: int = 10_000
    columns: int = 1_000
    schema_bytes: int = 2**20
    batch_rows: int = 10_000_000
    batch_bytes: int = 512 * 2**20
    """Of one batch of a put; batches are held until 50,000 rows or 32 MiB, so a put holds little more than one."""

    def parse_json(self, body: bytes, what: str, most: int) -> object:
        """The JSON value in a body of at most `most` bytes. Raises ArrowInvalid for none, too long or too deep."""
        if len(body) > most:
            refuse(f"{what} has {len(body)} bytes", most)
        if (depth := _depth(_STRING.sub(b'""', body))) > self.json_depth:
            refuse(f"{what} is JSON nested {depth} deep", self.json_depth)
        try:
            return json.loads(body, parse_constant=_reject)
        except (ValueError, RecursionError) as error:
            raise pa.ArrowInvalid(f"invalid {what} format: {error}") from error

    def check_name(self, name: str, what: str) -> str:
        """Raises ArrowInvalid for a name over the limit."""
        if len(name) > self.name_bytes or len(name.encode("utf-8", "surrogatepass")) > self.name_bytes:
            refuse(f"the name of {what} has {len(name)} characters", self.name_bytes)
        return name

    def dataset_of(self, path: list[bytes], place: int = 0) -> str:
        """The dataset's name in a descriptor's path. Raises ArrowInvalid when it is too long or no UTF-8."""
        if len(path) > self.path_elements:
            refuse(f"the descriptor's path has {len(path)} elements", self.path_elements)
        if len(path[place]) > self.name_bytes:
            refuse(f"the name of a dataset has {len(path[place])} bytes", self.name_bytes)
        try:
            return path[place].decode()
        except UnicodeDecodeError as error:
            raise pa.ArrowInvalid("the dataset's name is not valid UTF-8") from error

    def check_schema(self, schema: pa.Schema) -> None:
        """Raises ArrowInvalid for a put with too many columns, too long names or too long vectors."""
        if len(schema) > self.columns:
            refuse(f"the put has {len(schema)} columns", self.columns)
        try:
            names = schema.names
        except UnicodeDecodeError as error:
            raise pa.ArrowInvalid("the name of a column is not valid UTF-8") from error
        for name in names:
            self.check_name(name, "a column")
        for column in schema:
            if pa.types.is_fixed_size_list(column.type) and column.type.list_size > self.dimension:
                refuse(f"column {column.name!r} has dimension {column.type.list_size}", self.dimension)
        if (size := schema.serialize().size) > self.schema_bytes:
            refuse(f"the put's schema has {size} bytes", self.schema_bytes)

    def checked_batches(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches of a put, each looked at. Raises ArrowInvalid at the first that is too large."""
        for batch in batches:
            if batch.num_rows > self.batch_rows:
                refuse(f"a batch of the put has {batch.num_rows} rows", self.batch_rows)
            if (size := batch.nbytes) > self.batch_bytes:
                refuse(f"a batch of the put has {size} bytes", self.batch_bytes)
            yield batch

    def check_search(self, queries: int, dimension: int, k: int, rows: int) -> None:
        """Raises ArrowInvalid for a search that would take too much memory."""
        if k > self.k:
            refuse(f"k is {k}", self.k)
        if queries > self.queries:
            refuse(f"the search has {queries} query vectors", self.queries)
        if dimension > self.dimension:
            refuse(f"a query vector has {dimension} elements", self.dimension)
        if queries > 1 and queries * rows > self.distances:
            refuse(f"{queries} query vectors over {rows} rows are {queries * rows} distances", self.distances)
        if queries > 1 and queries * min(k, rows) > self.hits:
            refuse(f"{queries} query vectors with k {k} are {queries * min(k, rows)} hits", self.hits)


def refuse(what: str, limit: int) -> NoReturn:
    """Raises ArrowInvalid, which a client sees as INVALID_ARGUMENT."""
    raise pa.ArrowInvalid(f"{what}, over the limit of {limit} of this server; send less at once")


def _depth(body: bytes) -> int:
    """How deep brackets are nested in JSON whose strings hold none: these would open and close nothing."""
    codes = np.frombuffer(body, np.uint8)
    steps = np.zeros(len(codes), np.int8)
    steps[(codes == ord("[")) | (codes == ord("{"))] = 1
    steps[(codes == ord("]")) | (codes == ord("}"))] = -1
    steps = steps[steps != 0]
    return int(np.cumsum(steps, dtype=np.int64).max(initial=0))


def _reject(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
