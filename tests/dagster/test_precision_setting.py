"""int8 by setting: the resource takes it, and its vectors never join those of the floats."""

from embedding_project import Project

from fletcher_dagster import FletcherResource


def test_int8_embeds_every_row_again_into_a_store_of_the_floats(project: Project) -> None:
    docs = project.assets(project.docs())
    assert project.run(docs).success
    project.fletcher = FletcherResource(
        store_path=project.fletcher.store_path, longbow=project.fletcher.longbow, precision="int8"
    )
    assert project.run(docs).success
    figures = project.figures()
    assert figures["fletcher/engine"] == "openvino int8"
    assert figures["fletcher/rows_stale"] == figures["fletcher/rows_embedded"] == 6
    assert project.run(docs).success
    assert project.figures()["fletcher/rows_embedded"] == 0
