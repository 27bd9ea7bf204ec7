"""Scans as they come: each of the files in `shared/cases`, and its siblings, as a source plays it."""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ministream import config
from ministream.errors import ConfigError, InputError
from ministream.model import Frame, FrameKind, Scan
from ministream.source import open_source

DEG = np.arange(90) * 2.0


@pytest.fixture(scope="session")
def written(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, written once; tests that change a file take `cases`."""
    folder = tmp_path_factory.mktemp("cases")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["make.py", str(folder)])
        runpy.run_path(str(shared / "cases" / "make.py"), run_name="__main__")
    return folder


@pytest.fixture
def cases(written: Path, tmp_path: Path) -> Path:
    """The test's own copy of all cases."""
    return Path(shutil.copytree(written, tmp_path / "cases"))


class Played:
    """What a source sent."""

    def __init__(self, path: Path, kind: str = "dxchange", order: str = "sequential", **options: Any) -> None:
        section = config.SourceSection(kind=kind, file=str(path), **options)
        with open_source(section, order=order, repeat=1) as source:
            self.scan: Scan = source.describe()
            self.frames: list[Frame] = list(source.frames())
            self.dropped = source.dropped
        self.codes = [found.code for found in self.scan.notices]

    def of(self, kind: FrameKind) -> list[Frame]:
        return [frame for frame in self.frames if frame.kind is kind]

    def pixels(self, kind: FrameKind = FrameKind.PROJECTION) -> np.ndarray:
        return np.stack([frame.pixels for frame in self.of(kind)])

    @property
    def deg(self) -> np.ndarray:
        return np.rad2deg([frame.angle_rad for frame in self.of(FrameKind.PROJECTION)])


def same_as_base(played: Played, base: Played, chosen: slice | list[int] = slice(None)) -> bool:
    """Whether these are the projections and angles of the sound scan."""
    np.testing.assert_array_equal(played.pixels(), base.pixels()[chosen])
    np.testing.assert_allclose(played.deg, base.deg[chosen], atol=1e-9)
    return played.scan.projections == len(played.deg)


@pytest.fixture(scope="session")
def base(written: Path) -> Played:
    played = Played(written / "base.h5")
    assert played.scan.notices == ()
    np.testing.assert_allclose(played.deg, DEG)
    return played


def changed(path: Path, **datasets: Any) -> Path:
    """Replace datasets of /exchange; None removes one."""
    with h5py.File(path, "a") as file:
        for name, values in datasets.items():
            if f"exchange/{name}" in file:
                del file[f"exchange/{name}"]
            if values is not None:
                file[f"exchange/{name}"] = values
    return path


# angles


def test_radians_without_units_are_told_by_their_span(cases: Path, base: Played) -> None:
    played = Played(cases / "radians.h5")
    assert same_as_base(played, base)
    assert played.codes == ["angles-unit"]
    assert "angle_unit=radians" in played.scan.notices[0].text
    confirmed = Played(cases / "radians.h5", angle_unit="radians")
    assert same_as_base(confirmed, base)
    assert confirmed.codes == []
    np.testing.assert_allclose(Played(cases / "radians.h5", angle_unit="degrees").deg, np.radians(DEG))


@pytest.mark.parametrize("stop", [np.pi, 2 * np.pi, -np.pi])
@pytest.mark.parametrize("end", [True, False])
def test_any_half_or_full_turn_in_radians_is_told(cases: Path, stop: float, end: bool) -> None:
    theta = np.linspace(0, stop, 90, endpoint=end)
    played = Played(changed(cases / "base.h5", theta=theta))
    np.testing.assert_allclose(played.deg, np.rad2deg(theta))
    assert played.codes == ["angles-unit"]


@pytest.mark.parametrize("stop", [3.0, 5.0, 7.0, 180.0])
def test_a_narrow_scan_in_degrees_stays_in_degrees(cases: Path, stop: float) -> None:
    theta = np.linspace(0, stop, 90, endpoint=False)
    played = Played(changed(cases / "base.h5", theta=theta))
    np.testing.assert_allclose(played.deg, theta)
    assert played.codes == []


@pytest.mark.parametrize("units", ["[deg]", "deg.", "Degrees", " degree ", "(°)", "DEG"])
def test_degrees_in_any_spelling(cases: Path, base: Played, units: str) -> None:
    with h5py.File(cases / "units-deg.h5", "a") as file:
        assert file["exchange/theta"].attrs["units"] == "[deg]"
        file["exchange/theta"].attrs["units"] = units
    assert same_as_base(Played(cases / "units-deg.h5"), base)


@pytest.mark.parametrize(("units", "factor"), [("[rad]", 1.0), ("Radians", 1.0), ("[mrad]", 1e3)])
def test_radians_in_any_spelling(cases: Path, base: Played, units: str, factor: float) -> None:
    path = changed(cases / "base.h5", theta=np.radians(DEG) * factor)
    with h5py.File(path, "a") as file:
        file["exchange/theta"].attrs["units"] = np.bytes_(units)
    assert same_as_base(Played(path), base)


@pytest.mark.parametrize(("said", "values", "other"), [
    ("degrees", np.radians(DEG), "radians"), ("deg", 2 * np.radians(DEG), "radians"), ("rad", DEG, "degrees"),
    ("[rad]", 2 * DEG, "degrees"),
])  # fmt: skip
def test_units_that_contradict_the_values_are_refused_with_a_remedy(
    cases: Path, said: str, values: np.ndarray, other: str
) -> None:
    path = changed(cases / "base.h5", theta=values)
    with h5py.File(path, "a") as file:
        file["exchange/theta"].attrs["units"] = said
    with pytest.raises(InputError, match=rf"--set source\.angle_unit={other}, or"):
        Played(path)
    turns = round(np.ptp(Played(path, angle_unit=other).deg) / 178)
    np.testing.assert_allclose(Played(path, angle_unit=other).deg, turns * DEG)
    assert Played(path, angle_unit="degrees" if other == "radians" else "radians").codes == []


def test_unknown_units_are_refused_with_a_remedy_that_works(cases: Path, base: Played) -> None:
    path = cases / "base.h5"
    with h5py.File(path, "a") as file:
        file["exchange/theta"].attrs["units"] = "steps"
    with pytest.raises(InputError, match=r"units 'steps', expected degrees or radians.*source\.angle_unit=degrees"):
        Played(path)
    assert same_as_base(Played(path, angle_unit="degrees"), base)


def test_absent_angles_can_be_said(cases: Path, base: Played) -> None:
    path = cases / "angles-absent.h5"
    with pytest.raises(InputError, match=r"angles are missing.*--set 'source\.angles=\{start=0, step=DEGREES\}'"):
        Played(path)
    assert same_as_base(Played(path, angles={"start": 0.0, "step": 2.0}), base)
    assert same_as_base(Played(path, angles={"stop": 178.0}), base)
    assert same_as_base(Played(path, angles={"step": float(np.radians(2))}, angle_unit="radians"), base)


@pytest.mark.parametrize("angles", [{}, {"step": 1.0, "stop": 2.0}, {"step": float("nan")}, {"end": 1.0}])
def test_a_wrong_range_of_angles_is_named(cases: Path, angles: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="angles"):
        Played(cases / "base.h5", angles=angles)


# projections that are not to be played


def test_blocked_views_can_be_left_out(cases: Path, base: Played) -> None:
    kept = [k for k in range(90) if not 40 <= k < 56]
    assert same_as_base(Played(cases / "blocked.h5", exclude=[[40, 50], 50, 51, [52, 56]]), base, kept)


def test_nan_angles_are_left_out(cases: Path, base: Played) -> None:
    kept = [k for k in range(90) if not 40 <= k < 56]
    played = Played(cases / "blocked-marked.h5")
    assert same_as_base(played, base, kept)
    assert played.codes == ["angles-missing"]
    assert played.scan.notices[0].frames == tuple(range(40, 56))
    assert "16 of 90 projections (40–55)" in played.scan.notices[0].text
    assert played.dropped == 0


@pytest.mark.parametrize("exclude", [[90], [[80, 91]], [[5, 5]], [[1, 2, 3]], [-1]])
def test_wrong_exclusions_are_named(cases: Path, exclude: list[Any]) -> None:
    with pytest.raises(ConfigError, match="exclude"):
        Played(cases / "base.h5", exclude=exclude)


def test_projections_that_were_never_written_are_left_out(cases: Path, base: Played) -> None:
    played = Played(cases / "aborted-unallocated.h5")
    assert same_as_base(played, base, slice(0, 60))
    assert played.dropped == 30
    assert played.codes == ["projections-unwritten"]
    assert "30 of 90 projections (60–89) were never written" in played.scan.notices[0].text


@pytest.mark.parametrize("chunks", [(1, 4, 64), (1, 2, 64), (1, 4, 32), (4, 4, 64), (90, 1, 64)])
@pytest.mark.parametrize("fill", [0, 65535])
@pytest.mark.parametrize("order", ["sequential", "golden-angle"])
def test_holes_in_any_chunking(cases: Path, base: Played, chunks: tuple[int, ...], fill: int, order: str) -> None:
    path = changed(cases / "base.h5", data=None)
    gap = slice(20, 32)
    with h5py.File(path, "a") as file:
        data = file.create_dataset("exchange/data", (90, 4, 64), "u2", chunks=chunks, fillvalue=fill)
        pixels = base.pixels()
        if chunks[0] < 90:
            data[:20], data[32:] = pixels[:20], pixels[32:]
        else:
            data[:, :3] = pixels[:, :3]  # a row of every sinogram is missing
    if chunks[0] == 90:
        with pytest.raises(InputError, match="90 were never written"):
            Played(path, order=order)
        return
    played = Played(path, order=order)
    kept = np.setdiff1d(np.arange(90), np.arange(90)[gap])
    assert sorted(played.deg.round(6).tolist()) == DEG[kept].tolist()
    np.testing.assert_array_equal(played.pixels(), base.pixels()[(played.deg / 2).round().astype(int)])
    assert played.dropped == 12


def test_flats_that_were_never_written_are_left_out(cases: Path) -> None:
    path = changed(cases / "base.h5", data_white=None)
    with h5py.File(path, "a") as file:
        flats = file.create_dataset("exchange/data_white", (5, 4, 64), "u2", chunks=(1, 4, 64), fillvalue=9)
        flats[:2] = 20100
    played = Played(path)
    assert played.scan.flats == 2
    assert played.pixels(FrameKind.FLAT).min() == 20100


def test_a_dataset_that_was_never_written_is_refused(cases: Path) -> None:
    path = changed(cases / "base.h5", data=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("exchange/data", (90, 4, 64), "u2")
    with pytest.raises(InputError, match="none of the requested projections can be played: 90 were never written"):
        Played(path)


# virtual and linked data


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process works in a folder that is not the scan's."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)


@pytest.mark.usefixtures("elsewhere")
def test_virtual_datasets_are_read_from_any_folder(cases: Path, base: Played) -> None:
    for order in ("sequential", "golden-angle"):
        played = Played(cases / "virtual.h5", order=order)
        np.testing.assert_array_equal(played.pixels(), base.pixels()[(played.deg / 2).round().astype(int)])


@pytest.mark.parametrize("gone", [["virtual-raw1.h5"], ["virtual-raw0.h5", "virtual-raw1.h5"]])
def test_a_virtual_dataset_without_its_sources_is_refused(cases: Path, gone: list[str]) -> None:
    for name in gone:
        (cases / name).unlink()
    with pytest.raises(InputError, match=rf"virtual dataset /exchange/data leads to .*{gone[0]}, which is missing"):
        Played(cases / "virtual.h5")


def test_a_virtual_dataset_lacks_what_its_source_lacks(cases: Path, base: Played) -> None:
    with h5py.File(cases / "virtual-raw1.h5", "w") as file:
        part = file.create_dataset("d", (45, 4, 64), "u2", chunks=(1, 4, 64))
        part[:10] = base.pixels()[45:55]
    played = Played(cases / "virtual.h5")
    assert same_as_base(played, base, slice(0, 55))
    assert played.dropped == 35
    with h5py.File(cases / "virtual-raw1.h5", "w") as file:
        file["d"] = base.pixels()[45:55]  # a shorter source
    assert Played(cases / "virtual.h5").dropped == 35


def test_a_virtual_dataset_of_interleaved_files(cases: Path, base: Played) -> None:
    """Two detectors' files, image by image: HDF5 puts them together."""
    layout = h5py.VirtualLayout((90, 4, 64), "u2")
    for part in (0, 1):
        with h5py.File(cases / f"even-odd{part}.h5", "w") as file:
            file["d"] = base.pixels()[part::2]
        layout[part::2] = h5py.VirtualSource(f"even-odd{part}.h5", "d", shape=(45, 4, 64))
    path = changed(cases / "base.h5", data=None)
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset("exchange/data", layout)
    assert same_as_base(Played(path), base)
    (cases / "even-odd1.h5").unlink()
    with pytest.raises(InputError, match=r"even-odd1\.h5, which is missing"):
        Played(path)


@pytest.mark.usefixtures("elsewhere")
def test_parts_behind_links_are_read_in_order(cases: Path, base: Played) -> None:
    assert same_as_base(Played(cases / "parts.h5"), base)
    assert same_as_base(Played(cases / "parts.h5", data="/entry/data"), base)
    (cases / "parts-2.h5").unlink()
    with pytest.raises(InputError, match=r"link /entry/data/data_000002 leads to .*parts-2\.h5, which is missing"):
        Played(cases / "parts.h5")


def test_parts_are_in_order_of_their_numbers(cases: Path, base: Played) -> None:
    path = changed(cases / "base.h5", data=None)
    with h5py.File(path, "a") as file:
        for k in range(12):
            file[f"raw/part{k + 1}"] = base.pixels()[k * 8 : min(k * 8 + 8, 90)] if k < 11 else base.pixels()[88:]
    assert same_as_base(Played(path, data="/raw"), base)


def test_parts_whose_numbers_skip_or_repeat_are_refused(cases: Path, base: Played) -> None:
    path = changed(cases / "base.h5", data=None)
    with h5py.File(path, "a") as file:
        file["raw/part1"], file["raw/part3"] = base.pixels()[:45], base.pixels()[45:]
    with pytest.raises(InputError, match=r"in /raw, part3 follows part1, expected parts with successive numbers"):
        Played(path, data="/raw", angles={"step": 2.0})
    with h5py.File(path, "a") as file:
        file.move("raw/part3", "raw/part2")
    assert same_as_base(Played(path, data="/raw"), base)
    with h5py.File(path, "a") as file:
        file["raw/flat1"] = base.pixels()[:5]
    with pytest.raises(InputError, match="part1 follows flat1"):
        Played(path, data="/raw")


def test_parts_of_unlike_size_are_refused(cases: Path, base: Played) -> None:
    path = changed(cases / "base.h5", data=None)
    with h5py.File(path, "a") as file:
        file["raw/part1"], file["raw/part2"] = base.pixels()[:45], base.pixels()[45:, :3]
    with pytest.raises(InputError, match=r"part2 has images of 3 x 64 pixels, .*part1 of 4 x 64"):
        Played(path, data="/raw")


def outside(cases: Path, kind: str, base: Played) -> Path:
    """A scan whose projections lie in a folder that is not below its own."""
    folder = cases.parent / "outside"
    folder.mkdir()
    path = changed(cases / "base.h5", data=None)
    with h5py.File(folder / "raw.h5", "w") as file:
        file["d"] = base.pixels()
    base.pixels().tofile(folder / "raw.bin")
    with h5py.File(path, "a") as file:
        if kind == "link":
            file["exchange/data"] = h5py.ExternalLink("../outside/raw.h5", "/d")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((90, 4, 64), "u2")
            layout[:] = h5py.VirtualSource(str(folder / "raw.h5"), "d", shape=(90, 4, 64))
            file.create_virtual_dataset("exchange/data", layout)
        elif kind == "storage":
            file.create_dataset("exchange/data", (90, 4, 64), "u2", external=[("../outside/raw.bin", 0, 46080)])
        else:
            (cases / "raw.h5").symlink_to(folder / "raw.h5")
            file["exchange/data"] = h5py.ExternalLink("raw.h5", "/d")
    return path


@pytest.mark.parametrize("kind", ["link", "virtual", "storage", "symlink"])
@pytest.mark.usefixtures("elsewhere")
def test_only_files_below_the_scan_are_read_unless_the_user_says_so(cases: Path, base: Played, kind: str) -> None:
    path = outside(cases, kind, base)
    with pytest.raises(InputError, match=r"leads to .*/outside/raw.*, outside the scan's folder.*follow_links=true"):
        Played(path)
    assert same_as_base(Played(path, follow_links=True), base)


def test_a_link_in_a_linked_file_is_judged_too(cases: Path, base: Played) -> None:
    path = outside(cases, "link", base)
    with h5py.File(cases / "inner.h5", "w") as file:
        file["d"] = h5py.ExternalLink("../outside/raw.h5", "/d")
    with h5py.File(path, "a") as file:
        del file["exchange/data"]
        file["exchange/data"] = h5py.ExternalLink("inner.h5", "/d")
    with pytest.raises(InputError, match="outside the scan's folder"):
        Played(path)


def test_angles_behind_a_link_are_judged_too(cases: Path, base: Played) -> None:
    path = changed(outside(cases, "link", base), data=base.pixels(), theta=None)
    with h5py.File(path, "a") as file:
        file["exchange/theta"] = h5py.ExternalLink("../outside/raw.h5", "/d")
    with pytest.raises(InputError, match=r"link /exchange/theta leads to .*outside the scan's folder"):
        Played(path)


def test_links_that_go_round_are_refused(cases: Path) -> None:
    path = changed(cases / "base.h5", data=None)
    with h5py.File(path, "a") as file:
        file["exchange/data"], file["exchange/again"] = h5py.SoftLink("again"), h5py.SoftLink("data")
    with pytest.raises(InputError, match="leads through more than 16 links"):
        Played(path)


def test_external_storage_that_is_cut_short_is_refused(cases: Path, base: Played) -> None:
    path = changed(cases / "base.h5", data=None)
    (cases / "raw.bin").write_bytes(base.pixels().tobytes()[:-100])
    with h5py.File(path, "a") as file:
        file.create_dataset("exchange/data", (90, 4, 64), "u2", external=[("raw.bin", 0, 46080)])
    with pytest.raises(InputError, match="external storage of /exchange/data has 45980 bytes, expected 46080"):
        Played(path)


def test_several_exchange_groups(cases: Path, base: Played) -> None:
    path = cases / "base.h5"
    with h5py.File(path, "a") as file:
        file.move("exchange", "exchange1")
    assert same_as_base(Played(path), base)
    with h5py.File(path, "a") as file:
        file.copy("exchange1", "exchange2")
        file["exchange2/data"][:] = 7
    with pytest.raises(InputError, match=r"no /exchange/data but 2 others.*--set source\.data=/exchange1/data"):
        Played(path)
    assert same_as_base(Played(path, data="/exchange1/data"), base)


# axes


@pytest.mark.parametrize(
    "axes", [["y", "theta", "x"], "y:theta:x", "Y, Theta, X", b"row:angle:col", "['slice', 'rotation_angle', 'column']"]
)
@pytest.mark.parametrize("chunks", [None, (1, 64, 64), (8, 8, 8)])
@pytest.mark.parametrize("order", ["sequential", "golden-angle"])
def test_sinogram_order_that_is_said_is_transposed(cases: Path, axes: Any, chunks: Any, order: str) -> None:
    path = cases / "sinograms.h5"
    with h5py.File(path, "a") as file:
        stored = file["exchange/data"][:]
        del file["exchange/data"]
        file.create_dataset("exchange/data", data=stored, chunks=chunks)
        text = np.array(axes, dtype=h5py.string_dtype()) if isinstance(axes, list) else axes
        file["exchange/data"].attrs["axes"] = text
    played = Played(path, order=order)
    place = (played.deg / 2.8125).round().astype(int)
    np.testing.assert_array_equal(played.pixels(), stored.transpose(1, 0, 2)[place])
    assert played.codes == []


def test_the_case_with_nexus_axes(cases: Path) -> None:
    played = Played(cases / "sinograms-said.h5")
    with h5py.File(cases / "sinograms.h5") as file:
        np.testing.assert_array_equal(played.pixels(), file["exchange/data"][:].transpose(1, 0, 2))


def test_images_on_their_side_are_turned(cases: Path, base: Played) -> None:
    path = changed(cases / "base.h5", data=base.pixels().transpose(0, 2, 1))
    with h5py.File(path, "a") as file:
        file["exchange/data"].attrs["axes"] = "theta:x:y"
    assert same_as_base(Played(path), base)


@pytest.mark.parametrize("flats", ["image, row, column", "like the projections"])
def test_the_user_may_say_the_axes(cases: Path, flats: str) -> None:
    said, silent = Played(cases / "sinograms-said.h5"), cases / "sinograms.h5"
    if flats == "like the projections":
        silent = changed(
            silent, data_white=np.full((64, 5, 64), 20100, "u2"), data_dark=np.full((64, 5, 64), 100, "u2")
        )
    played = Played(silent, axes="y:theta:x", projections=[0, 64])
    np.testing.assert_array_equal(played.pixels(), said.pixels())
    with pytest.raises(ConfigError, match=r"axes = 'y:x', expected theta, y and x in any order, such as y:theta:x"):
        Played(silent, axes="y:x")


def test_axes_nobody_knows_are_said(cases: Path, base: Played) -> None:
    path = cases / "base.h5"
    with h5py.File(path, "a") as file:
        file["exchange/data"].attrs["axes"] = "foo:bar:baz"
    played = Played(path)
    assert same_as_base(played, base)
    assert played.codes == ["axes-unknown"]


# calibration


def positions(played: Played, kind: FrameKind) -> list[float]:
    return [frame.position for frame in played.of(kind)]


def test_flats_before_and_after_say_where_they_belong(cases: Path) -> None:
    played = Played(cases / "flats-two-sets.h5")
    assert positions(played, FrameKind.FLAT) == [0.0] * 5 + [90.0] * 5
    assert played.pixels(FrameKind.FLAT)[[0, 9], 0, 0].tolist() == [20100, 16100]
    assert [frame.index for frame in played.of(FrameKind.FLAT)] == list(range(10))
    for order in ("sequential", "golden-angle"):
        shuffled = Played(cases / "flats-two-sets.h5", order=order)
        np.testing.assert_allclose(positions(shuffled, FrameKind.PROJECTION), shuffled.deg / 2, atol=1e-9)


def test_flats_under_other_names_and_between(cases: Path) -> None:
    path = cases / "flats-two-sets.h5"
    with h5py.File(path, "a") as file:
        file["exchange/middle"] = np.full((3, 4, 64), 18100, "u2")
        file["exchange/dark_after"] = np.full((4, 64), 100, "u2")
    names = ["/exchange/data_white_pre", "/exchange/middle", "/exchange/data_white_post"]
    with pytest.raises(ConfigError, match=r"flats_at = \[0\], expected 3 numbers from 0 to 90"):
        Played(path, flats=names, flats_at=[0])
    played = Played(path, flats=names, flats_at=[0, 45, 90])
    assert positions(played, FrameKind.FLAT) == [0.0] * 5 + [45.0] * 3 + [90.0] * 5
    two = Played(path, flats=names[::2])
    assert positions(two, FrameKind.FLAT) == [0.0] * 5 + [90.0] * 5
    darks = Played(path, darks=["/exchange/data_dark", "/exchange/dark_after"])
    assert positions(darks, FrameKind.DARK) == [0.0] * 5 + [90.0]


def test_sets_whose_place_nobody_says_are_refused(cases: Path) -> None:
    path = cases / "base.h5"
    with h5py.File(path, "a") as file:
        for k in range(3):
            file[f"exchange/flat{k}"] = np.full((1, 4, 64), 20100, "u2")
    names = [f"/exchange/flat{k}" for k in range(3)]
    with pytest.raises(ConfigError, match=r"flats has 3 sets.*source\.flats_at=\[0, …, 90\]"):
        Played(path, flats=names)
    assert positions(Played(path, flats=names, flats_at=[0, 30, 90]), FrameKind.FLAT) == [0.0, 30.0, 90.0]


def test_flats_from_another_file(cases: Path, base: Played) -> None:
    path = changed(cases / "base.h5", data_white=None)
    with h5py.File(cases / "flats.h5", "w") as file:
        file["entry/data"] = np.full((2, 4, 64), 20000, "u2")
    played = Played(path, flats="flats.h5:/entry/data")
    assert same_as_base(played, base)
    assert played.pixels(FrameKind.FLAT).shape == (2, 4, 64)
    assert Played(path, flats=f"{cases / 'flats.h5'}:/entry/data").scan.flats == 2
    with pytest.raises(InputError, match=r"none\.h5: no such file"):
        Played(path, flats="none.h5:/entry/data")


def test_one_flat_image_and_a_dark_level(cases: Path, base: Played) -> None:
    played = Played(cases / "flat-2d.h5")
    np.testing.assert_array_equal(played.pixels(), base.pixels())
    assert (played.scan.flats, played.scan.darks) == (1, 1)
    assert played.pixels(FrameKind.FLAT)[0].tolist() == np.full((4, 64), 20100).tolist()
    scalar = Played(changed(cases / "flat-2d.h5", data_dark=np.uint16(100), data_white=[20100.0]))
    assert scalar.scan.dtype == "<u2"
    assert scalar.pixels(FrameKind.DARK).tolist() == np.full((1, 4, 64), 100).tolist()
    assert scalar.pixels(FrameKind.FLAT).tolist() == np.full((1, 4, 64), 20100).tolist()


def test_a_set_that_the_user_names_must_be_there(cases: Path) -> None:
    with pytest.raises(InputError, match="flats are missing: no images in /exchange/none"):
        Played(cases / "base.h5", flats=["/exchange/data_white", "/exchange/none"])


# pixels


def test_signed_counts_are_refused_or_read_as_unsigned(cases: Path) -> None:
    path = cases / "signed.h5"
    with pytest.raises(InputError, match=r"int16.*negative, expected counts.*source\.unsigned=true.*unsigned=false"):
        Played(path)
    with h5py.File(path) as file:
        data, flats = file["exchange/data"][:].view("u2"), file["exchange/data_white"][:].view("u2")
    unsigned = Played(path, unsigned=True)
    np.testing.assert_array_equal(unsigned.pixels(), data)
    np.testing.assert_array_equal(unsigned.pixels(FrameKind.FLAT), flats)
    assert unsigned.scan.dtype == "<u2"
    np.testing.assert_array_equal(Played(path, unsigned=False).pixels(), data.view("i2"))


@pytest.mark.parametrize("dtype", [">i2", "i4", "i1"])
def test_signed_counts_of_other_types(cases: Path, base: Played, dtype: str) -> None:
    size = np.dtype(dtype).itemsize
    unsigned = np.full((90, 4, 64), 2 ** (8 * size) - 50, f"u{size}")
    path = changed(cases / "base.h5", **{
        name: unsigned[:count].view(f"i{size}").astype(dtype)
        for name, count in (("data", 90), ("data_white", 2), ("data_dark", 2))
    })  # fmt: skip
    with pytest.raises(InputError, match="negative, expected counts"):
        Played(path)
    np.testing.assert_array_equal(Played(path, unsigned=True).pixels(), unsigned)


def test_parts_of_the_detector_and_binning(cases: Path, base: Played) -> None:
    played = Played(cases / "base.h5", rows=[1, 4], cols=[10, 51], projections=[10, 80], every=3, binning=2)
    expected = base.pixels()[10:80:3, 1:3, 10:50].reshape(-1, 1, 2, 20, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(played.pixels(), expected)
    assert (played.scan.rows, played.scan.cols, played.scan.dtype) == (1, 20, "<f4")
    assert played.scan.axis_col == pytest.approx((31.5 - 10 + 0.5) / 2 - 0.5)
    named = Played(cases / "base.h5", cols=[10, 51], axis=30.0, pixel_size_um=2.0, binning=2)
    assert named.scan.axis_col == pytest.approx(9.75)
    assert named.scan.pixel_size_um == 4.0
    assert np.shares_memory(*[frame.pixels for frame in named.frames[:2]]) is False


@pytest.mark.parametrize(
    ("options", "message"), [({"binning": 5}, "binning = 5 .* 4 rows"), ({"cols": [0, 65]}, "cols")]
)
def test_wrong_parts_are_named(cases: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Played(cases / "base.h5", **options)


# how the pixels are stored


@pytest.mark.parametrize("chunks", [(90, 1, 64), (90, 4, 64), (7, 2, 10), (1, 4, 64)])
@pytest.mark.parametrize("order", ["sequential", "interlaced", "golden-angle"])
def test_every_chunk_is_unpacked_twice_at_most(
    cases: Path, base: Played, monkeypatch: pytest.MonkeyPatch, chunks: tuple[int, ...], order: str
) -> None:
    from ministream.source._hdf5.stack import Stack

    path = changed(cases / "base.h5", data=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("exchange/data", data=base.pixels(), chunks=chunks, compression="gzip")
    visits = np.zeros(90, dtype=int)
    read = Stack.read

    def counted(self: Stack, target: np.ndarray, first: int, rows: Any) -> None:
        if self.count == 90:
            chunk = np.unique(np.arange(first, first + len(target)) // chunks[0])
            visits[chunk] += 1
        read(self, target, first, rows)

    monkeypatch.setattr(Stack, "read", counted)
    played = Played(path, order=order)
    np.testing.assert_array_equal(played.pixels(), base.pixels()[(played.deg / 2).round().astype(int)])
    assert visits.max() <= 2


def test_a_file_that_shrinks_while_it_is_read_is_an_error(cases: Path) -> None:
    path = cases / "base.h5"
    with open_source(config.SourceSection(kind="dxchange", file=str(path)), order="sequential", repeat=1) as source:
        frames = source.frames()
        for _ in range(12):
            next(frames)
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(InputError, match=r"the file shrank from \d+ to \d+ bytes while it was read"):
            list(frames)


def test_a_file_that_changes_while_it_is_read_is_an_error(cases: Path) -> None:
    path = cases / "virtual.h5"
    with open_source(config.SourceSection(kind="dxchange", file=str(path)), order="sequential", repeat=1) as source:
        frames = source.frames()
        next(frames)
        with (cases / "virtual-raw1.h5").open("ab") as file:
            file.write(b"more")
        with pytest.raises(InputError, match=r"virtual-raw1\.h5: the file changed while it was read"):
            list(frames)


def test_nxtomo_is_not_taken_for_dxchange(cases: Path) -> None:
    with pytest.raises(InputError, match=r"missing.*--set source.kind=nxtomo"):
        Played(cases / "scan.nxs")
    with pytest.raises(InputError, match=r"image_key says .*Read the file with --set source.kind=nxtomo"):
        Played(cases / "scan.nxs", data="/entry1/tomo_entry/data/data")
