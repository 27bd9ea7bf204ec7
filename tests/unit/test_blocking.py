"""Blocking follows registers and caches."""

from __future__ import annotations

import pytest

from ministream.recon.backend.cpu.blocking import LINES, Blocking, Processor

ZEN4 = Processor(registers=32, floats=16, l1_bytes=32 << 10, l2_bytes=1 << 20)
ZEN3 = Processor(registers=16, floats=8, l1_bytes=32 << 10, l2_bytes=512 << 10)
NEOVERSE = Processor(registers=32, floats=4, l1_bytes=64 << 10, l2_bytes=1 << 20)
SSE2 = Processor(registers=16, floats=4)


@pytest.mark.parametrize(("processor", "widest"), [(ZEN4, 128), (ZEN3, 64), (NEOVERSE, 64), (SSE2, 32)])
def test_sums_and_weights_fit_the_registers(processor: Processor, widest: int) -> None:
    assert processor.widest == widest
    lanes = widest
    while lanes:
        for blocking in (processor.forward(lanes), processor.back(lanes)):
            registers = blocking.sums * max(1, lanes // processor.floats)
            assert registers + 2 <= processor.registers
            assert blocking.strip % LINES == 0 or LINES % blocking.strip == 0
            assert lanes % blocking.parts == 0
        lanes //= 2


def test_the_widest_vectors_have_eight_independent_sums() -> None:
    for processor in (ZEN4, ZEN3, NEOVERSE, SSE2):
        for blocking in (processor.forward(processor.widest), processor.back(processor.widest)):
            assert blocking.sums * blocking.lanes // processor.floats >= 8


def test_avx_512_keeps_what_was_measured() -> None:
    assert ZEN4.forward(128) == Blocking(lanes=128, parts=1, sums=2, side=16, group=16, strip=16)
    assert ZEN4.forward(64) == Blocking(lanes=64, parts=1, sums=4, side=32, group=32, strip=32)
    assert ZEN4.back(128) == Blocking(lanes=128, parts=1, sums=2, side=32, group=8, strip=16)
    assert ZEN4.back(64) == Blocking(lanes=64, parts=1, sums=2, side=32, group=16, strip=16)


def test_smaller_caches_get_smaller_blocks() -> None:
    small = Processor(registers=32, floats=16, l1_bytes=32 << 10, l2_bytes=256 << 10)
    assert small.forward(64).side < ZEN4.forward(64).side
    assert ZEN3.forward(64).strip < NEOVERSE.forward(64).strip
