"""Every error that Mini-Stream raises on purpose.

    MinistreamError
    ├── UsageError            you asked for something wrong         exit 2
    │   ├── ConfigError         a key, value or option
    │   └── InputError          a file that cannot be read as what it should be
    ├── IncompleteError       the scan ended with frames missing    exit 3
    ├── PeerError             the other side misbehaved             exit 4
    │   ├── ProtocolError       a message out of turn or malformed
    │   │   ├── VersionError      another protocol version
    │   │   └── FrameError        one frame is bad, the stream can go on
    │   ├── PeerLostError       absent, silent or gone
    │   └── TunnelError         control server, proxy or credentials
    │       └── AccessError       refused: not authenticated or not allowed
    ├── StorageError          the disk or the file system failed    exit 5
    └── MachineError          a rank, a child process or the MPI failed  exit 4

A message has three parts: what was found, what was expected, what to do.
"""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """Exit status of the process."""

    COMPLETE = 0
    USAGE = 2
    INCOMPLETE = 3
    PEER = 4
    STORAGE = 5


class MinistreamError(Exception):
    """Base of all; `exit_code` is the status the command line ends with.

    `everywhere` says that every rank raised it together, so that the job can end in order; an error of
    one rank alone must abort the others.
    """

    exit_code: ExitCode = ExitCode.PEER
    everywhere: bool = False


class UsageError(MinistreamError):
    """The user asked for something that cannot be done."""

    exit_code = ExitCode.USAGE


class ConfigError(UsageError):
    """A configuration key, value or command-line option is wrong."""


class InputError(UsageError):
    """An input file is missing, truncated or not of the expected form."""


class IncompleteError(MinistreamError):
    """The job ended in order, but with frames lost or dropped."""

    exit_code = ExitCode.INCOMPLETE


class PeerError(MinistreamError):
    """The other side of a connection misbehaved or went away."""

    exit_code = ExitCode.PEER


class ProtocolError(PeerError):
    """A message that is malformed, out of turn or of another protocol version."""


class VersionError(ProtocolError):
    """The peer runs a release that uses another version of the protocol; connecting again does not help."""


class FrameError(ProtocolError):
    """One frame is bad (size, dtype, checksum, NaN); the stream around it is sound.

    `reason` is the short, stable word under which it is counted, such as `checksum`.
    """

    def __init__(self, message: str, *, reason: str = "malformed") -> None:
        super().__init__(message)
        self.reason = reason


class PeerLostError(PeerError):
    """The peer is absent, silent for too long, or gone."""


class TunnelError(PeerError):
    """A control server, data proxy or tunnel session failed."""


class AccessError(TunnelError):
    """Refused: the caller is not authenticated, or not allowed to do this."""


class StorageError(MinistreamError):
    """The file system rejected a write; names the file."""

    exit_code = ExitCode.STORAGE


class MachineError(MinistreamError):
    """A rank, a child process or the MPI installation failed."""

    exit_code = ExitCode.PEER
