"""Real-time X-ray tomography, streamed from the beamline to the supercomputer."""

__version__ = "0.1.0"
