"""The HTTP endpoint that Prometheus scrapes. A thread of its own; the job never waits for it."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterable, Iterator
from typing import Self

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import MetricsHandler
from prometheus_client.registry import Collector

from ministream import __version__, log
from ministream.errors import ConfigError
from ministream.monitor.catalogue import BUILD, Metric, Reading, Source
from ministream.monitor.measure import Latency

_LOG = log.get(__name__)

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
"""Upper bounds of the buckets of every histogram."""
# A caller that sends nothing must not keep Prometheus out.
_CALLER_S = 2.0
_LOOK_S = 0.1


class _Handler(MetricsHandler):
    timeout = _CALLER_S
    server_version, sys_version = "ministream", ""


class _Server(socketserver.TCPServer):
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper that goes away is no event."""
        _LOG.debug("metrics: connection from %s ended early", client_address, exc_info=True)


class MetricsEndpoint:
    """Serves the readings of all `add`ed sources at `url`; a context manager.

    Raises ConfigError when the address cannot be bound.
    """

    def __init__(self, host: str, port: int) -> None:
        self._sources: list[Source] = [lambda: [Reading(BUILD, 1, (__version__,))]]
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_Sources(self._sources))
        handler = type("Handler", (_Handler,), {"registry": registry})
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            server = type("Server", (_Server,), {"address_family": family})
            self._server: socketserver.TCPServer = server(address, handler)
        except OSError as error:
            raise ConfigError(
                f"cannot serve metrics on {host}:{port} ({error.strerror}): choose another address with --metrics"
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_address[1]}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_LOOK_S,), name="metrics", daemon=True)

    def add(self, source: Source) -> None:
        """Serve also what this source reads."""
        self._sources.append(source)

    def __enter__(self) -> Self:
        self._thread.start()
        _LOG.info("metrics on %s", self.url)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Sources(Collector):
    """All sources as one collector; one that fails does not hide the others."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._sources = sources
        self._failed: set[str] = set()

    def describe(self) -> Iterable[Family]:
        """Nothing: names are not checked before the first scrape."""
        return []

    def collect(self) -> Iterator[Family]:
        """One family for each metric that has readings."""
        found: dict[str, list[Reading]] = {}
        for source in list(self._sources):
            for reading in self._read(source):
                found.setdefault(reading.metric.name, []).append(reading)
        for readings in found.values():
            yield _family(readings[0].metric, readings)

    def _read(self, source: Source) -> list[Reading]:
        try:
            try:
                return list(source())
            except RuntimeError:  # a dictionary that grew while it was read
                return list(source())
        except Exception as error:  # noqa: BLE001 - the job goes on, and the other sources are served
            text = f"{type(error).__name__}: {error}"
            if text not in self._failed:
                self._failed.add(text)
                _LOG.warning("some metrics cannot be read (logged once): %s", text)
            return []


def _family(metric: Metric, readings: Iterable[Reading]) -> Family:
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.text, labels=metric.labels)
        for reading in readings:
            assert isinstance(reading.value, Latency)
            histogram.add_metric(reading.labels, _buckets(reading.value), reading.value.total_s)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.text, labels=metric.labels)
    for reading in readings:
        assert isinstance(reading.value, int | float)
        family.add_metric(reading.labels, reading.value)
    return family


def _buckets(latency: Latency) -> list[tuple[str, float]]:
    counts = latency.at_most(BOUNDS_S)
    return [
        *((str(float(bound)), count) for bound, count in zip(BOUNDS_S, counts, strict=True)),
        ("+Inf", latency.count),
    ]
