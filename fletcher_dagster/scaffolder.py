"""What `dg scaffold defs fletcher_dagster.FletcherEmbeddingsComponent <path>` writes.

In come a few names from the command line, out goes a `defs.yaml` that loads as it is and is there to be filled in: what
else can be said stands in comments that load, too, once the `# ` before them is taken away.
"""

import re
from pathlib import Path

from dagster import Scaffolder, ScaffoldRequest, scaffold_component
from pydantic import BaseModel, Field


class FletcherScaffoldParams(BaseModel):
    """What may be given on the command line."""

    database: str = Field(default="data.duckdb", description="The DuckDB file to read from.")
    table: str = Field(default="documents", description="The table to embed.")
    text_column: str = Field(default="text", description="The column with the text.")
    store_path: str = Field(default="vectors", description="The folder for the vector stores.")


_UNDER_FLETCHER = """\
    # engine: cpu                     # auto takes the GPU where there is one
    # max_rows_per_run: 100000        # a run leaves the rest to the next: see rest_sensor
    # longbow:                        # left out: the embedded server beside the vectors
    #   data_address: grpc+tls://longbow.internal:3000
    #   token_env: LONGBOW_TOKEN
"""

_UNDER_SOURCE = """\
        # metadata_columns: [title]     # stored and delivered beside the vector
        # partition_column: day         # what partitions_def divides the rows by
"""

_UNDER_ENTRY = """\
      # partitions_def: {type: daily, start_date: "2026-01-01"}
      # checks: {unit_norm: error, drift: "off", lag_seconds: 600}   # error, warn or off; and the checks' limits
      # retry_policy: {max_retries: 4}  # of failures that can pass by themselves
      # schedule: {hour_of_day: 3}      # without partitions: {cron_schedule: "0 3 * * *"}
      # sensor: {type: watermark, watermark_column: updated_at}      # of Parquet files: {type: parquet}
      # catch_up: {max_rows: 1000000}   # missing, stale and failed partitions, each night
      # rest_sensor: {}                 # needs max_rows_per_run under fletcher
      # io_manager_key: fletcher_io     # of a FletcherIOManager among the project's resources
      # op: {pool: engine}              # so many runs at once as dagster.yaml allows the pool
      # translation:
      #   group_name: search
      #   automation_condition: "{{ eager_or_model_changed }}"
"""


class FletcherEmbeddingsScaffolder(Scaffolder[FletcherScaffoldParams]):
    """Writes one DuckDB table's embeddings as an example."""

    @classmethod
    def get_scaffold_params(cls) -> type[FletcherScaffoldParams]:
        return FletcherScaffoldParams

    def scaffold(self, request: ScaffoldRequest[FletcherScaffoldParams]) -> None:
        params = request.params or FletcherScaffoldParams()
        scaffold_component(
            request=request,
            yaml_attributes={
                "fletcher": {"store_path": params.store_path},
                "embeddings": [
                    {
                        "source": {
                            "type": "duckdb",
                            "database": params.database,
                            "table": params.table,
                            "id_column": "id",
                            "text_columns": [params.text_column],
                        }
                    }
                ],
            },
        )
        if request.scaffold_format == "yaml":
            file = request.target_path if request.append else request.target_path / "defs.yaml"
            _comment(file)


def _comment(file: Path) -> None:
    """Adds to the last document of `file`, which was just written, what else can be said in it."""
    *earlier, last = re.split(r"(?m)^(?<=---\n)", file.read_text())
    last = re.sub(r"(?m)^    store_path: .*\n", lambda line: line[0] + _UNDER_FLETCHER, last, count=1)
    file.write_text(f"{''.join(earlier)}{last.rstrip()}\n{_UNDER_SOURCE}{_UNDER_ENTRY}")
