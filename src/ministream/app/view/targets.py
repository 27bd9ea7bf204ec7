"""What `ministream view` is given: the address of a job, a folder of results, or a volume."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from ministream.app.recon import live_key
from ministream.app.view.folder_feed import FolderFeed
from ministream.app.view.live_feed import LiveFeed
from ministream.app.view.volume_feed import VolumeFeed
from ministream.errors import ConfigError, InputError
from ministream.storage import FINAL
from ministream.view.feed import Feed


def open_feed(target: str, key_file: Path | None) -> AbstractContextManager[Feed]:
    """The feed of a target. Raises ConfigError for a missing key, InputError for what cannot be shown."""
    if "://" in target:
        if key_file is None:
            raise ConfigError(
                f"{target}: a running job needs its key file. Copy {live_key.NAME} from its output folder, and name "
                "the copy with --key FILE; on the same file system name the folder instead of the address."
            )
        key = live_key.read(key_file)[0].for_viewer()
        return LiveFeed(lambda: (target, key), target)
    path = Path(target)
    if path.is_file():
        return VolumeFeed(path)
    if not path.is_dir():
        raise InputError(f"{target}: no such file or folder. Name tcp://HOST:PORT, an output folder, or a volume")
    if (path / FINAL).exists() and not (path / live_key.NAME).exists():
        return VolumeFeed(path / FINAL)
    return FolderFeed(path)
