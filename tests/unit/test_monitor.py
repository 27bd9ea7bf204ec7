"""Clocks, latency, rate, summary and progress, on a clock that the test turns."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from ministream.errors import StorageError
from ministream.ledger import Ledger
from ministream.monitor import Latency, Progress, Rate, StageClock, Summary, peak_memory_mib, render
from ministream.state import bare


class Hand:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_stages_add_up_and_an_inner_stage_counts_once():
    hand = Hand()
    clock = StageClock(hand)
    for _ in range(2):
        with clock.timed("sirt"):
            hand.now += 3
            with clock.timed("write"):
                hand.now += 1
            hand.now += 2
        hand.now += 50  # outside every stage
    assert clock.seconds() == {"sirt": 10.0, "write": 2.0}


def test_a_stage_that_fails_is_charged_too():
    hand = Hand()
    clock = StageClock(hand)
    with pytest.raises(ValueError, match="x"), clock.timed("prep"):
        hand.now += 1
        raise ValueError("x")
    with clock.timed("sirt"):
        hand.now += 2
    assert clock.seconds() == {"prep": 1.0, "sirt": 2.0}


def test_seconds_measured_elsewhere_are_taken_from_the_stage_around():
    hand = Hand()
    clock = StageClock(hand)
    with clock.timed("sirt"):
        hand.now += 5
        clock.add("forward", 2.0)
    clock.add("forward", 1.0)
    assert clock.seconds() == {"forward": 3.0, "sirt": 3.0}


def test_percentiles_are_right_to_half_a_percent():
    seconds = np.random.default_rng(5).lognormal(-2, 1.5, 20001)
    latency = Latency()
    for value in seconds:
        latency.record(float(value))
    for percent in (50, 90, 99):
        exact = np.sort(seconds)[int(np.ceil(len(seconds) * percent / 100)) - 1]
        assert latency.percentile(percent) == pytest.approx(exact, rel=0.0051)
    assert latency.count == 20001


def test_a_clock_that_runs_ahead_is_counted_and_the_histogram_can_be_taken_back():
    one, two = Latency(), Latency()
    assert one.percentile(50) is None
    one.record(1.0, projections=3)
    one.record(4.0)
    one.record(-0.2)
    two.restore(bare(one.state()))
    assert (two.count, two.negative) == (5, 1)
    assert two.percentile(50) == pytest.approx(1.0, rel=0.006)
    assert two.percentile(100) == pytest.approx(4.0, rel=0.006)


def test_extreme_latencies_stay_in_the_histogram():
    latency = Latency()
    latency.record(0.0)
    latency.record(1e12)
    assert latency.count == 2
    assert latency.percentile(1) < 2e-6
    assert latency.percentile(100) > 1e5


def test_the_rate_follows_the_last_seconds():
    hand = Hand()
    rate = Rate(over_s=5, clock=hand)
    assert rate.per_s == 0
    total = 0
    for per_s in (10, 40):
        for _ in range(200):
            hand.now += 0.1
            total += per_s // 10
            rate.update(total)
        assert rate.per_s == pytest.approx(per_s, rel=0.03)
    hand.now += 5
    assert rate.per_s == pytest.approx(20, rel=0.05)  # nothing for five seconds
    assert len(rate._marks) <= 80


def test_peak_memory_grows_with_an_array():
    before = peak_memory_mib()
    held = np.ones(int(before) * 2**20 // 8 + 2**23)
    assert peak_memory_mib() >= held.nbytes / 2**20


def test_the_memory_of_whoever_started_a_program_does_not_count():
    held = np.ones(2**26)
    code = "from ministream.monitor import peak_memory_mib; print(peak_memory_mib())"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(told.stdout) < held.nbytes / 2**20 < peak_memory_mib()


def test_the_summary_says_what_writing_took():
    told = shown(render(summary(stages={"write": 1.25}, write_hidden_s=3.5)))
    assert "parallel HDF5; 3.50 s hidden, 1.25 s waited for" in told


def summary(**changes):
    known = {
        "scan_id": "s-7",
        "version": "0.1.0",
        "complete": True,
        "ending": "the producer's END",
        "ledger": Ledger(received=181, used=180, imaged=180, written=180, refusals={"projection": {"NaN": 1}}),
        "announced": Ledger(delivered=181, sent=181),
        "updates": 4,
        "seconds": 12.5,
        "projections_per_s": 14.4,
        "latency_s": {"p50": 0.25, "p99": 1.5},
        "ranks": 2,
        "threads": 1,
        "tunnel": {"kind": "relay", "cipher": "TLS_AES_256_GCM_SHA384", "inward": 1024, "outward": 3 << 20},
        "bytes": 3 << 20,
        "stages": {"sirt": 9.0, "write": 1.0},
        "quality": {"ssim": 0.93, "psnr": 31.2},
        "residuals": [4.0, 1.0],
        "peak_memory_mib": [200.0, 180.0],
        "storage": "parallel HDF5",
        "files": ["recon.h5"],
    }
    return Summary(**(known | changes))


def test_the_summary_has_the_promised_keys(tmp_path):
    path = tmp_path / "summary.json"
    summary().write(path)
    written = json.loads(path.read_text())
    assert {"sent", "received", "used", "dropped", "refused"} <= written["projections"].keys()
    promised = {
        "complete",
        "seconds",
        "projections_per_s",
        "latency_s",
        "ranks",
        "threads",
        "tunnel",
        "bytes",
        "stages",
    }
    assert promised <= written.keys()
    assert written["projections"]["refused"] == 1
    assert written["refused_reasons"] == {"projection": {"NaN": 1}}
    assert written["latency_s"] == {"p50": 0.25, "p99": 1.5}
    assert written["tunnel"] == summary().tunnel
    assert written["quality"] == {"ssim": 0.93, "psnr": 31.2}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_the_table_says_what_the_tunnel_carried():
    assert "relay, TLS_AES_256_GCM_SHA384, 3.0 MiB" in shown(render(summary()))
    assert "gone" in shown(render(summary(tunnel={"kind": "gone"})))


def test_the_cause_of_an_incomplete_volume_is_the_first_one():
    lost = summary(
        announced=None, ending="connection lost after 56 frames", missing=("no END", "3 received but not used")
    )
    assert lost.cause == "connection lost after 56 frames; 3 received but not used"
    refused = summary(ending="the producer sent all of its 181 projections", missing=("1 projection refused (NaN)",))
    assert refused.cause == "1 projection refused (NaN)"


def test_json_gets_null_where_it_has_no_number(tmp_path):
    path = tmp_path / "summary.json"
    summary(quality={"ssim": 1.0, "psnr": float("inf")}, latency_s={"p50": None, "p99": None}).write(path)
    written = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert written["quality"]["psnr"] is None
    assert written["latency_s"]["p50"] is None


def test_a_summary_that_cannot_be_written_names_its_file(tmp_path):
    with pytest.raises(StorageError, match=r"nowhere/summary\.json: cannot be written"):
        summary().write(tmp_path / "nowhere" / "summary.json")


def shown(table):
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return console.file.getvalue()


def test_the_table_shows_the_numbers_and_only_what_is_known():
    text = shown(render(summary()))
    for expected in (
        "complete",
        "181 sent",
        "180 used",
        "1 refused",
        "projection: NaN: 1",
        "250 ms median",
        "relay",
        "SSIM 0.9300",
    ):
        assert expected in text
    assert "dropped" not in text
    cut_off = shown(render(summary(complete=False, announced=None, ledger=Ledger(received=56, used=56))))
    assert "56 received, 56 used" in cut_off
    assert "sent" not in cut_off
    bare = shown(render(summary(complete=False, quality=None, latency_s={"p50": None, "p99": None}, tunnel=None)))
    assert "incomplete" in bare
    assert "quality" not in bare
    assert "latency" not in bare


def lines(console):
    return console.file.getvalue().splitlines()


def test_without_a_terminal_a_line_per_update_at_most_one_per_second():
    hand, console = Hand(), Console(file=io.StringIO(), width=200)
    progress = Progress(100, console, clock=hand)
    progress.update(used=0, received=4, updates=0)
    assert lines(console) == []  # no update of the image yet
    for update in range(1, 31):
        hand.now += 0.1
        progress.update(used=3 * update, received=3 * update + 2, updates=update, behind_s=0.7)
    assert 2 <= len(lines(console)) <= 4
    progress.close()
    last = lines(console)[-1]
    assert "projections 90/100" in last
    assert "lag 2 projections (0.7 s)" in last
    assert "update 30" in last
    progress.close()
    assert lines(console)[-1] == last


def test_on_a_terminal_there_is_a_bar():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    progress = Progress(0, console)
    progress.update(used=5, received=6, updates=1)
    progress.close()
    text = console.file.getvalue()
    assert "lag 1 projections" in text
    assert "\x1b[" in text
