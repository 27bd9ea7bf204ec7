"""The checks, one module each: `examine(subject)` yields findings. They are made in the order of their names."""
