"""Files that cannot be read, or change while they are read: every source of files says which one, and what to do."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ministream import config
from ministream.errors import InputError
from ministream.source import Source, open_source
from tests.source_examples import EXAMPLES

KINDS = sorted(set(EXAMPLES) - {"phantom"})
NOBODY = 65534


class Played:
    """A small scan in a folder that every user may enter, and one file of it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.folder = folder
        self._section = config.SourceSection(kind=kind, **EXAMPLES[kind](folder))
        file = Path(self._section.options["file"])
        self.file = file / "p3.tif" if file.is_dir() else file

    def open(self) -> Source:
        return open_source(self._section, order="sequential", repeat=1)

    def play(self) -> int:
        """Play all frames; returns their number."""
        with self.open() as source:
            return len(list(source.frames()))


@pytest.fixture(params=KINDS)
def scan(request: pytest.FixtureRequest) -> Iterator[Played]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        made = Played(request.param, Path(folder))
        assert made.play() == 12
        yield made


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may read everything: be another user meanwhile."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_the_user_may_not_read_is_named_with_a_remedy_that_works(scan: Played, what: str) -> None:
    path = scan.file if what == "file" else scan.folder
    path.chmod(0)
    with unprivileged(), pytest.raises(InputError, match=rf"{scan.folder}.*: Permission denied\. Check .*permissions"):
        scan.play()
    path.chmod(0o755)
    with unprivileged():
        assert scan.play() == 12


def test_a_pipe_is_not_waited_for(scan: Played) -> None:
    scan.file.unlink()
    os.mkfifo(scan.file)
    with pytest.raises(InputError, match=rf"{scan.file}: is a device or a pipe, expected a file.*source\.file=FILE"):
        scan.play()


@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.95])
def test_a_file_that_was_cut_short_is_refused(scan: Played, part: float) -> None:
    whole = scan.file.read_bytes()
    scan.file.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(InputError, match=f"{scan.file}"):
        scan.play()
    scan.file.write_bytes(whole)
    assert scan.play() == 12


@pytest.mark.parametrize("part", [0.0, 0.5, 0.95])
def test_a_file_that_is_cut_short_while_it_is_read_is_an_error(scan: Played, part: float) -> None:
    """Whatever HDF5 or the page cache still has of it."""
    with scan.open() as source:
        frames = source.frames()
        next(frames)
        os.truncate(scan.file, int(scan.file.stat().st_size * part))
        with pytest.raises(InputError, match=f"{scan.file}"):
            list(frames)


def test_a_file_that_is_removed_or_replaced_while_it_is_read_is_an_error(scan: Played) -> None:
    with scan.open() as source:
        frames = source.frames()
        next(frames)
        content = scan.file.read_bytes()
        scan.file.rename(scan.file.with_suffix(".old"))
        scan.file.write_bytes(content)
        with pytest.raises(InputError, match=rf"{scan.file}: (another file replaced it|the file changed)"):
            list(frames)
    with scan.open() as source:
        frames = source.frames()
        next(frames)
        scan.file.unlink()
        with pytest.raises(InputError, match=rf"{scan.file}: the file was removed"):
            list(frames)
