"""Every harness of coverage-guided fuzzing, for as long as a test may take; by hand they run for hours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="there is no atheris for this Python")

HARNESSES = sorted((Path(__file__).resolve().parents[1] / "fuzz").glob("fuzz_*.py"))


@pytest.mark.parametrize("harness", HARNESSES, ids=lambda path: path.stem)
def test_nothing_but_typed_errors_comes_out(harness: Path, tmp_path: Path) -> None:
    bounds = ["-runs=20000", "-max_total_time=20", "-max_len=2048", "-timeout=5", "-seed=1"]
    command = [sys.executable, str(harness), *bounds, f"-artifact_prefix={tmp_path}/", str(tmp_path / "corpus")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-5000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs is not None and int(runs[1]) > 500, done.stderr[-2000:]
