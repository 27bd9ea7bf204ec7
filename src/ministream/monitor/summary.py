"""The summary of a job: a table for people, and `summary.json` for scripts."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ministream import atomic
from ministream.ledger import Ledger, both_sides
from ministream.model import Notice


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The outcome of one reconstruction job.

    `complete` is derived: `missing` lists, one line each, why the written volume does not contain every delivered
    projection. `ledger` is the receiver's, `announced` the producer's, None if END was not received; `dropped` are the
    indices that the producer dropped, with time and policy. `ending` describes how the stream ended;
    `repaired_pixels` counts the mended pixels. `latency_s` holds p50 and p99 from acquisition to image, None if not
    measured. `tunnel`: kind, cipher and the bytes to (inward) and from (outward) the producer, None without a tunnel.
    `end_to_end`: the encryption between producer and rank 0, None without.
    `bytes`: received by the data connections. `streams`: for each receiving rank and each of its streams, `frames`,
    `bytes` and how many `connections` it took. `bytes_scattered`: sent between ranks. `bytes_written`: the pixels of
    all volumes. `stages`: seconds per stage on rank 0, `stages_per_rank` on every rank. `quality`: ssim and psnr (dB)
    against the ground truth, None if unknown. `residuals`: the residual norm before the last iteration of each update,
    `iterations` their number. `storage`: how volumes were written. `write_hidden_s`: seconds of writing on rank 0
    overlapped with computation (the rest is in the stage `write`).
    `axis`: the rotation axis that was found in the projections, as in the volume's attributes; empty if it was known.
    `warnings`: notices about the scan, `accepted` the codes that the user has acknowledged.
    `failures` names each observer of the run (pictures, snapshots, …) that failed, with its first error.
    """

    scan_id: str
    version: str
    complete: bool
    ending: str
    ledger: Ledger
    announced: Ledger | None = None
    missing: Sequence[str] = ()
    dropped: Sequence[Mapping[str, Any]] = ()
    repaired_pixels: int = 0
    updates: int
    seconds: float
    projections_per_s: float
    latency_s: Mapping[str, float | None]
    latency_negative: int = 0
    ranks: int
    threads: int
    tunnel: Mapping[str, str | int] | None
    end_to_end: str | None = None
    bytes: int
    streams: Sequence[Sequence[Mapping[str, int]]] = ()
    bytes_scattered: int = 0
    bytes_written: int = 0
    stages: Mapping[str, float]
    stages_per_rank: Sequence[Mapping[str, float]] = ()
    quality: Mapping[str, float] | None = None
    residuals: Sequence[float] = ()
    iterations: Sequence[int] = ()
    peak_memory_mib: Sequence[float] = ()
    storage: str = ""
    write_hidden_s: float = 0.0
    axis: Mapping[str, float | str] = dataclasses.field(default_factory=dict)
    warnings: Sequence[Notice] = ()
    accepted: Sequence[str] = ()
    failures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """A dictionary for JSON; numbers that JSON cannot represent (infinity, NaN) become null."""
        values = dataclasses.asdict(self)
        for ledger in ("ledger", "announced"):
            values.pop(ledger)
        told = {
            "projections": both_sides(self.announced, self.ledger),
            "refused_reasons": self.ledger.refusals,
        }
        finite: dict[str, Any] = _finite(told | values)
        return finite

    @property
    def cause(self) -> str:
        """Why the volume is not complete, root cause first: the early end of the stream, else the missing parts."""
        early = [self.ending] if self.announced is None else []
        return "; ".join([*early, *(self.missing[len(early) :])])

    def write(self, path: Path) -> None:
        """Write `path` atomically. Raises StorageError."""
        with atomic.replacing(path) as part:
            part.write_text(json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def render(summary: Summary) -> Table:
    """The summary as a table of two columns, for the end of the job."""
    verdict = "[bold green]complete[/]" if summary.complete else "[bold red]incomplete[/]"
    table = Table(title=f"Scan {summary.scan_id}: {verdict}", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(summary):
        if text:
            table.add_row(name, text)
    return table


def _rows(summary: Summary) -> list[tuple[str, str]]:
    return [
        ("projections", _projections(summary)),
        ("refused because", _refusals(summary.ledger)),
        ("missing", "\n".join(summary.missing)),
        ("repaired", f"{summary.repaired_pixels} pixels" if summary.repaired_pixels else ""),
        ("ending", "" if summary.complete else summary.ending),
        ("rotation axis", _axis(summary.axis)),
        ("warnings", "\n".join(_warning(notice, summary.accepted) for notice in summary.warnings)),
        ("updates", _updates(summary)),
        ("time", f"{summary.seconds:.1f} s, {summary.projections_per_s:.1f} projections/s"),
        ("latency", _latency(summary)),
        ("received", f"{summary.bytes / 2**20:.1f} MiB{_streams(summary.streams)}"),
        ("tunnel", _tunnel(summary.tunnel)),
        ("end to end", summary.end_to_end or ""),
        ("ranks × threads", f"{summary.ranks} × {summary.threads}"),
        ("stages", _stages(summary.stages)),
        ("peak memory", _memory(summary.peak_memory_mib)),
        ("residual norm", _residuals(summary.residuals)),
        ("quality", _quality(summary.quality)),
        ("written by", _storage(summary)),
        ("not done", "\n".join(f"{name}: {error}" for name, error in summary.failures.items())),
        ("results in", str(Path(summary.files[0]).parent) if summary.files else ""),
        ("files", _files(summary.files)),
    ]


def _axis(axis: Mapping[str, float | str]) -> str:
    form = "column {axis_col:.2f} ± {axis_error_col:.2f}, found by {axis_method}, confidence {axis_confidence:.0%}"
    return form.format(**axis) if axis else ""


def _warning(notice: Notice, accepted: Sequence[str]) -> str:
    return f"{notice.code}{' (accepted)' if notice.code in accepted else ''}: {notice.text}"


def _streams(receivers: Sequence[Sequence[Mapping[str, int]]]) -> str:
    """What each stream carried, where there are several."""
    carried = [f"{stream['bytes'] / 2**20:.1f}" for streams in receivers for stream in streams]
    return f" over {len(carried)} streams ({', '.join(carried)} MiB)" if len(carried) > 1 else ""


def _tunnel(tunnel: Mapping[str, str | int] | None) -> str:
    if tunnel is None:
        return "none"
    carried = int(tunnel.get("inward", 0)) + int(tunnel.get("outward", 0))
    words = [str(tunnel[key]) for key in ("kind", "cipher") if key in tunnel]
    return ", ".join([*words, f"{carried / 2**20:.1f} MiB"])


def _projections(summary: Summary) -> str:
    counts = {name: count for name, count in both_sides(summary.announced, summary.ledger).items() if count is not None}
    always = {"received", "used"} | ({"sent"} if summary.announced else set())
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count or name in always)


def _refusals(ledger: Ledger) -> str:
    reasons = [(kind, reason, count) for kind, each in ledger.refusals.items() for reason, count in each.items()]
    return ", ".join(f"{kind}: {reason}: {count}" for kind, reason, count in reasons)


def _latency(summary: Summary) -> str:
    p50, p99 = summary.latency_s.get("p50"), summary.latency_s.get("p99")
    if p50 is None or p99 is None:
        return ""
    skew = ", the producer's clock is ahead of the receiver's" if summary.latency_negative else ""
    return f"{_seconds(p50)} median, {_seconds(p99)} p99, from acquisition to image{skew}"


def _seconds(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def _stages(stages: Mapping[str, float]) -> str:
    total = sum(stages.values())
    ordered = sorted(stages.items(), key=lambda item: -item[1])
    return "\n".join(
        f"{name:<12} {seconds:8.2f} s {100 * seconds / total:4.0f} %" for name, seconds in ordered if total
    )


def _memory(per_rank: Sequence[float]) -> str:
    if not per_rank:
        return ""
    return f"{max(per_rank):.0f} MiB on the largest rank, {sum(per_rank):.0f} MiB in all"


def _storage(summary: Summary) -> str:
    waited, hidden = summary.stages.get("write", 0.0), summary.write_hidden_s
    if not summary.storage or waited + hidden == 0:
        return summary.storage
    return f"{summary.storage}; {hidden:.2f} s hidden, {waited:.2f} s waited for"


def _residuals(residuals: Sequence[float]) -> str:
    return " → ".join(f"{value:.4g}" for value in dict.fromkeys([*residuals[:1], *residuals[-1:]]))


def _quality(quality: Mapping[str, float] | None) -> str:
    names = {
        "ssim": "SSIM {:.4f}",
        "psnr": "PSNR {:.2f} dB",
        "nrmse": "NRMSE {:.4f}",
        "correlation": "correlation {:.5f}",
    }
    return ", ".join(form.format(quality[name]) for name, form in names.items() if name in quality) if quality else ""


def _updates(summary: Summary) -> str:
    counts = set(summary.iterations)
    each = f"{min(counts)}–{max(counts)}" if len(counts) > 1 else "".join(map(str, counts))
    return f"{summary.updates}, {each} iterations each" if counts else str(summary.updates)


def _files(files: Sequence[str]) -> str:
    """File names without their folder; many snapshots are shortened to a count and a range."""
    names = [Path(file).name for file in files]
    snapshots = [name for name in names if name[0].isdigit()]
    if len(snapshots) > 4:
        names = [f"{len(snapshots)} snapshots {snapshots[0]} … {snapshots[-1]}", *names[len(snapshots) :]]
    return ", ".join(names)
