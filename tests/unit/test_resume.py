"""What a checkpoint decides when a run continues: its scan, and the tables that make the image."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from ministream import config
from ministream.app.recon import resume
from ministream.app.recon.assignment import assign
from ministream.errors import InputError
from ministream.model import Scan
from ministream.storage import Checkpoint

SCAN = Scan(scan_id="walnut-7", rows=4, cols=16, projections=30, flats=2, darks=1, dtype="<u2")


def checkpoint(**tables: dict) -> Checkpoint:
    assignment = assign(0, 1, config.load(None, tables), SCAN, 1)
    values = json.loads(json.dumps(resume.header(assignment)))
    return Checkpoint(path=Path("run/checkpoint-000004"), values=values, parts={})


def test_the_tables_that_make_the_image_are_those_of_the_checkpoint():
    before = checkpoint(window={"step": 10}, recon={"relaxation": 1.5, "threads": 4, "center": 7.0})
    mine = config.load(None, {"recon": {"threads": 2}, "output": {"directory": Path("elsewhere")}})
    found = resume.settled(mine, before)
    assert (found.window.length, found.window.step) == (30, 10)
    assert found.recon.options == {"relaxation": 1.5}
    assert (found.recon.axis_col, found.recon.threads) == (6.5, 2)
    assert found.output.directory == Path("elsewhere")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scan_id": "walnut-8"}, "scan_id is 'walnut-7', the producer sends one whose scan_id is 'walnut-8'"),
        ({"rows": 5}, "rows is 4"),
        ({"projections": 31}, "projections is 30"),
    ],
)
def test_another_scan_is_refused(change, said):
    resume.check(checkpoint(), SCAN)
    with pytest.raises(InputError, match=f"run/checkpoint-000004: is of a scan whose {said}.*start without --resume"):
        resume.check(checkpoint(), dataclasses.replace(SCAN, **change))
