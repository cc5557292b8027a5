"""`fletcher drop`: a store and a partition in, the same store without the partition's rows out."""

from typing import Annotated

import typer

from fletcher_core.commands.options import Collection, Json, Store, open_store
from fletcher_core.commands.output import named, print_json
from fletcher_core.errors import ConfigError


def drop(
    store: Store,
    collection: Collection,
    partition: Annotated[str, typer.Option("--partition", metavar="KEY", help="Which; '' is the source as a whole.")],
    as_json: Json = False,
) -> int:
    """Delete the rows of a partition that is no more.

    They are found no longer at once; Longbow gets the deletes with the next delivery.
    """
    with open_store(store, collection) as opened:
        having = [generation for generation in opened.generations() if partition in generation.partitions()]
        if not having:
            known = {key for generation in opened.generations() for key in generation.partitions()}
            raise ConfigError(f"--partition is {partition!r}: there is no such partition; known are {named(known)}")
        current = opened.current()
        for generation in having:
            rows = generation.row_count(partition)
            if current is not None and generation.name == current.name:
                generation.empty(partition)
            else:  # an earlier model's, which nobody searches
                opened.retire(generation.name, partition)
            if as_json:
                print_json({"generation": generation.name, "partition": partition, "rows": rows})
            else:
                print(f"{generation.name}: {rows} rows of partition {partition!r} are deleted")
        opened.quarantine.retain(partition, "")
    return 0
