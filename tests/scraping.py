"""Reading a process's metrics as Prometheus does."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.waiting import HANG_S


def scrape(url: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Every sample: name → label values in the order of their names → value."""
    with urllib.request.urlopen(url, timeout=HANG_S) as answer:
        text = answer.read().decode()
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sample.labels[name] for name in sorted(sample.labels))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found
