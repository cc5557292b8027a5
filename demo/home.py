"""Dagster's home for the demo: the runs that `make demo` makes are those that `make ui` shows."""

import os
import shutil
from pathlib import Path

SETTINGS = Path(__file__).with_name("dagster.yaml")


def prepare(folder: Path) -> Path:
    """Make `folder`/dagster_home, with the demo's settings, the home of this process and its children."""
    home = folder / "dagster_home"
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(SETTINGS, home / "dagster.yaml")
    os.environ["DAGSTER_HOME"] = str(home)
    os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"
    return home
