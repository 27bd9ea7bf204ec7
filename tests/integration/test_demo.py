"""launch/demo.sh as a newcomer runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.waiting import HANG_S

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def ready() -> None:
    """The demo sets up by itself; a test must not change the environment that it runs in."""
    check = subprocess.run(["bash", "launch/setup.sh", "--check"], cwd=PROJECT, capture_output=True, check=False)
    if check.returncode != 0:
        pytest.skip("needs an environment made by launch/setup.sh")


@pytest.fixture
def mark() -> Iterator[str]:
    """An environment variable by which every process of a demo is found; none may be left."""
    mark = f"MINISTREAM_TEST_{uuid.uuid4().hex}"
    yield mark
    assert not marked(mark)


def marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if mark in process.environ() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def start(mark: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(PROJECT / "launch/demo.sh"), *arguments],
        cwd="/",
        env=os.environ | {mark: "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def demo(mark: str, *arguments: str) -> tuple[int, str]:
    process = start(mark, *arguments)
    output, _ = process.communicate(timeout=280)
    print(output)
    return process.returncode, output


@pytest.mark.slow
def test_the_simulated_scan_becomes_a_volume_and_pictures(mark: str, tmp_path: Path) -> None:
    run = tomllib.loads((PROJECT / "launch/demo.toml").read_text())
    projections, step = run["source"]["projections"], run["window"]["step"]
    code, output = demo(mark, "--out", str(tmp_path))
    assert code == 0
    assert str(tmp_path) in output
    assert not re.findall(r"^\S+ [WE] .*", output, re.MULTILINE)  # a healthy run warns of nothing
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["complete"]
    assert summary["projections"]["used"] == summary["projections"]["sent"] == projections
    assert summary["tunnel"]["kind"] == "relay"
    assert "TLSv1.3" in summary["tunnel"]["cipher"]
    assert summary["ranks"] == 2
    assert summary["quality"]["ssim"] >= 0.9
    assert len(list(tmp_path.glob("0*-recon.h5"))) == projections // step
    assert {path.name for path in tmp_path.iterdir()} >= {"recon.h5", "orthogonal.png", "over-time.png"}


@pytest.mark.slow
def test_a_recorded_scan_with_options_for_the_reconstruction(mark: str, tmp_path: Path, tooth: Path) -> None:
    out = tmp_path / "a folder"
    window = ["--window-length", "181", "--window-step", "181", "--window-iter", "3"]
    half = ("--set", "source.every=2")
    code, _ = demo(mark, str(tooth), "--axis", "295.5", "--out", str(out), "--ranks", "1", *half, "--", *window)
    assert code == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["projections"]["used"] == 91
    assert summary["ranks"] == 1
    assert len(list(out.glob("0*-recon.h5"))) == 1


@pytest.mark.slow
def test_an_interrupted_demo_leaves_no_process(mark: str, tmp_path: Path) -> None:
    process = start(mark, "--out", str(tmp_path), "--", "--window-iter", "1000")
    assert process.stdout is not None
    for line in process.stdout:
        if "sending from frame 0" in line:
            break
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=HANG_S)
    assert process.returncode != 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--axes", "3"], "demo.sh: unknown option --axes"),
        (["--out"], "demo.sh: --out needs a value"),
        (["one.h5", "two.h5"], "demo.sh: one scan at a time, not also two.h5"),
        (["/nowhere/scan.h5", "--out", "{tmp}"], "/nowhere/scan.h5: no such file"),
    ],
)
def test_a_wrong_argument_is_a_usage_error(mark: str, tmp_path: Path, arguments: list[str], message: str) -> None:
    code, output = demo(mark, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert code == 2
    assert message in output
    assert "Traceback" not in output
