"""What a library never finishes is not waited for; what it finishes is."""

from __future__ import annotations

import random
import threading
import time

from ministream import bounded
from ministream.transport._channels import dial, listen


def test_an_end_in_time_is_waited_for_and_not_told(caplog):
    done = threading.Event()

    def end():
        time.sleep(0.05)
        done.set()

    assert bounded.close("a socket", end)
    assert done.is_set() and not caplog.records


def test_an_end_that_never_comes_is_given_up_and_told(caplog, monkeypatch):
    monkeypatch.setattr(bounded, "_CLOSE_S", 0.05)
    never = threading.Event()
    try:
        assert not bounded.close("tcp://beamline:5000", never.wait)
        assert "tcp://beamline:5000: ZeroMQ did not release it within 0.05 s" in caplog.text
    finally:
        never.set()


def test_listeners_close_while_peers_come_and_go():
    chance = random.Random(1)
    for _ in range(12):
        listener = listen("tcp://127.0.0.1:0", max_message_bytes=2**20)
        peers = [threading.Thread(target=_come_and_go, args=(listener.address, chance.random())) for _ in range(3)]
        for peer in peers:
            peer.start()
        until = time.monotonic() + 0.03 * chance.random()
        while time.monotonic() < until:
            if (received := listener.recv(0.005)) is not None:
                for _ in range(chance.randrange(40)):
                    listener.send(received[0], [b"header", bytes(5000)])
        listener.close(2.0)
        for peer in peers:
            peer.join()


def _come_and_go(address: str, chance: float) -> None:
    channel = dial(address, max_message_bytes=2**20)
    channel.send([b"hello"])
    until = time.monotonic() + 0.02 * chance
    while time.monotonic() < until:
        channel.recv(0.005)
    channel.close(2.0)
