"""One scan striped over the connections of a tunnel: both gateways with TLS, and one of the connections is cut."""

from __future__ import annotations

from pathlib import Path

from ministream.transport import Arrived, Ended
from ministream.transport.native import FrameReceiver, FrameSender
from ministream.tunnel import client
from ministream.tunnel.control import ControlServer
from tests.cable import Cable
from tests.integration.tunnel_ends import make_credentials
from tests.native_stream import make_frames, make_scan, same
from tests.sending import Sending, events_of

SCAN = make_scan(rows=512, cols=512, projections=60)  # 0.5 MiB per frame
STREAMS = 3


def test_a_connection_of_the_tunnel_that_is_cut_slows_the_scan_and_loses_nothing(tmp_path: Path) -> None:
    secrets = make_credentials(tmp_path / "credentials")
    sent = list(make_frames(SCAN))
    arrived = []
    with (
        FrameSender("tcp://127.0.0.1:0", SCAN) as sender,
        ControlServer(side="PROD", credentials=secrets, targets=[sender.address.removeprefix("tcp://")]) as prod,
        ControlServer(side="CONS", credentials=secrets) as cons,
        client.session(prod.address, cons.address, secrets, STREAMS) as opened,
        Cable(opened.cons_listeners[1]) as cable,
    ):
        urls = [f"tcp://{listener}" for listener in opened.cons_listeners]
        urls[1] = cable.address
        sending = Sending(sender, sent)
        with FrameReceiver(urls, streams=STREAMS, credit_bytes=8 * 2**20) as receiver:
            for event in events_of(receiver):
                arrived.append(event)
                if isinstance(event, Arrived) and event.seq == 20:
                    cable.cut()
        sending.join(30)
        assert sending.report is not None, sending.error
    *frames, ended = arrived
    assert isinstance(ended, Ended)
    assert all(isinstance(e, Arrived) and same(e.frame, f) for e, f in zip(frames, sent, strict=True))
    carried = receiver.report.streams
    assert [stream.connections > 1 for stream in carried] == [False, True, False]
    assert all(stream.frames for stream in carried)
    assert sending.report.retransmitted <= 16, "no more than what was in transit"
