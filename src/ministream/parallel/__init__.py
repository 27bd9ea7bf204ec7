"""Ranks: MPI, and the distribution of frames by detector rows."""
