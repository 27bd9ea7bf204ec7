"""Watching a job: stage clocks, latency, rate, progress, summary, pictures. Nothing here may slow or stop the job."""

from ministream.monitor._figure import grey_window
from ministream.monitor.measure import Latency, Rate, StageClock, peak_memory_mib
from ministream.monitor.progress import Progress
from ministream.monitor.summary import Summary, render

__all__ = ["Latency", "Progress", "Rate", "StageClock", "Summary", "grey_window", "peak_memory_mib", "render"]
