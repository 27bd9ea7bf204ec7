"""Every file of `shared/cases` through both jobs: a right volume, an incomplete one that says why, or a remedy.

A remedy is followed to the letter: the options are those of the message, with its placeholders filled in.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.integration.warm_jobs import WarmPair
from tests.odd_scans import DISKS, Result

ITERATIONS = ["--window-iter", "60"]
RIGHT = 0.95
"""The least correlation of a right volume with the truth."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file, what the user adds to the command lines, and what must come of it."""

    file: str
    produce: str = ""
    recon: str = ""
    code: int = 0
    warns: tuple[str, ...] = ()
    says: str = ""
    """What the message of a refusal holds, besides the remedies."""
    remedies: tuple[str, ...] = ()
    correlation: float | None = RIGHT
    gone: tuple[str, ...] = ()

    @property
    def refused(self) -> bool:
        return self.code == 2

    def __str__(self) -> str:
        return " ".join([self.file.replace(".", "-"), *self.gone, self.produce, self.recon]).strip()


def refused(file: str, *remedies: str, says: str = "", produce: str = "", recon: str = "", **more: object) -> Case:
    return Case(file=file, code=2, remedies=remedies, says=says, produce=produce, recon=recon, **more)  # type: ignore[arg-type]


NO_CALIBRATION = "--set source.flats=none --set source.darks=none"
SKIPPED = "projections-unwritten"

CASES = [
    Case(file="base.h5"),
    Case(file="radians.h5", warns=("angles-unit",)),
    Case(file="radians.h5", produce="--set source.angle_unit=radians"),
    # the user insists: the volume of 3 degrees is written, and is not complete
    Case(
        file="radians.h5",
        produce="--set source.angle_unit=degrees",
        code=3,
        warns=("angles-unit", "angles-gap"),
        correlation=-1,
    ),
    refused("radians-logged.h5", "--set source.flats=none"),
    refused("radians-logged.h5", "--set source.darks=none", produce="--set source.flats=none"),
    refused(
        "radians-logged.h5",
        "--set prep.input=transmission",
        "--set prep.input=attenuation",
        produce=NO_CALIBRATION,
    ),
    refused(
        "radians-logged.h5",
        "--set prep.input=attenuation",
        produce=NO_CALIBRATION,
        recon="--set prep.input=transmission",
    ),
    Case(
        file="radians-logged.h5",
        produce=NO_CALIBRATION,
        recon="--set prep.input=attenuation",
        warns=("angles-unit",),
    ),
    Case(file="virtual.h5"),
    refused("virtual.h5", says="virtual-raw1.h5, which is missing", gone=("virtual-raw1.h5",)),
    refused("virtual.h5", says="virtual-raw0.h5, which is missing", gone=("virtual-raw0.h5", "virtual-raw1.h5")),
    refused("angles-zero.h5", "--set 'source.angles={start=0,stop=180}'", says="all 90 angles are the same"),
    Case(file="angles-zero.h5", produce="--set 'source.angles={start=0,stop=180}'"),
    refused("angles-absent.h5", "--set 'source.angles={start=0, step=DEGREES}'", says="angles are missing"),
    Case(file="angles-absent.h5", produce="--set 'source.angles={start=0, step=2}'"),
    Case(file="aborted-zeros.h5", code=3, warns=(SKIPPED, "angles-gap"), correlation=0.85),
    Case(file="aborted-zeros.h5", produce="--set source.exclude=[[60,90]]", warns=("angles-gap",), correlation=0.85),
    Case(file="aborted-unallocated.h5", code=3, warns=(SKIPPED, "angles-gap"), correlation=0.85),
    Case(file="holes.h5", code=3, warns=(SKIPPED,), says="--set source.exclude=[20,41,70]"),
    Case(file="holes.h5", produce="--set source.exclude=[20,41,70]"),
    refused("nonfinite-inf.h5", "--set source.flats=none"),
    refused("nonfinite-inf.h5", "--set prep.input=transmission", produce=NO_CALIBRATION),
    Case(file="nonfinite-inf.h5", produce=NO_CALIBRATION, recon="--set prep.input=transmission"),
    Case(file="nonfinite-nan.h5", produce=NO_CALIBRATION, recon="--set prep.input=transmission"),
    Case(file="scan.nxs"),
    refused("scan.nxs", "--set source.kind=nxtomo", produce="--source dxchange"),
    Case(file="scan.nxs", produce="--set source.kind=nxtomo"),
    refused("half.h5", "--set recon.axis=COLUMN", says="near column 0"),
    Case(file="half.h5", recon="--set recon.axis=6"),
    Case(
        file="half.h5", recon="--set recon.axis=7", warns=("axis-off",), says="--set recon.axis=6.0", correlation=None
    ),
    Case(file="sinograms.h5", warns=("rows-disagree",), says="--set source.axes=y:theta:x", correlation=-1),
    Case(file="sinograms.h5", produce="--set source.axes=y:theta:x"),
    Case(file="sinograms-said.h5"),
    Case(file="flat-closed.h5", warns=("flats-outlier",)),
    Case(file="flats-two-sets.h5"),
    Case(file="flat-2d.h5"),
    Case(file="units-deg.h5"),
    Case(file="parts.h5"),
    refused("parts.h5", says="parts-2.h5, which is missing", gone=("parts-2.h5",)),
    Case(
        file="blocked.h5",
        code=3,
        warns=(SKIPPED, "angles-gap"),
        says="--set source.exclude=[[40,56]]",
        correlation=0.9,
    ),
    Case(file="blocked.h5", produce="--set source.exclude=[[40,56]]", warns=("angles-gap",), correlation=0.9),
    Case(file="blocked-marked.h5", warns=("angles-missing", "angles-gap"), correlation=0.9),
    refused("signed.h5", "--set source.unsigned=true", "--set source.unsigned=false"),
    refused("signed.h5", "--set source.unsigned=true", produce="--set source.unsigned=false"),
    # its flats are another beam's in most columns
    Case(
        file="signed.h5",
        produce="--set source.unsigned=true",
        warns=("transmission-above-1", "second-moment"),
        correlation=0.85,
    ),
]


@pytest.fixture(scope="module")
def written(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all files."""
    folder = tmp_path_factory.mktemp("cases")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["make.py", str(folder)])
        runpy.run_path(str(shared / "cases" / "make.py"), run_name="__main__")
    return folder


def assert_like_truth(result: Result, folder: Path, least: float) -> None:
    """The volume correlates with the truth; a right one has the right levels, and not those of the mirrored object."""
    assert result.volume is not None
    n = result.volume.shape[1]
    expected = np.load(folder / ("truth.npy" if n == len(np.load(folder / "truth.npy")) else "half-truth.npy"))
    correlation = result.correlation(expected)
    assert correlation > least
    if least >= RIGHT:
        assert result.correlation(expected[:, ::-1]) < 0.7
        levels = [result.level(disk) for disk in DISKS] if n == 64 else []
        assert levels == pytest.approx([1.0] * len(levels), abs=0.05)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_comes_of_a_file(case: Case, warm: WarmPair, written: Path, tmp_path: Path) -> None:
    folder = written
    if case.gone:
        folder = Path(shutil.copytree(written, tmp_path / "cases", ignore=shutil.ignore_patterns(*case.gone)))
    scan = ["--file", str(folder / case.file)]
    ran = warm.run([*scan, *shlex.split(case.produce)], [*ITERATIONS, *shlex.split(case.recon)])
    assert "Traceback" not in ran.text
    for words in (case.says, *case.remedies):
        assert words in ran.text
    if case.refused:
        assert ran.refused, ran.text
        return
    assert (ran.producer, ran.recon) == (case.code, case.code), ran.text
    assert ran.summary["complete"] == (case.code == 0)
    assert set(ran.codes) == set(case.warns)
    if case.correlation is not None:
        assert_like_truth(Result(volume=ran.volume), folder, case.correlation)


def test_every_file_has_a_case(written: Path) -> None:
    scans = {path.name for path in written.iterdir() if path.suffix in (".h5", ".nxs")}
    parts = {name for name in scans if re.search(r"(raw|parts-)\d", name)}
    assert {case.file for case in CASES} == scans - parts


@pytest.mark.parametrize("case", CASES, ids=str)
def test_check_says_beforehand_what_a_run_says(case: Case, warm: WarmPair, written: Path, tmp_path: Path) -> None:
    folder = written
    if case.gone:
        folder = Path(shutil.copytree(written, tmp_path / "cases", ignore=shutil.ignore_patterns(*case.gone)))
    words = shlex.split(f"{case.produce} {case.recon}".replace("--source dxchange", "--set source.kind=dxchange"))
    code, text = warm.check([str(folder / case.file), *words])
    assert code == (case.code or (3 if case.warns else 0)), text
    for code_ in case.warns:
        assert code_ in text


def test_a_mended_pixel_leaves_the_other_slices_as_they_are(warm: WarmPair, written: Path) -> None:
    odd = warm.run(["--file", str(written / "nonfinite-inf.h5"), *NO_CALIBRATION.split()],
                   [*ITERATIONS, "--set", "prep.input=transmission"])  # fmt: skip
    slices = odd.volume
    assert np.isfinite(slices).all()
    np.testing.assert_allclose(slices[0], slices[3], atol=1e-6)
