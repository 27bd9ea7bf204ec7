"""Watching: stage clocks, latency, progress, summary, and what is published to viewers."""
