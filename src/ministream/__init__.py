"""Real-time X-ray tomography, streamed from the beamline to the supercomputer."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ministream.app.api import LiveUpdate, reconstruct, stream

__version__ = "0.1.0"
__all__ = ["LiveUpdate", "__version__", "reconstruct", "stream"]


def __getattr__(name: str) -> Any:
    """The Python interface, imported when it is used: the command line starts faster without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ministream.app import api

    return getattr(api, name)
