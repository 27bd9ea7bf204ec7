"""Watching a job: stage clocks, latency, rate, progress, summary, pictures. Nothing here can slow or stop the work."""

from ministream.monitor.measure import Latency, Rate, StageClock, peak_memory_mib
from ministream.monitor.progress import Progress
from ministream.monitor.summary import Summary, render

__all__ = ["Latency", "Progress", "Rate", "StageClock", "Summary", "peak_memory_mib", "render"]
