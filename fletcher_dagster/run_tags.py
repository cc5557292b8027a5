"""The tags of runs that Fletcher's schedules and sensors ask for: why they were asked for, and how urgent they are."""

from typing import Literal

TRIGGER_KEY = "fletcher/trigger"

Trigger = Literal["schedule", "files", "watermark", "catch-up", "rest"]


def fletcher_run_tags(trigger: Trigger | str, priority: int | None = None) -> dict[str, str]:
    """The tags of a run.

    Args:
        trigger: what asked for the run; shown and searched for as the tag `fletcher/trigger`.
        priority: among queued runs, the greatest first; runs without one have 0.
    """
    tags = {TRIGGER_KEY: str(trigger)}
    return tags if priority is None else tags | {"dagster/priority": str(priority)}
