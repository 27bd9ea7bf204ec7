"""`ministream doctor`: whether a machine, and the way to the other side, can run the jobs."""
