"""Prometheus metrics: names, documents, dashboard and alerts agree; the endpoint serves, and costs the job nothing."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from ministream import config
from ministream.app import metrics
from ministream.app.producer.accounting import AccountedSender
from ministream.app.producer.metrics import readings
from ministream.errors import ConfigError
from ministream.monitor import Latency, catalogue
from ministream.monitor.catalogue import CATALOGUE, Reading
from ministream.monitor.endpoint import BOUNDS_S, MetricsEndpoint
from ministream.transport.native import FrameReceiver, FrameSender
from ministream.tunnel import certificates, client, credentials
from ministream.tunnel.control import ControlServer
from ministream.tunnel.control_client import ControlClient
from tests.integration.tunnel_ends import echoing, make_credentials, ping
from tests.native_stream import make_frames, make_scan
from tests.ports import free_ports
from tests.scraping import scrape
from tests.waiting import HANG_S, eventually

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "launch" / "monitoring"
NAME = re.compile(r"\bministream_\w+")


# names


def names_in(expression: str) -> set[str]:
    """Metrics of the catalogue that an expression uses; what is not in it stays as it is."""
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in NAME.findall(expression)}


def expressions() -> Iterator[str]:
    """Those of the dashboard and of the alerts."""
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (variable["query"] for variable in dashboard["templating"]["list"])
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def test_dashboard_and_alerts_use_every_metric_and_no_other() -> None:
    assert {name for expression in expressions() for name in names_in(expression)} == set(CATALOGUE)


def test_panels_do_not_overlap_and_name_the_data_source() -> None:
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        columns, lines = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in columns for y in lines}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"


def test_alerts_have_a_remedy() -> None:
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 5
    for rule in rules:
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["remedy"]
        for command in re.findall(r"ministream (\w+)", rule["annotations"]["remedy"]):
            assert command in {"certs", "doctor"}
        for document in re.findall(r"docs/\S+\.md", rule["annotations"]["remedy"]):
            assert (ROOT / document).exists()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool: Debian's package prometheus has it")
def test_prometheus_accepts_every_expression(tmp_path: Path) -> None:
    """The dashboard's as rules, with a value for its variable."""
    panels = json.loads((MONITORING / "grafana-dashboard.json").read_text())["panels"]
    shown = [target["expr"].replace("$instance", "a.*") for panel in panels for target in panel.get("targets", ())]
    rules = [{"record": f"shown:{number}", "expr": expression} for number, expression in enumerate(shown)]
    path = tmp_path / "shown.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    for file in (path, MONITORING / "alerts.yaml"):
        done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_document_has_every_metric() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("| `ministream_")]
    assert table == catalogue.rows(), "write the table of docs/metrics.md anew from ministream.monitor.catalogue.rows()"


@pytest.mark.parametrize("metric", CATALOGUE.values(), ids=CATALOGUE)
def test_names_follow_the_conventions_of_prometheus(metric: catalogue.Metric) -> None:
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"milli|micro|minutes|hours|_mib|_ms\b", metric.name)
    assert set(metric.jobs) <= {"recon", "producer", "s2cs"}
    assert not {"le", "quantile", "instance", "job"} & set(metric.labels)


def test_a_producer_cannot_invent_labels() -> None:
    found = list(catalogue.dropped({"source": 1, "a": 2, "b": 3}))
    assert [(reading.labels, reading.value) for reading in found] == [(("source",), 1), (("other",), 5)]


# latencies


def test_buckets_count_what_they_say() -> None:
    seconds = np.random.default_rng(5).lognormal(-3, 2, 2000)
    latency = Latency()
    for each in seconds:
        latency.record(float(each))
    counts = latency.at_most(BOUNDS_S)
    for bound, count in zip(BOUNDS_S, counts, strict=True):
        assert np.count_nonzero(seconds <= bound) <= count <= np.count_nonzero(seconds <= 1.011 * bound)
    assert latency.total_s == pytest.approx(seconds.sum(), rel=0.005)
    assert counts == sorted(counts)


# the endpoint


@pytest.fixture
def endpoint() -> Iterator[MetricsEndpoint]:
    with metrics.open_endpoint("127.0.0.1:0", open_network=False) as opened:
        yield opened


def test_readings_are_served_and_a_failing_source_hides_no_other(endpoint: MetricsEndpoint) -> None:
    latency = Latency()
    latency.record(0.02, 3)

    def broken() -> list[Reading]:
        raise OSError("gone")

    endpoint.add(broken)
    endpoint.add(lambda: [Reading(catalogue.UPDATES, 7), Reading(catalogue.LATENCY, latency, ("image",))])
    endpoint.add(lambda: [Reading(catalogue.PHASE, 1, ("live",))])
    found = scrape(endpoint.url)
    assert found["ministream_updates_total"] == {(): 7}
    assert found["ministream_phase"] == {("live",): 1}
    assert found["ministream_latency_seconds_bucket"]["0.01", "image"] == 0
    assert found["ministream_latency_seconds_bucket"]["0.025", "image"] == 3
    assert found["ministream_latency_seconds_count"] == {("image",): 3}
    assert found["ministream_latency_seconds_sum"]["image",] == pytest.approx(0.06, rel=0.01)
    assert found["process_cpu_seconds_total"][()] > 0


def test_a_caller_that_sends_nothing_keeps_prometheus_out_for_seconds_only(endpoint: MetricsEndpoint) -> None:
    port = int(endpoint.url.rpartition(":")[2].partition("/")[0])
    with socket.create_connection(("127.0.0.1", port)) as idle:
        assert scrape(endpoint.url)["ministream_build_info"]
        assert idle.recv(1) == b""


def test_an_address_in_use_and_one_off_loopback_are_refused_and_the_remedies_work() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=r"Address already in use.*choose another address with --metrics"):
            metrics.open_endpoint(f"127.0.0.1:{port}", open_network=False)
    for address, allowed in ((f"127.0.0.1:{free_ports(1)}", False), ("0.0.0.0:0", True)):
        with metrics.open_endpoint(address, open_network=allowed):
            pass
    with pytest.raises(ConfigError, match=r"without authentication. Serve metrics on 127.0.0.1, or .*--open-network"):
        metrics.open_endpoint("0.0.0.0:0", open_network=False)


def test_without_the_package_the_remedy_is_named_and_nothing_else_needs_it() -> None:
    code = """
import sys
sys.modules["prometheus_client"] = None
from ministream import registry
from ministream.app import metrics
import ministream.app.recon.job, ministream.app.producer.job
for name in registry.names("ministream.app.recon.observers"):
    registry.load("ministream.app.recon.observers", name)
try:
    metrics.open_endpoint("127.0.0.1:0", open_network=False)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "ConfigError --metrics needs the package prometheus-client: pip install prometheus-client\n"
    ), done.stderr


def test_off_by_default() -> None:
    settled = config.Config()
    assert settled.output.metrics is None
    assert settled.producer.metrics is None


# what the jobs tell


def test_the_producer_tells_what_it_sent(endpoint: MetricsEndpoint) -> None:
    scan = make_scan(projections=6)
    with FrameSender("tcp://127.0.0.1:0", scan) as sender, FrameReceiver(sender.address) as receiver:
        accounted = AccountedSender(sender, scan)
        accounted.latency = Latency()
        endpoint.add(lambda: readings(accounted))
        frames = list(make_frames(scan))
        for frame in frames[:-2]:
            accounted.send(frame)
        accounted.send(frames[-1])
        eventually(lambda: sender.report.unacknowledged)
        found = scrape(endpoint.url)
        assert found["ministream_sent_projections_total"] == {(): 5}
        assert found["ministream_dropped_projections_total"] == {("source",): 1}
        assert found["ministream_unacknowledged_frames"] == {(): len(frames) - 1}
        assert found["ministream_latency_seconds_count"] == {("sent",): 5}
        assert found["ministream_sent_bytes_total"] == {(): (len(frames) - 1) * scan.frame_bytes}
        for _ in range(len(frames)):
            event = receiver.next(HANG_S)
            assert event is not None
        receiver.ack(len(frames) - 2)
        eventually(lambda: scrape(endpoint.url)["ministream_unacknowledged_frames"] == {(): 0})


def test_a_control_server_tells_its_sessions_refusals_and_certificates(
    endpoint: MetricsEndpoint, tmp_path: Path
) -> None:
    own = make_credentials(tmp_path / "d")
    with (
        echoing() as producer,
        ControlServer(side="PROD", credentials=own, targets=[producer.address]) as prod,
        ControlServer(side="CONS", credentials=own) as cons,
    ):
        endpoint.add(lambda: metrics.tunnel_readings(prod))
        opened = client.connect(prod.address, cons.address, own)
        assert ping(opened.cons_listeners[0]) == b"ping"
        found = scrape(endpoint.url)
        assert found["ministream_sessions"] == {("PROD", "active"): 1}
        assert found["ministream_sessions_opened_total"] == {(): 1}
        assert set(found["ministream_certificate_valid"].values()) == {1}
        assert set(found["ministream_certificate_expires_soon"].values()) == {0}
        with ControlClient(prod.address, client.Access.of(own)) as operator:
            with pytest.raises(client.TunnelError):
                operator.update("no-such-session", "PROD", [], None)
            operator.release(opened.uid)
        eventually(lambda: not prod.sessions())
        found = scrape(endpoint.url)
        assert "ministream_sessions" not in found
        assert found["ministream_sessions_ended_total"] == {("released",): 1}
        assert found["ministream_control_refused_calls_total"] == {("NOT_FOUND",): 1}
        assert min(found["ministream_tunnel_bytes_total"].values()) >= 4
        (own.directory / "revoked").unlink()
        assert scrape(endpoint.url)["ministream_credentials_readable"] == {(): 0}


def test_a_certificate_that_ends_soon_is_in_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "_CLOCK_SKEW", datetime.timedelta(days=28))
    credentials.create_authority(tmp_path, name="ca", days=100)
    credentials.issue(tmp_path, name="gw", usage="server", hosts=["h"], days=12, out=tmp_path)
    found = {(one.metric.name, *one.labels): one.value for one in metrics.certificate_readings(tmp_path)}
    assert found["ministream_certificate_expires_soon", "server.crt"] == 1
    assert found["ministream_certificate_expires_soon", "ca.crt"] == 0
    ends = found["ministream_certificate_expiry_timestamp_seconds", "server.crt"]
    assert ends == pytest.approx(time.time() + 12 * 86400, abs=3600)
    credentials.revoke(tmp_path, "gw")
    revoked = {(one.metric.name, *one.labels): one.value for one in metrics.certificate_readings(tmp_path)}
    assert revoked["ministream_certificate_valid", "server.crt"] == 0
