"""The producer job."""
