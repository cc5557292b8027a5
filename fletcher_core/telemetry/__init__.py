"""What a run reports about itself."""

from fletcher_core.telemetry.report import DeliveryCounts, Progress, RunReport, StageSeconds

__all__ = ["DeliveryCounts", "Progress", "RunReport", "StageSeconds"]
