"""What both jobs know of the signals that stop them."""

import signal

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

SAME_SIGNAL_S = 1.0
"""mpirun, srun, the batch system and the launcher may each forward the same signal, within this time."""
