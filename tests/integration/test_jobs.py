"""Both jobs from the outside: two process trees that share nothing but the network."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from ministream import registry
from tests.integration.jobs import MINISTREAM, Lab, alive, lab
from tests.ports import free_ports

SMALL = ["source.rows=6", "source.cols=48", "source.projections=40", "source.seed=3"]
LONG = ["--repeat", "30", "--rate", "20"]  # a minute: whatever a test does, the scan is still going on
EVERYWHERE = ("delivered", "sent", "received", "used", "imaged", "written")
EVERY_ONE_USED = dict.fromkeys(EVERYWHERE, 40) | dict.fromkeys(("dropped", "refused", "repeated", "mended"), 0)
WINDOW = ["--window-length", "20", "--window-step", "10", "--window-iter", "3", "--write-freq", "2"]


def small(*more: str) -> list[str]:
    return [part for setting in (*SMALL, *more) for part in ("--set", setting)]


def wait_for_snapshot(jobs: Lab, reconstruction) -> None:
    """Return when the first image has been written: the job is in the middle of its scan."""
    reconstruction.until(lambda: list(jobs.out.glob("0*-recon.h5")))


def run_directly(jobs: Lab, ranks: int, produce=(), recon=(), *, pictures=False) -> tuple[int, int]:
    """Exit codes of producer and reconstruction, joined without a tunnel."""
    producer = jobs.produce(*small(), *produce)
    address = jobs.announced("producer", producer)["data"]
    reconstruction = jobs.recon(ranks, "--connect", address, *WINDOW, *recon, pictures=pictures)
    return producer.wait(), reconstruction.wait()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_scan_becomes_a_volume(jobs, ranks):
    assert run_directly(jobs, ranks, pictures=True) == (0, 0), jobs.jobs[-1].text
    summary = jobs.summary()
    assert summary["complete"]
    assert summary["ranks"] == ranks
    assert summary["projections"] == EVERY_ONE_USED
    assert summary["updates"] == 4
    assert 0 < summary["latency_s"]["p50"] <= summary["latency_s"]["p99"] < 60
    assert summary["quality"]["ssim"] > 0.5
    assert set(summary["stages"]) >= {"receive", "scatter", "prep", "forward", "back", "write", "idle"}
    names = sorted(path.name for path in jobs.out.iterdir())
    pictures = ["orthogonal.png", "over-time.png", "truth.png"]
    assert names == sorted(["000002-recon.h5", "000004-recon.h5", "recon.h5", "summary.json", *pictures])
    with h5py.File(jobs.out / "recon.h5") as file:
        data = file["data"]
        assert data.shape == (6, 48, 48)
        assert data.attrs["units"] == "1/cm"
        assert file.attrs["complete"]
        assert json.loads(file.attrs["config"])["window"]["step"] == 10
        assert np.isfinite(data[:]).all()


@pytest.mark.parametrize("algorithm", registry.names("ministream.recon.algorithms"))
def test_every_algorithm_runs_in_a_job(jobs, algorithm):
    assert run_directly(jobs, 1, recon=["--algorithm", algorithm]) == (0, 0), jobs.jobs[-1].text
    assert jobs.summary()["quality"]["correlation"] > 0.5


def test_the_volume_does_not_depend_on_the_ranks(tmp_path):
    """With corrections of projections and of sinograms; the file says which, and their parameters."""
    volumes = []
    corrections = ["--set", "prep.zingers={}", "--set", "prep.air.width=3", "--remove-stripe-method", "sf"]
    for ranks in (1, 2, 3, 4):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        with lab(folder) as jobs:
            assert run_directly(jobs, ranks, recon=corrections) == (0, 0), jobs.jobs[-1].text
            with h5py.File(jobs.out / "recon.h5") as file:
                volumes.append(file["data"][:])
                prep = json.loads(file.attrs["config"])["prep"]
            assert sorted(prep["steps"]) == ["air", "sf", "zingers"]
            assert (prep["air"], prep["sf"]) == ({"width": 3}, {"size": 5})
    for volume in volumes[1:]:
        assert np.linalg.norm(volume - volumes[0]) <= 1e-5 * np.linalg.norm(volumes[0])


def test_the_axis_is_found_in_the_projections(tmp_path):
    columns = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        with lab(folder) as jobs:
            sample = small("source.axis=21.4", "source.projections=90", "source.sample=foam")
            producer = jobs.produce(*sample)
            address = jobs.announced("producer", producer)["data"]
            window = ["--window-length", "90", "--window-step", "45", "--window-iter", "3"]
            reconstruction = jobs.recon(ranks, "--connect", address, "--axis", "auto", *window)
            assert (producer.wait(), reconstruction.wait()) == (0, 0), reconstruction.text
            summary = jobs.summary()
            assert summary["updates"] == 1
            assert summary["axis"]["axis_col"] == pytest.approx(21.4, abs=0.1)
            with h5py.File(jobs.out / "recon.h5") as file:
                assert file["data"].attrs["axis_col"] == summary["axis"]["axis_col"]
                assert file["data"].attrs["axis_method"] in ("seam", "half turn")
            columns.append(summary["axis"]["axis_col"])
    assert columns[0] == pytest.approx(columns[1], abs=0.011)


def test_projections_that_leave_the_window_before_the_axis_is_found_are_missing(tmp_path):
    sample = [word for key in ("source.axis=21.4", "source.projections=90") for word in ("--set", key)]

    def ran(name: str, *options: str) -> tuple[int, dict, str]:
        folder = tmp_path / name
        folder.mkdir()
        with lab(folder) as jobs:
            recon = ["--window-length", "30", "--window-step", "10", *options]
            code = run_directly(jobs, 2, produce=sample, recon=recon)[1]
            return code, jobs.summary(), jobs.jobs[-1].text

    code, summary, text = ran("short", "--axis", "auto")
    assert code == 3, text
    assert summary["projections"]["imaged"] == 30
    assert "60 used but not in the written volume" in text
    (late,) = [warning for warning in summary["warnings"] if warning["code"] == "axis-late"]
    length, axis = re.findall(r"window\.length = (\d+) .* --axis ([0-9.]+)\.$", late["text"])[0]
    for name, remedy in {"longer": ["--window-length", length, "--axis", "auto"], "given": ["--axis", axis]}.items():
        code, summary, text = ran(name, *remedy)
        assert code == 0, text
        assert summary["projections"]["imaged"] == 90


def test_an_axis_that_the_projections_do_not_tell_is_asked_for(jobs):
    code = run_directly(jobs, 2, produce=["--set", "source.range_deg=90"], recon=["--axis", "auto"])[1]
    assert code == 2
    assert "the rotation axis cannot be found" in jobs.jobs[-1].text
    assert "Give it with --axis COLUMN" in jobs.jobs[-1].text
    assert "Traceback" not in jobs.jobs[-1].text


def test_the_volume_does_not_depend_on_how_many_ranks_receive(tmp_path):
    volumes = []
    for ingress in (1, 2, 3):
        folder = tmp_path / str(ingress)
        folder.mkdir()
        with lab(folder) as jobs:
            assert run_directly(jobs, 4, recon=["--ingress", str(ingress)]) == (0, 0), jobs.jobs[-1].text
            summary = jobs.summary()
            assert summary["complete"]
            assert summary["projections"] == EVERY_ONE_USED
            assert summary["bytes"] == (40 + 10 + 10) * 6 * 48 * 2
            with h5py.File(jobs.out / "recon.h5") as file:
                volumes.append(file["data"][:])
    for volume in volumes[1:]:
        np.testing.assert_array_equal(volume, volumes[0])


def test_a_signal_ends_all_that_receive_in_order(jobs):
    producer = jobs.produce(*small(), *LONG)
    address = jobs.announced("producer", producer)["data"]
    reconstruction = jobs.recon(3, "--connect", address, "--ingress", "2", *WINDOW)
    wait_for_snapshot(jobs, reconstruction)
    reconstruction.signal(signal.SIGUSR1)
    assert reconstruction.wait() == 3, reconstruction.text
    assert "SIGUSR1" in jobs.summary()["ending"]
    assert producer.wait() != 0


@pytest.mark.parametrize(
    ("rows", "ranks", "options", "problem"),
    [
        (6, 2, ["--ingress", "3"], "--ingress 3: 2 ranks cannot have so many that receive: at most 2"),
        (2, 3, ["--ingress", "2"], "3 ranks cannot share 2 detector rows: start at most 2"),
        (6, 2, ["--ingress", "2", "--source-wire", "tracemq"], "leave out ingress"),
    ],
)
def test_bands_that_cannot_be_are_refused(jobs, rows, ranks, options, problem):
    producer = jobs.produce(*small(f"source.rows={rows}"))
    address = jobs.announced("producer", producer)["data"]
    reconstruction = jobs.recon(ranks, "--connect", address, *WINDOW, *options)
    assert reconstruction.wait() == 2
    assert_one_line(reconstruction, problem)
    producer.signal(signal.SIGTERM)


@pytest.fixture
def credentials(tmp_path):
    folder = tmp_path / "credentials"
    subprocess.run([*MINISTREAM, "certs", "init", str(folder)], check=True, capture_output=True)
    return ["--credentials", str(folder)]


def through_the_tunnel(jobs, credentials, ranks=2, produce=(), recon=()):
    """Start both jobs and join them with `ministream connect`; returns both."""
    producer = jobs.produce(*small(), *produce, "--control", "127.0.0.1:0", *credentials)
    reconstruction = jobs.recon(ranks, "--control", "127.0.0.1:0", *credentials, *WINDOW, *recon)
    prod = jobs.announced("producer", producer)["control"]
    cons = jobs.announced("recon", reconstruction)["control"]
    subprocess.run([*MINISTREAM, "connect", "--prod", prod, "--cons", cons, *credentials], check=True, timeout=60)
    return producer, reconstruction


def test_a_scan_crosses_the_tunnel(jobs, credentials):
    producer, reconstruction = through_the_tunnel(jobs, credentials)
    assert (producer.wait(), reconstruction.wait()) == (0, 0), reconstruction.text
    summary = jobs.summary()
    assert summary["complete"]
    assert summary["tunnel"]["kind"] == "relay"
    assert "TLS" in summary["tunnel"]["cipher"]


def test_connect_waits_for_jobs_that_are_still_starting(jobs, credentials):
    first = free_ports(2)
    ports = [f"127.0.0.1:{first}", f"127.0.0.1:{first + 1}"]
    addresses = ["--prod", ports[0], "--cons", ports[1]]
    refused = subprocess.run([*MINISTREAM, "connect", *addresses, *credentials], check=False, capture_output=True)
    assert refused.returncode == 4
    connecting = jobs.start("connect", [*MINISTREAM, "connect", *addresses, *credentials, "--wait", "60"])
    producer = jobs.produce(*small(), "--control", ports[0], *credentials)
    reconstruction = jobs.recon(2, "--control", ports[1], *credentials, *WINDOW)
    assert connecting.wait() == 0, connecting.text
    assert (producer.wait(), reconstruction.wait()) == (0, 0), reconstruction.text


def test_the_reconstruction_opens_the_tunnel_by_itself(jobs, credentials):
    producer = jobs.produce(*small(), "--control", "127.0.0.1:0", *credentials)
    control = jobs.announced("producer", producer)["control"]
    reconstruction = jobs.recon(2, "--producer", control, *credentials, *WINDOW)
    assert (producer.wait(), reconstruction.wait()) == (0, 0), reconstruction.text
    assert "TLS" in jobs.summary()["tunnel"]["cipher"]


def test_several_ranks_receive_through_a_tunnel_that_the_reconstruction_opens(jobs, credentials):
    producer = jobs.produce(*small(), "--control", "127.0.0.1:0", *credentials)
    control = jobs.announced("producer", producer)["control"]
    reconstruction = jobs.recon(3, "--producer", control, "--ingress", "2", *credentials, *WINDOW)
    assert (producer.wait(), reconstruction.wait()) == (0, 0), reconstruction.text
    assert jobs.summary()["complete"]
    assert "2 connections" in reconstruction.text


def test_several_ranks_receive_by_way_of_gateways_that_stand_alone(jobs, credentials):
    producer = jobs.produce(*small())
    address = jobs.announced("producer", producer)["data"]
    sides = {}
    for side in ("PROD", "CONS"):
        announce = ["--announce", str(jobs.folder / f"{side}.json")]
        target = ["--target", address.removeprefix("tcp://")] if side == "PROD" else []
        command = [*MINISTREAM, "s2cs", "--listen", "127.0.0.1:0", "--side", side, *credentials, *target, *announce]
        sides[side] = jobs.start(side, command)
    prod, cons = (jobs.announced(side, job)["control"] for side, job in sides.items())
    connect = [*MINISTREAM, "connect", "--prod", prod, "--cons", cons, *credentials, "--num-conn", "2", "--json"]
    opened = json.loads(subprocess.run(connect, check=True, capture_output=True, timeout=60).stdout)
    urls = ",".join(f"tcp://{listener}" for listener in opened["cons_listeners"])
    reconstruction = jobs.recon(3, "--connect", urls, "--ingress", "2", *WINDOW)
    assert (producer.wait(), reconstruction.wait()) == (0, 0), reconstruction.text
    assert jobs.summary()["complete"]
    for gateway in sides.values():
        gateway.signal(signal.SIGTERM)


def relays_of(job) -> list[int]:
    """Pids of the relay processes in a job's tree."""
    return [pid for pid in alive(job.process.pid) if b"_relay_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize("side", ["producer", "recon"])
def test_killed_relays_are_restarted_and_the_scan_is_complete(jobs, credentials, side):
    producer, reconstruction = through_the_tunnel(jobs, credentials, produce=["--repeat", "6", "--rate", "20"])
    job = producer if side == "producer" else reconstruction
    wait_for_snapshot(jobs, reconstruction)
    relays = relays_of(job)
    assert relays
    for pid in relays:
        os.kill(pid, signal.SIGKILL)
    assert (reconstruction.wait(), producer.wait()) == (0, 0), reconstruction.text + producer.text
    assert jobs.summary()["complete"]
    assert jobs.summary()["projections"]["used"] == 240
    assert "was killed by SIGKILL; restarting it" in job.text


def test_a_terminated_producer_says_so_through_its_gateway(jobs, credentials):
    producer, reconstruction = through_the_tunnel(jobs, credentials, produce=LONG)
    wait_for_snapshot(jobs, reconstruction)
    producer.signal(signal.SIGTERM)
    assert producer.wait() != 0
    assert reconstruction.wait() == 3, reconstruction.text
    assert "the producer" in jobs.summary()["ending"]


def test_a_producer_that_dies_leaves_an_incomplete_volume(jobs):
    producer = jobs.produce(*small(), *LONG)
    address = jobs.announced("producer", producer)["data"]
    reconstruction = jobs.recon(2, "--connect", address, *WINDOW, "--outage-timeout", "2")
    wait_for_snapshot(jobs, reconstruction)
    producer.signal(signal.SIGKILL)
    assert producer.wait() == -signal.SIGKILL
    assert reconstruction.wait() == 3
    summary = jobs.summary()
    assert not summary["complete"]
    assert 20 <= summary["projections"]["used"] < 1200
    with h5py.File(jobs.out / "recon.h5") as file:
        assert not file.attrs["complete"]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_ends_the_job_in_order(jobs, number):
    producer = jobs.produce(*small(), *LONG)
    address = jobs.announced("producer", producer)["data"]
    reconstruction = jobs.recon(1, "--connect", address, *WINDOW)
    wait_for_snapshot(jobs, reconstruction)
    reconstruction.signal(number)
    assert reconstruction.wait() == 3, reconstruction.text
    assert number.name in jobs.summary()["ending"]
    assert producer.wait() != 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_while_starting_ends_the_job_in_order(jobs, ranks):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        connect = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        reconstruction = jobs.recon(ranks, "--connect", connect)
        silent.accept()[0].close()  # it has started to connect
        pids = [
            pid for pid in alive(reconstruction.process.pid) if b"recon" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        for pid in pids:
            os.kill(pid, signal.SIGUSR1)
        assert reconstruction.wait() == 3, reconstruction.text
    assert_one_line(reconstruction, "stopped by SIGUSR1 before the scan began")


def test_the_producer_gives_up_on_an_absent_receiver(jobs):
    producer = jobs.produce(*small(), "--set", "producer.peer_timeout_s=1.0")
    assert producer.wait() == 4
    assert_one_line(producer, "receiver")


def test_the_receiver_gives_up_on_an_absent_producer(jobs):
    nobody = f"tcp://127.0.0.1:{free_ports(1)}"
    reconstruction = jobs.recon(2, "--connect", nobody, "--set", "stream.connect_timeout_s=1.0")
    assert reconstruction.wait() == 4, reconstruction.text
    assert_one_line(reconstruction, "producer")


def assert_one_line(job, *words):
    """The job says what is wrong in one line, without a traceback."""
    lines = [line for line in job.text.splitlines() if line.startswith("ministream: ")]
    assert len(lines) == 1, job.text
    assert all(word in lines[0] for word in words), lines
    assert "Traceback" not in job.text


def test_more_ranks_than_rows(jobs):
    producer = jobs.produce("--set", "source.rows=2", "--set", "source.cols=32", "--set", "source.projections=8")
    address = jobs.announced("producer", producer)["data"]
    reconstruction = jobs.recon(3, "--connect", address)
    assert reconstruction.wait() == 2, reconstruction.text
    assert_one_line(reconstruction, "3 ranks", "2 detector rows")
    producer.signal(signal.SIGTERM)
    assert producer.wait() != 0


def test_wrong_options_are_refused_before_anything_starts(jobs, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[window]\nlenght = 3\n")
    for job in (jobs.produce(str(path)), jobs.recon(2, str(path))):
        assert job.wait() == 2
        assert_one_line(job, str(path), "did you mean length?")
    job = jobs.recon(1)
    assert job.wait() == 2
    assert_one_line(job, "--connect", "--control")


def test_a_port_in_use_is_named(jobs, credentials):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        producer = jobs.produce(*small(), "--listen", f"tcp://{address}")
        assert producer.wait() in (2, 4)
        assert_one_line(producer, address)
        producer = jobs.produce(*small(), "--control", address, *credentials)
        assert producer.wait() == 4
        assert_one_line(producer, address)


def test_garbage_on_the_data_port_disturbs_nobody(jobs):
    producer = jobs.produce(*small(), "--rate", "40")
    address = jobs.announced("producer", producer)["data"]
    host, port = address.removeprefix("tcp://").split(":")
    reconstruction = jobs.recon(2, "--connect", address, *WINDOW)
    rng = np.random.default_rng(0)
    for _ in range(20):
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(rng.bytes(4096))
        time.sleep(0.02)
    assert (producer.wait(), reconstruction.wait()) == (0, 0), producer.text
    assert jobs.summary()["complete"]


def test_a_bad_file_is_named(jobs, tmp_path):
    absent = jobs.produce("--file", str(tmp_path / "absent.h5"))
    assert absent.wait() == 2
    assert_one_line(absent, "absent.h5")
    broken = tmp_path / "broken.h5"
    broken.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    truncated = jobs.produce("--file", str(broken))
    assert truncated.wait() == 2
    assert_one_line(truncated, "broken.h5")


def test_the_tooth_agrees_with_tomopy(jobs, shared, tooth):
    producer = jobs.produce("--file", str(tooth))
    address = jobs.announced("producer", producer)["data"]
    window = ["--window-length", "181", "--window-step", "181", "--window-iter", "100"]
    reconstruction = jobs.recon(2, "--connect", address, "--axis", "295.5", *window)
    assert (producer.wait(), reconstruction.wait()) == (0, 0), reconstruction.text
    with h5py.File(jobs.out / "recon.h5") as ours, h5py.File(shared / "reference" / "tooth-sirt-100.h5") as theirs:
        image, reference = ours["data"][:], theirs["tomopy"][:]
    n = image.shape[1]
    offset = np.arange(n) - (n - 1) / 2
    inside = np.hypot(*np.meshgrid(offset, offset)) <= (n - 1) / 2
    for ours, theirs in zip(image[:, inside], reference[:, inside], strict=True):
        assert np.corrcoef(ours, theirs)[0, 1] >= 0.999
        assert abs(ours.mean() / theirs.mean() - 1) <= 0.005


def test_quality_is_followed_against_a_reference(jobs, tmp_path):
    assert run_directly(jobs, 2) == (0, 0), jobs.jobs[-1].text
    reference = tmp_path / "reference.h5"
    (jobs.out / "recon.h5").rename(reference)
    (tmp_path / "producer.json").unlink()
    assert run_directly(jobs, 2, recon=["--reference", str(reference)], pictures=True) == (0, 0), jobs.jobs[-1].text
    rows = (jobs.out / "quality.csv").read_text().splitlines()
    ssim = [float(row.split(",")[rows[0].split(",").index("ssim")]) for row in rows[1:]]
    assert len(ssim) == 4
    assert ssim[-1] > 0.9999 > ssim[0]
    assert (jobs.out / "quality.png").stat().st_size > 1000


def write_scan(path: Path, *, flat: float = 1000.0, bad: int | None = None) -> Path:
    """A small DXchange file of float32 counts; projection `bad` has a NaN."""
    rng = np.random.default_rng(1)
    data = (500 + 100 * rng.random((24, 4, 32))).astype(np.float32)
    if bad is not None:
        data[bad, 2, 5] = np.nan
    with h5py.File(path, "w") as file:
        file["exchange/data"] = data
        file["exchange/data_white"] = np.full((2, 4, 32), flat, np.float32)
        file["exchange/data_dark"] = np.zeros((2, 4, 32), np.float32)
        file["exchange/theta"] = np.linspace(0, 180, 24, endpoint=False)
    return path


def play(jobs: Lab, scan: Path, *recon: str) -> tuple[int, int]:
    """Exit codes of both jobs, two ranks, without a tunnel."""
    producer = jobs.produce("--file", str(scan))
    address = jobs.announced("producer", producer)["data"]
    reconstruction = jobs.recon(2, "--connect", address, *recon)
    return producer.wait(), reconstruction.wait()


def test_a_projection_with_nan_is_mended_and_counted(jobs, tmp_path):
    scan = write_scan(tmp_path / "scan.h5", bad=7)
    assert play(jobs, scan) == (0, 0), jobs.jobs[-1].text
    projections = jobs.summary()["projections"]
    assert (projections["sent"], projections["used"], projections["mended"], projections["refused"]) == (24, 24, 1, 0)
    assert jobs.summary()["repaired_pixels"] == 1
    with h5py.File(jobs.out / "recon.h5") as file:
        assert np.isfinite(file["data"][:]).all()
        assert file.attrs["projections_mended"] == 1


def test_a_flat_field_without_beam_is_an_error(jobs, tmp_path):
    scan = write_scan(tmp_path / "scan.h5", flat=0.0)
    produced, reconstructed = play(jobs, scan)
    assert produced != 0
    assert reconstructed == 2
    assert_one_line(jobs.jobs[-1], "flat field is not brighter")


def test_iterations_adapt_to_the_beam(jobs):
    produce = ["--rate", "40", "--repeat", "5"]
    assert run_directly(jobs, 2, produce, ["--budget", "adapt", "--window-iter", "30"]) == (0, 0), jobs.jobs[-1].text
    iterations = jobs.summary()["iterations"]
    assert iterations[0] == 1, "the first update measures"
    assert max(iterations) > 1
    assert max(iterations) <= 30


def test_a_residual_that_no_longer_falls_ends_the_update(jobs):
    recon = ["--window-iter", "500", "--set", "window.stop_change=0.05", "--set", "recon.non_negative=true"]
    assert run_directly(jobs, 2, recon=recon) == (0, 0), jobs.jobs[-1].text
    assert max(jobs.summary()["iterations"]) < 500
