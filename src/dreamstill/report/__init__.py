"""Write one self-contained HTML page from a run's records, without torch."""

from dreamstill.report.compression import write_compression_report
from dreamstill.report.distill import write_report
from dreamstill.report.goal import write_goal_report
from dreamstill.report.page import MOST_CLASSES

__all__ = ["MOST_CLASSES", "write_compression_report", "write_goal_report", "write_report"]
