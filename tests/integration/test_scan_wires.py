"""Odd scans on every wire, from its own sender into the reconstruction job: the gate acts whoever sends."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ministream import config
from ministream.errors import MinistreamError
from ministream.model import FrameKind
from ministream.transport import open_wire
from ministream.transport.tracemq import TraceMqServer
from ministream.wire.tracemq import Projection
from tests.integration.warm_jobs import Ran, WarmPair
from tests.odd_scans import ANGLES, DARK, DEGREES, FLAT, OddScan, Result, counts, good, line_integrals
from tests.waiting import HANG_S

INTEGRALS = line_integrals(DEGREES)
ITERATIONS = ["--window-iter", "60"]
WINDOW = ["--window-length", str(ANGLES)]


@contextmanager
def sent(frames: Callable[[], None]) -> Iterator[None]:
    """The scan is sent meanwhile; a receiver that refuses it may leave early."""

    def send() -> None:
        with contextlib.suppress(MinistreamError):
            frames()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        thread.join(HANG_S)
        assert not thread.is_alive()


def over_frames(wire: str, odd: OddScan, warm: WarmPair, options: list[str]) -> Ran:
    """Over a wire that carries raw frames, flats and darks among them."""
    tables: dict[str, Any] = {"producer": {"wire": wire, "peer_timeout_s": HANG_S, "open_network": True}}
    if wire == "timage":
        tables["aps"] = {"sync": "tcp://127.0.0.1:0", "pixel_dtype": odd.data.dtype.name}
        options = ["--pixel-dtype", odd.data.dtype.name, *WINDOW, *options]
    with open_wire(wire, config.load(None, tables)).sender(odd.scan) as sender:
        data, *sync = sender.addresses
        where = ["--connect", data, *(["--sync", sync[0]] if sync else [])]

        def play() -> None:
            for frame in odd.frames():
                sender.send(frame)
            sender.finish()

        with sent(play):
            return warm.receive(["--source-wire", wire, *where, *options])


def over_tracemq(odd: OddScan, warm: WarmPair, options: list[str]) -> Ran:
    """Over the distributor's wire, which carries corrected projections alone."""
    rows, cols = odd.data.shape[1:]
    with TraceMqServer("tcp://127.0.0.1:0", window=ANGLES, stall_timeout_s=HANG_S) as server:

        def play() -> None:
            server.join(rows=rows, cols=cols, timeout_s=HANG_S)
            for frame in odd.frames():
                if frame.kind is FrameKind.PROJECTION:
                    pixels = frame.pixels.astype(np.float32)
                    center = odd.scan.axis_or_middle + 0.5
                    server.push(
                        Projection(projection_id=frame.index, theta=frame.angle_rad, center=center, pixels=pixels)
                    )
            server.finish()

        port = server.address.rpartition(":")[2]
        with sent(play):
            return warm.receive(
                [
                    "--source-wire",
                    "tracemq",
                    "--connect",
                    f"tcp://127.0.0.1:{port}",
                    *WINDOW,
                    *options,
                ]
            )


def transmissions(**changes: Any) -> OddScan:
    """The scan as float32 without flats and darks."""
    return good(**{"data": np.exp(-INTEGRALS).astype(np.float32), "flats": None, "darks": None} | changes)


def integrals(**changes: Any) -> OddScan:
    """The scan as a distributor corrects it."""
    return good(**{"data": INTEGRALS.astype(np.float32), "flats": None, "darks": None} | changes)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A scan on some wires, and what must come of it."""

    name: str
    wires: tuple[str, ...]
    odd: OddScan
    code: int = 0
    warns: tuple[str, ...] = ()
    says: str = ""
    options: tuple[str, ...] = ()


RAW, ALL = ("native", "timage"), ("native", "timage", "tracemq")
APS = ("timage", "tracemq")


def changed(frames: Any, value: Any) -> np.ndarray:
    data = good().data.copy()
    data[frames] = value
    return data


def with_dead_pixels(data: np.ndarray) -> np.ndarray:
    data = data.astype(np.float32)
    data[10, 1, 30], data[:, 2, 5], data[3, 0, 0] = np.nan, np.inf, -np.inf
    return data


def thick(views: slice) -> np.ndarray:
    """A sample behind an object that takes nearly all light in these views."""
    data = INTEGRALS.copy()
    data[views] += 4 + 0.01 * np.arange(data.shape[2])
    return data


SATURATED = np.minimum(counts(INTEGRALS, flat=90000, dtype=np.uint32), 65535).astype(np.uint16)
SHUFFLED = np.random.default_rng(0).permutation(DEGREES)

CASES = [
    Case(name="good", wires=RAW, odd=good()),
    Case(name="good", wires=("tracemq",), odd=integrals()),
    Case(name="equal angles", wires=RAW, odd=good(degrees=np.zeros(ANGLES)), code=2, says="angles are the same"),
    Case(name="equal angles", wires=("tracemq",), odd=integrals(degrees=np.zeros(ANGLES)), code=2,
         says="angles are the same"),
    Case(name="radians as degrees", wires=("timage",), odd=good(degrees=np.radians(DEGREES)), code=2,
         says="--angle-unit radians"),
    Case(name="radians as degrees", wires=("native",), odd=good(degrees=np.radians(DEGREES)), code=3,
         warns=("angles-unit", "angles-gap"), says="--accept angles-unit"),
    Case(name="degrees as radians", wires=("tracemq",), odd=integrals(degrees=np.degrees(DEGREES)), code=2,
         says="--angle-unit degrees"),
    Case(name="shuffled angles", wires=RAW, odd=good(degrees=SHUFFLED), warns=("centre-of-mass",)),
    Case(name="shuffled angles", wires=("tracemq",), odd=integrals(degrees=SHUFFLED), warns=("centre-of-mass",)),
    Case(name="pixels not finite", wires=RAW, odd=transmissions(data=with_dead_pixels(np.exp(-INTEGRALS))),
         options=("--set", "prep.input=transmission")),
    Case(name="pixels not finite", wires=("tracemq",), odd=integrals(data=with_dead_pixels(INTEGRALS))),
    Case(name="never written", wires=RAW, odd=good(data=changed([20, 41, 70], 0)), code=3,
         warns=("projections-unwritten",)),
    Case(name="never written", wires=("tracemq",), odd=integrals(data=np.where(
        np.isin(np.arange(ANGLES), [20, 41, 70])[:, None, None], 0, INTEGRALS)), code=3,
         warns=("projections-unwritten",)),
    Case(name="blocked", wires=RAW, odd=good(data=counts(thick(slice(40, 50)))), warns=("views-blocked",)),
    Case(name="blocked", wires=("tracemq",), odd=integrals(data=thick(slice(40, 50))), warns=("views-blocked",)),
    Case(name="saturated", wires=RAW, odd=good(data=SATURATED, flats=np.full((5, 4, 64), 65535, np.uint16)),
         warns=("pixels-saturated", "attenuation-varies")),
    Case(name="no flats", wires=RAW, odd=good(flats=None), code=2, says="--set prep.input=transmission"),
    Case(name="flats and darks swapped", wires=RAW, odd=good(flats=good().darks, darks=good().flats), code=2,
         says="swapped"),
    Case(name="line integrals as counts", wires=RAW, odd=integrals(), code=2, says="--set prep.input=attenuation"),
    Case(name="line integrals as transmissions", wires=RAW, odd=integrals(data=(INTEGRALS - 0.01).astype(np.float32)),
         code=2, says="--set prep.input=attenuation", options=("--set", "prep.input=transmission")),
    Case(name="another axis", wires=RAW, odd=good(axis=35.5), warns=("axis-off",)),
    Case(name="another axis", wires=("tracemq",), odd=integrals(axis=35.5), warns=("axis-off",)),
    Case(name="one flat without beam", wires=RAW, odd=good(flats=np.concatenate(
        [np.full((9, 4, 64), FLAT + DARK, np.uint16), np.full((1, 4, 64), DARK, np.uint16)])),
         warns=("flats-outlier",)),
]  # fmt: skip

EACH = [pytest.param(wire, case, id=f"{case.name}, {wire}") for case in CASES for wire in case.wires]


@pytest.mark.parametrize(("wire", "case"), EACH)
def test_what_comes_of_a_scan_on_a_wire(wire: str, case: Case, warm: WarmPair) -> None:
    options = [*ITERATIONS, *case.options]
    ran = over_tracemq(case.odd, warm, options) if wire == "tracemq" else over_frames(wire, case.odd, warm, options)
    assert "Traceback" not in ran.text
    assert ran.recon == case.code, ran.text
    assert case.says in ran.text
    if case.code == 2:
        assert not (ran.out / "recon.h5").exists()
        return
    assert set(ran.codes) == set(case.warns)
    assert ran.summary["complete"] == (case.code == 0)
    if not case.warns:
        assert Result(volume=ran.volume).correlation() > 0.95
