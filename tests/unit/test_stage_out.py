"""Finished files travel from the scratch disk to the results while the job goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from ministream.app.launch.stage_out import StageOut
from ministream.errors import StorageError
from tests.waiting import eventually


def test_finished_files_are_copied_on_the_way_and_at_the_end(tmp_path: Path) -> None:
    scratch, target = tmp_path / "scratch", tmp_path / "results"
    (scratch / "pictures").mkdir(parents=True)
    with StageOut(scratch, target) as copy:
        (scratch / "000001-recon.h5").write_bytes(b"one")
        (scratch / ".000002-recon.h5.part").write_bytes(b"half")
        eventually((target / "000001-recon.h5").exists)
        assert [path.name for path in target.iterdir()] == ["000001-recon.h5"]
        (scratch / ".000002-recon.h5.part").rename(scratch / "000002-recon.h5")
        (scratch / "pictures" / "slices.png").write_bytes(b"png")
        copy.finish()
    assert (target / "000002-recon.h5").read_bytes() == b"half"
    assert (target / "pictures" / "slices.png").read_bytes() == b"png"
    assert not scratch.exists()


def test_a_file_that_is_replaced_is_copied_again(tmp_path: Path) -> None:
    scratch, target = tmp_path / "scratch", tmp_path / "results"
    scratch.mkdir()
    (scratch / "summary.json").write_bytes(b"first")
    with StageOut(scratch, target) as copy:
        eventually((target / "summary.json").exists)
        (scratch / "summary.json").write_bytes(b"the second")
        copy.finish()
    assert (target / "summary.json").read_bytes() == b"the second"


def test_results_that_were_not_copied_stay_on_the_scratch_disk(tmp_path: Path) -> None:
    scratch, target = tmp_path / "scratch", tmp_path / "results"
    scratch.mkdir()
    target.write_text("a file where the folder should be")
    (scratch / "recon.h5").write_bytes(b"volume")
    with StageOut(scratch, target) as copy, pytest.raises(StorageError, match=r"recon\.h5"):
        copy.finish()
    assert (scratch / "recon.h5").read_bytes() == b"volume"


def test_a_scratch_disk_on_which_nobody_wrote_is_an_error(tmp_path: Path) -> None:
    with (
        StageOut(tmp_path / "scratch", tmp_path / "results") as copy,
        pytest.raises(StorageError, match=r"no results in .*scratch on"),
    ):
        copy.finish()


def test_a_job_that_ended_before_it_wrote_leaves_nothing_to_clean_up(tmp_path: Path) -> None:
    with StageOut(tmp_path / "scratch", tmp_path / "results"):
        pass
    assert not (tmp_path / "results").exists()
