"""A file system without locks costs a warning; results are written, and scans are read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

NO_LOCKS = "#include <errno.h>\nint flock(int fd, int how) { (void)fd; (void)how; errno = ENOLCK; return -1; }\n"

WRITE_AND_READ = """
import sys
from pathlib import Path
import numpy as np
from ministream import config, source
from ministream.model import Frame, FrameKind, Scan
from ministream.private import LockedFolder
from ministream.storage.archive import Archive
from ministream.storage.reader import read_volume
from ministream.storage.stack import write_stack

folder = Path(sys.argv[1])
scan = Scan(scan_id="s", rows=2, cols=4, projections=3, flats=1, darks=1, dtype="<u2")
kinds = [FrameKind.DARK, FrameKind.FLAT, *3 * [FrameKind.PROJECTION]]
with Archive(folder / "scan.h5", scan) as archive:
    for index, kind in enumerate(kinds):
        pixels = np.full((2, 4), 10 * index, np.uint16)
        archive.append(Frame(kind=kind, index=max(0, index - 2), angle_rad=index / 9, pixels=pixels, acquired_s=1.0))
about = {"parameter": "axis", "values": [1, 2], "row": 0, "pixel_size_um": None, "config": {}}
write_stack(folder / "stack.h5", np.ones((2, 4, 4), np.float32), **about)
assert read_volume(folder / "stack.h5", "/data").shape == (2, 4, 4)
kept, fresh = (LockedFolder("own-", str(folder)) for _ in range(2))
assert kept.path.exists(), "nobody takes it for abandoned"
for own in (kept, fresh):
    own.remove()
section = config.SourceSection(kind="dxchange", file=str(folder / "scan.h5"))
with source.open_source(section, order="sequential", repeat=1) as opened:
    print(sum(int(frame.pixels.sum()) for frame in opened.frames()))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nolock")
    (folder / "nolock.c").write_text(NO_LOCKS)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "nolock.so", folder / "nolock.c"], check=True)
    return folder / "nolock.so"


def test_archives_stacks_and_scans_need_no_locks(library: Path, tmp_path: Path) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "HDF5_USE_FILE_LOCKING"}
    done = subprocess.run(
        [sys.executable, "-c", WRITE_AND_READ, str(tmp_path)],
        env=environment | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(8 * (0 + 10 + 20 + 30 + 40))]
    assert f"{tmp_path}/scan.h5: its file system has no locks" in done.stderr
