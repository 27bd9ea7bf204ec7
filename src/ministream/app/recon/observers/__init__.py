"""Observers of a run, one per module: `observe(run)` creates one, or returns None if it is not configured."""
