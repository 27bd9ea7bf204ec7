"""Where compiled kernels are kept."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = "from ministream.cli import main; main()"


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"
    command = [sys.executable, "-c", CODE, "check", "--set", "source.rows=2", "--set", "source.cols=16"]
    done = subprocess.run(
        command, env=os.environ | {"NUMBA_CACHE_DIR": str(cache)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert str(cache) in done.stderr
    assert "NUMBA_CACHE_DIR" in done.stderr
    assert "Traceback" not in done.stderr
