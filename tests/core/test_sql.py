"""DuckDB as a tool: what holds for a connection holds for the cursors that are made from it."""

import os
import subprocess
import sys

CAST = """
from pathlib import Path
from fletcher_core.changes import changes_database
from fletcher_core.sql import connect, session

instant = "SELECT CAST(TIMESTAMPTZ '2026-03-01 00:00:00+00' AS VARCHAR)"
with connect() as connection, changes_database(spill=Path("unused")) as database:
    for cursor in (connection, connection.cursor(), session(), database, database.cursor()):
        print(cursor.execute(instant).fetchall()[0][0])
"""


def test_instants_read_alike_in_every_cursor_whatever_the_machines_time_zone() -> None:
    # A process of its own: DuckDB asks for the machine's zone once.
    environment = os.environ | {"TZ": "America/New_York"}
    asked = subprocess.run([sys.executable, "-c", CAST], env=environment, capture_output=True, text=True, check=True)
    assert asked.stdout.splitlines() == ["2026-03-01 00:00:00+00"] * 5
