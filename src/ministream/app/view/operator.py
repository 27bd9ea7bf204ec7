"""Sends an operator's command to a running job."""

from __future__ import annotations

import time
from pathlib import Path

from ministream.app.recon import live_key
from ministream.app.recon.live_key import LiveKey
from ministream.errors import AccessError, ConfigError, PeerLostError
from ministream.transport import dial
from ministream.wire import live
from ministream.wire.live import Command, Steer, Steered

ANSWER_S = 10.0
_MAX_ANSWER_BYTES = 4096


def steer(target: str, key_file: Path | None, command: Command, value: float | None) -> str:
    """Send a command to the job at an address (with its key file) or in an output folder; returns what happens.

    Raises ConfigError for a target without a job and for what the job cannot do, AccessError without the operator's
    token, PeerLostError where nobody answers.
    """
    key, address = _job(target, key_file)
    if key.operator is None:
        raise AccessError(
            f"{key_file or target}: this key file has no operator's token, it is a copy for viewers. Ask the owner of "
            f"the job for {live_key.NAME} with its entry operator."
        )
    channel = dial(address, max_message_bytes=_MAX_ANSWER_BYTES, keys=key.for_viewer())
    try:
        channel.send([live.encode(Steer(operator=key.operator, command=command, value=value))])
        end, parts = time.monotonic() + ANSWER_S, None
        while parts is None and not channel.broken and time.monotonic() < end:
            parts = channel.recv(0.2)
        if parts is None:
            raise PeerLostError(
                f"no answer from {address}: {channel.broken or 'timed out'}. Check that the job runs, and that the key "
                "file is this job's."
            )
        answer = live.decode(parts[0], Steered)
    finally:
        channel.close()
    if answer.accepted:
        return answer.text
    if answer.denied:
        raise AccessError(f"{answer.text}: copy {live_key.NAME} from its output folder again.")
    raise ConfigError(answer.text)


def can_steer(target: str, key_file: Path | None) -> bool:
    """Whether a page may offer steering: its owner has the operator's token, or will have it once a job runs."""
    if "://" not in target:
        return Path(target).is_dir()
    return key_file is not None and live_key.read(key_file)[0].operator is not None


def _job(target: str, key_file: Path | None) -> tuple[LiveKey, str]:
    if "://" in target:
        if key_file is None:
            raise ConfigError(
                f"{target}: a running job needs its key file. Copy {live_key.NAME} from its output folder, and name "
                "the copy with --key FILE; on the same file system name the folder instead of the address."
            )
        return live_key.read(key_file)[0], target
    path = Path(target) / live_key.NAME
    if not path.exists():
        raise ConfigError(f"{target}: no job with a live view runs here. Start it with --live tcp://127.0.0.1:0.")
    return live_key.read(path)
