"""The plausibility gate: checks that the received data are a scan that can be reconstructed as described.

Pure functions and small accumulators, without I/O: angles, calibration frames, projections, and the consistency of
projections with each other. Each returns notices (suspicious data, the run continues) or raises InputError (the
volume would be wrong). `NoticeBook` collects the notices of a run.
"""

from ministream.plausibility.book import NoticeBook

__all__ = ["NoticeBook"]
