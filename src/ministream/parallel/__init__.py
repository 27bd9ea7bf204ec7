"""Ranks: the doorway to MPI, and the distribution of frames by detector rows."""
