"""A recorded stream gives the same volume as the scan that was recorded."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from tests.integration.jobs import MINISTREAM, lab


def test_the_volume_of_a_replay_is_bitwise_that_of_the_scan(tmp_path: Path) -> None:
    quick = ["--ranks", "1", "--set", "output.pictures=false", "--set", "window.step=15"]
    phantom = ["rows=4", "cols=32", "projections=45", "flats=2", "darks=2", "zingers=2", "drift=0.1", "flats_after=2"]
    settings = {
        "scan": [*(f"source.{setting}" for setting in phantom), f"producer.record={tmp_path}/recording.h5"],
        "replay": ["source.kind=replay", f"source.file={tmp_path}/recording.h5", "source.speed=20"],
    }
    volumes = {}
    with lab(tmp_path) as jobs:
        for name, values in settings.items():
            out = tmp_path / name
            options = [option for value in values for option in ("--set", value)]
            job = jobs.start(name, [*MINISTREAM, "launch", *quick, *options, "--out", str(out)])
            assert job.wait() == 0, job.text
            with h5py.File(out / "recon.h5") as file:
                volumes[name] = file["exchange/data"][()]
    assert volumes["scan"].any()
    np.testing.assert_array_equal(volumes["scan"].view(np.uint32), volumes["replay"].view(np.uint32))
