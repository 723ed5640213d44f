"""The page: one self-contained HTML file with the verdict, the numbers and the figures of an evaluation."""

from dyntrain.report.figures import LearningCurve
from dyntrain.report.page import require_report_extra, write_report

__all__ = ["LearningCurve", "require_report_extra", "write_report"]
