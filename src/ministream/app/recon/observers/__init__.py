"""Observers of a run, one per module; each module's `observe(run)` makes one, or None where nothing asks for it."""
