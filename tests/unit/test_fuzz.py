"""Every harness of coverage-guided fuzzing, for as long as a test may take; by hand they run for hours.

A run begins with the inputs of tests/fuzz/corpus, which earlier runs by hand have found.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="there is no atheris for this Python")

FUZZ = Path(__file__).resolve().parents[1] / "fuzz"
HARNESSES = sorted(FUZZ.glob("fuzz_*.py"))


@pytest.mark.parametrize("harness", HARNESSES, ids=lambda path: path.stem)
def test_nothing_but_typed_errors_comes_out(harness: Path, tmp_path: Path) -> None:
    known = shutil.copytree(FUZZ / "corpus" / harness.stem, tmp_path / "corpus")
    assert list(known.iterdir())
    bounds = ["-runs=20000", "-max_total_time=20", "-max_len=2048", "-timeout=5", "-seed=1"]
    command = [sys.executable, str(harness), *bounds, f"-artifact_prefix={tmp_path}/", str(known)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-5000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs is not None and int(runs[1]) > 500, done.stderr[-2000:]
