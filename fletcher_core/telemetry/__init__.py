"""What a run reports about itself."""

from fletcher_core.telemetry.report import LENGTH_EDGES, DeliveryCounts, Progress, RunReport, SlowRow, StageSeconds
from fletcher_core.telemetry.stages import Busy, StageClock, unwatched

__all__ = [
    "LENGTH_EDGES",
    "Busy",
    "DeliveryCounts",
    "Progress",
    "RunReport",
    "SlowRow",
    "StageClock",
    "StageSeconds",
    "unwatched",
]
