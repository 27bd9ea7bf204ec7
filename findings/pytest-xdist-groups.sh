#!/usr/bin/env bash
# pytest-xdist 3.8.0 with pytest 9.2.0: the mark `xdist_group` has no effect, and nothing says so.
#
# Expected: with `--dist loadgroup` all tests that carry the same group run on one worker, one after the other.
# Found:    they run on all workers, as if they had no mark. pytest-xdist tells the scheduler the group as a suffix
#           that it writes into `item._nodeid`; pytest 9.2 keeps the id elsewhere and ignores that attribute.
#           With pytest 9.1 the same files run on one worker.
# Output:   pytest 9.1.0: 1 worker; pytest 9.2.0: 2 workers
# Instead:  a scheduler of one's own (`pytest_xdist_make_scheduler`), as in tests/scheduling.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/test_group.py" <<'PYTHON'
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("one")


@pytest.mark.parametrize("number", range(6))
def test_notes_its_worker(number, worker_id):
    (Path(__file__).parent / f"worker-{worker_id}").touch()
    time.sleep(0.2)  # long enough for the other worker to take the next test
PYTHON

# workers_with VERSION: how many of two workers ran the group's tests.
workers_with() {
    local venv=$folder/pytest-$1
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check "pytest==$1" pytest-xdist==3.8.0
    rm -f "$folder"/worker-*
    "$venv/bin/python" -m pytest -q -p no:cacheprovider -n 2 --dist loadgroup "$folder/test_group.py" >&2
    find "$folder" -name 'worker-*' | wc -l
}

before=$(workers_with 9.1.0)
after=$(workers_with 9.2.0)
printf 'pytest 9.1.0: %s worker; pytest 9.2.0: %s workers\n' "$before" "$after"
[[ $before = 1 && $after = 2 ]]
