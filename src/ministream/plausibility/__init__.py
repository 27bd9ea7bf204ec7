"""The plausibility gate: is what arrives a scan that can be reconstructed as it was described?

Pure functions and small accumulators, without I/O: angles, calibration frames, projections, and the consistency of
projections with each other. Each answers with notices (something is odd, the run goes on) or raises InputError (the
volume would be wrong). `NoticeBook` collects the notices of a run.
"""

from ministream.plausibility.book import NoticeBook

__all__ = ["NoticeBook"]
