"""The asset's page as a user sees it in a browser: metadata, plots, checks and partitions.

FLETCHER_SCREENSHOTS=docs/images keeps pictures of it there.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from browser import PROGRAM, Page, browser_page
from conftest import Live

pytestmark = [
    pytest.mark.xdist_group("live"),
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium: apt install chromium"),
]


@pytest.fixture(scope="module")
def embedded(live: Live) -> Live:
    """The rows of the last days change twice and are backfilled each time: the plots have something to show."""
    for round in range(2):
        live.sql(f"UPDATE docs SET text = text || ' ({round})' WHERE day >= '{live.days[-5 + round]}'")
        state = live.web.finished_backfill(live.web.backfill("docs_embeddings", live.days[-8:]))
        assert state["status"] == "COMPLETED_SUCCESS", state
    return live


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browser_page(tmp_path / "profile") as page:
        yield page


def keep(page: Page, name: str) -> None:
    if folder := os.environ.get("FLETCHER_SCREENSHOTS"):
        page.picture(Path(folder) / f"{name}.png")


def test_the_asset_page_shows_the_figures_of_the_latest_run(embedded: Live, page: Page) -> None:
    page.open(f"{embedded.web.address}/assets/docs_embeddings?view=overview")
    page.wait_for("Embeddings of", "Latest check results", "content_hash")  # description, status, columns
    page.wait_for(
        "dagster/partition_row_count", "fletcher/texts_per_s", "fletcher/rows_embedded", "fletcher/throughput"
    )
    assert page.count('img[src^="data:image/svg+xml"]') == 1  # at once, not behind a link
    page.scroll_to("Metadata")
    keep(page, "dagster-metadata")


def test_the_plots_are_drawn(embedded: Live, page: Page) -> None:
    page.open(f"{embedded.web.address}/assets/docs_embeddings?view=overview")
    page.wait_for("fletcher/texts_per_s")
    page.click("Plots")
    page.wait_for("fletcher/texts_per_s", "dagster/partition_row_count")
    assert page.count("canvas") >= 2
    page.scroll_to("Metadata")
    keep(page, "dagster-plots")


def test_the_checks_passed(embedded: Live, page: Page) -> None:
    page.open(f"{embedded.web.address}/assets/docs_embeddings?view=checks")
    page.wait_for("row_parity", "quarantine", "Passed")
    keep(page, "dagster-checks")


def test_each_partition_is_materialized_and_has_its_figures(embedded: Live, page: Page) -> None:
    day = embedded.days[-1]
    page.open(f"{embedded.web.address}/assets/docs_embeddings?view=partitions&partition={day}")
    page.wait_for(day, "dagster/partition_row_count", "Materialized")
    keep(page, "dagster-partitions")


def test_a_partitions_event_says_in_a_sentence_what_happened(embedded: Live, page: Page) -> None:
    records = embedded.instance.fetch_materializations(dg.AssetKey("docs_embeddings"), limit=100).records
    said = [record for record in records if record.asset_materialization and record.asset_materialization.description]
    moment = int(said[-1].timestamp * 1000)  # of the first commit
    page.open(f"{embedded.web.address}/assets/docs_embeddings?view=events&asOf={moment}")
    page.wait_for("rows in the store: ", "embedded")
    keep(page, "dagster-events")
