"""What `dg scaffold defs fletcher_dagster.FletcherEmbeddingsComponent <path>` writes.

In come a few names from the command line, out goes a `defs.yaml` that loads as it is and is there to be
filled in.
"""

from dagster import Scaffolder, ScaffoldRequest, scaffold_component
from pydantic import BaseModel, Field


class FletcherScaffoldParams(BaseModel):
    """What may be given on the command line."""

    database: str = Field(default="data.duckdb", description="The DuckDB file to read from.")
    table: str = Field(default="documents", description="The table to embed.")
    text_column: str = Field(default="text", description="The column with the text.")
    store_path: str = Field(default="vectors", description="The folder for the vector stores.")


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
