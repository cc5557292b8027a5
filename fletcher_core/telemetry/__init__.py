"""What a run reports about itself."""

from fletcher_core.telemetry.report import DeliveryCounts, Progress, RunReport, StageSeconds
from fletcher_core.telemetry.stages import Busy, StageClock, unwatched

__all__ = ["Busy", "DeliveryCounts", "Progress", "RunReport", "StageClock", "StageSeconds", "unwatched"]
