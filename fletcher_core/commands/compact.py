"""`fletcher compact`: a store in, the same store in fewer files out."""

from dataclasses import asdict

from fletcher_core.commands.options import Collection, Json, Store, open_store
from fletcher_core.commands.output import print_json


def compact(store: Store, collection: Collection, as_json: Json = False) -> int:
    """Merge segment files, drop superseded rows."""
    with open_store(store, collection) as opened:
        for generation in opened.generations():
            report = generation.compact()
            if as_json:
                print_json({"generation": generation.name, **asdict(report)})
                continue
            print(
                f"{generation.name}: {report.files_before} -> {report.files_after} files, "
                f"{report.rows_before} -> {report.rows_after} rows, {report.bytes_before} -> {report.bytes_after} bytes"
            )
    return 0
