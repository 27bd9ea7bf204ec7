"""Follows the jobs of an output folder; between and after them it shows the volume that the last one wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from ministream.app.recon import live_key
from ministream.app.view.live_feed import LiveFeed
from ministream.app.view.volume_feed import VolumeFeed
from ministream.errors import InputError
from ministream.model import CurveKeys
from ministream.storage import FINAL
from ministream.view.feed import Shown
from ministream.wire.live import Picture

_ENDED = ("finished", "incomplete")


class FolderFeed:
    """The job in `folder` while there is one; then planes that it no longer serves come from its volume."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._live = LiveFeed(self._target, str(folder))
        self._volume: VolumeFeed | None = None
        self._wanted: tuple[Picture, ...] = ()

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__()
        self._close()

    def want(self, pictures: Iterable[Picture]) -> None:
        """Provide these pictures from now on."""
        self._wanted = tuple(pictures)
        self._live.want(self._wanted)
        if self._volume is not None:
            self._volume.want(self._wanted)

    def shown(self) -> Shown:
        """The newest."""
        live = self._live.shown()
        if live.condition not in _ENDED or self._target() is not None:
            self._close()
            return live
        if self._volume is None and not self._open():
            return live
        assert self._volume is not None
        volume = self._volume.shown()
        pictures = {**volume.pictures, **live.pictures}
        return dataclasses.replace(live, serial=live.serial + volume.serial, pictures=pictures)

    def _target(self) -> tuple[str, CurveKeys] | None:
        path = self._folder / live_key.NAME
        if not path.exists():
            return None
        key, address = live_key.read(path)
        return address, key.for_viewer()

    def _open(self) -> bool:
        """Open the volume; false while there is none that can be read."""
        try:
            self._volume = VolumeFeed(self._folder / FINAL)
        except InputError:
            return False
        self._volume.want(self._wanted)
        return True

    def _close(self) -> None:
        if self._volume is not None:
            self._volume.__exit__(None, None, None)
            self._volume = None
