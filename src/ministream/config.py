"""One typed configuration for both jobs, read from TOML and the command line, and validated once.

A plug-in (source, algorithm, proxy) defines its own options as a `Section` in its file; the table here carries them
unvalidated in `options`.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, model_serializer, model_validator

from ministream import registry
from ministream.errors import ConfigError

WIRES = "ministream.transport"
CORRECTIONS = "ministream.prep.steps"


class Section(pydantic.BaseModel):
    """A table of the configuration: frozen, no unknown keys, no silent conversion between types."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


S = TypeVar("S", bound=Section)


class PluginSection(pydantic.BaseModel):
    """A table whose `kind` selects a plug-in, which validates the other keys."""

    model_config = pydantic.ConfigDict(frozen=True, extra="allow", strict=True)

    kind: str

    @property
    def options(self) -> dict[str, Any]:
        """The plug-in's own keys, before validation."""
        return dict(self.model_extra or {})


def _known_wire(name: str) -> str:
    known = registry.names(WIRES)
    if name not in known:
        raise ValueError(f"choose one of {', '.join(known)}")
    return name


WireName = Annotated[str, AfterValidator(_known_wire)]


class SourceSection(PluginSection):
    """`[source]`: where projections come from."""

    kind: str = "phantom"


class ProducerSection(Section):
    """`[producer]`: how the producer job sends."""

    rate: float | None = Field(default=None, gt=0, description="projections/s; none: as fast as credit allows")
    order: Literal["sequential", "interlaced", "golden-angle"] = "sequential"
    repeat: int = Field(default=1, ge=1, description="passes over the projections")
    overflow: Literal["block", "drop-oldest", "decimate"] = Field(
        default="block", description="for a slow receiver: wait, or drop projections"
    )
    archive: Path | None = Field(
        default=None, strict=False, description="DXchange file to write every frame to, before it is sent"
    )
    record: Path | None = Field(default=None, strict=False, description="such a file of what is sent, for replay")
    archive_limit_gib: float | None = Field(
        default=None, gt=0, description="GiB that an archive may take; then the scan goes on without it; none: the disk"
    )
    resume: Path | None = Field(default=None, strict=False, description="such a file, to be sent in the source's place")
    hold_mib: float = Field(
        default=1024.0, gt=0, description="MiB of frames kept in memory until a checkpoint holds them"
    )
    backlog: int = Field(default=64, ge=1, description="waiting projections before overflow drops some")
    wire: WireName = Field(default="native", description="native; timage: that of aps-mini-apps' DAQ")
    scan_id: str | None = Field(default=None, min_length=1, max_length=128, description="none: follows from the source")
    listen: str = Field(default="tcp://127.0.0.1:0", description="data socket; port 0: any free port")
    open_network: bool = Field(default=False, description="allow sockets off loopback without encryption")
    metrics: str | None = Field(
        default=None, description="serve Prometheus metrics here, HOST:PORT; port 0: any free one; none: no metrics"
    )
    peer_timeout_s: float = Field(default=120.0, gt=0, description="time to wait for a receiver")


class StreamSection(Section):
    """`[stream]`: the native stream between producer and receiver."""

    wire: WireName = Field(
        default="native", description="native; timage, tracemq: those of aps-mini-apps' DAQ and distributor"
    )
    connect: str | None = Field(
        default=None, description="producer's data address, comma-separated for ingress; none: through the tunnel"
    )
    ingress: int = Field(default=1, ge=1, description="receiving ranks, each with a band of the rows")
    streams: int = Field(default=1, ge=1, le=64, description="connections over which each receiving rank receives")
    credit_mib: float = Field(default=256.0, gt=0, description="MiB in flight for each receiving rank")
    scan_limit_gib: float = Field(
        default=1024.0, gt=0, description="GiB that image and window of a producer's scan may take, over all ranks"
    )
    checksum: bool = True
    silent_timeout_s: float = Field(
        default=5.0,
        gt=0,
        description="native: time without messages until a connection counts as lost; both ends reconnect",
    )
    outage_timeout_s: float = Field(
        default=600.0, gt=0, description="native: time without a connection until the scan ends"
    )
    stall_timeout_s: float = Field(
        default=30.0, gt=0, description="time without frames; native: a warning; other wires: the end of the scan"
    )
    connect_timeout_s: float = Field(default=120.0, gt=0, description="time to wait for the producer")
    strict: bool = Field(default=False, description="end the job at the first rejected frame")
    curve: Path | None = Field(
        default=None,
        strict=False,
        description="folder of keys from `ministream certs curve`: encrypts the stream end to end",
    )


class TunnelSection(Section):
    """`[tunnel]`: the SciStream tunnel and this side's control server."""

    kind: str = Field(default="relay", description="data proxy: relay, stunnel, haproxy, nginx")
    control: str | None = Field(default=None, description="this job's S2CS; port 0: any free one; none: no tunnel")
    producer: str | None = Field(
        default=None, description="the producer's S2CS, if the reconstruction job opens the session"
    )
    data_host: str | None = Field(
        default=None, description="interface of the data ports; none: that of a producer's control port, else loopback"
    )
    advertise: str | None = Field(
        default=None, description="host that the other side is given for the data ports, behind NAT; none: data_host"
    )
    port_range: tuple[int, int] | None = Field(default=None, strict=False, description="data ports; none: any free")
    credentials: Path | None = Field(
        default=None, strict=False, description="folder of credentials from `ministream certs`"
    )
    insecure: bool = Field(default=False, description="no TLS and no authentication; loopback only")
    policy: Path | None = Field(default=None, strict=False, description="policy file: identities, targets, quotas")
    clients: tuple[str, ...] = Field(
        default=(), strict=False, description="names that may open this job's session; none: the job's own client"
    )


class WindowSection(Section):
    """`[window]`: the sliding window."""

    length: int = Field(default=0, ge=0, description="projections held; 0: the whole scan")
    step: int = Field(default=0, ge=0, description="new projections per update; 0: the window's length")
    iterations: int = Field(default=1, ge=1, description="iterations per update")
    budget: Literal["fixed", "adapt"] = Field(
        default="fixed", description="adapt: as many iterations as keep up with the beam"
    )
    budget_s: float | None = Field(default=None, gt=0, description="seconds per update; none: no limit")
    stop_change: float = Field(
        default=0.0, ge=0, lt=1, description="end an update when the residual falls by less than this fraction"
    )
    write_freq: int = Field(default=0, ge=0, description="updates per snapshot; 0: no snapshots")
    pub_freq: int = Field(default=0, ge=0, description="updates per published preview; 0: none")

    @model_validator(mode="after")
    def _step_fits(self) -> Self:
        if self.length and self.step > self.length:
            raise ValueError(f"step {self.step} is larger than length {self.length}: projections would be skipped")
        return self


AUTO = "auto"


def _column_or_auto(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number or value is None or value == AUTO):
        raise ValueError(f"expected a detector column, or {AUTO}")
    return value


class ReconSection(PluginSection):
    """`[recon]`: the algorithm; its own keys (relaxation, non_negative, …) are checked by its file."""

    kind: str = "sirt"
    axis: Annotated[float | str | None, BeforeValidator(_column_or_auto)] = Field(
        default=None,
        description="rotation axis column; auto: found in the projections; none: the scan's, else the middle",
    )
    center: float | None = Field(default=None, description="the same in TomoPy's convention: axis + 0.5")
    field: Literal["auto", "detector", "half"] = Field(
        default="auto",
        description="slices as wide as the detector, or as what it sees in a turn; auto: by where the axis is",
    )
    padding: float = Field(
        default=0.0,
        ge=0,
        le=2,
        description="room for a sample that reaches beyond the detector, in its widths, per side",
    )
    threads: int = Field(default=0, ge=0, description="threads per rank; 0: the node's cores divided by its ranks")
    hang_timeout_s: float = Field(
        default=20.0, ge=0, description="a rank that is stopped or stuck in I/O for so long ends the job; 0: never"
    )

    @model_validator(mode="after")
    def _one_axis(self) -> Self:
        if self.axis is not None and self.center is not None:
            raise ValueError("give axis or center, not both (center = axis + 0.5)")
        return self

    @property
    def axis_col(self) -> float | None:
        """The rotation axis in our convention, or None when the user named none."""
        if self.center is not None:
            return self.center - 0.5
        return self.axis if isinstance(self.axis, float) else None

    @property
    def finds_axis(self) -> bool:
        """Whether the rotation axis is found in the projections."""
        return self.axis == AUTO


_CORRECTIONS = {
    "counts": {"flat_dark": True, "minus_log": True},
    "transmission": {"flat_dark": False, "minus_log": True},
    "attenuation": {"flat_dark": False, "minus_log": False},
}


def _known_correction(name: str) -> str:
    known = registry.names(CORRECTIONS)
    if name not in known:
        raise ValueError(f"choose one of {', '.join(known)}")
    return name


class PrepSection(Section):
    """`[prep]`: corrections before reconstruction.

    `tables` holds the parameters of the optional corrections, `[prep.NAME]`, which their files validate. A correction
    whose table is given is applied, after those that `steps` names.
    """

    input: Literal["counts", "transmission", "attenuation"] | None = Field(
        default=None,
        description="what the pixels are: detector counts, divided by flats already, or line integrals (-log taken)",
    )
    minus_log: bool = Field(default=True, description="false on the wire tracemq, unless given: corrected already")
    flat_dark: bool = Field(default=True, description="false on the wire tracemq, unless given: corrected already")
    mask: Path | None = Field(
        default=None, strict=False, description=".npy file of unusable pixels, bool [rows, cols], true: mend"
    )
    mended_limit: float = Field(
        default=0.05, ge=0, le=1, description="share of mended pixels above which a run is not complete"
    )
    steps: tuple[Annotated[str, AfterValidator(_known_correction)], ...] = Field(
        default=(), strict=False, description="further corrections in this order; a table [prep.NAME] adds NAME"
    )
    tables: dict[str, dict[str, Any]] = Field(default_factory=dict, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _tables_apart(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The tables `[prep.NAME]` in `tables`, and their names in `steps`."""
        known = registry.names(CORRECTIONS)
        given = {name: table for name, table in values.items() if name in known}
        rest = {name: value for name, value in values.items() if name not in given}
        tables, steps = rest.get("tables", {}) | given, rest.get("steps", ())
        if tables and isinstance(steps, list | tuple):
            rest["steps"] = [*steps, *(name for name in tables if name not in steps)]
        return rest | ({"tables": tables} if tables else {})

    @model_serializer(mode="wrap")
    def _tables_in_place(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As in a file: every table under its own name."""
        values: dict[str, Any] = handler(self)
        return values | self.tables

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        twice = next((name for name in self.steps if self.steps.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"steps names {twice} more than once: leave one out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _input_decides(cls, values: dict[str, Any]) -> dict[str, Any]:
        """`input` is the one setting that says which corrections the pixels need."""
        decided = _CORRECTIONS.get(values.get("input") or "", {})
        clash = [key for key, value in decided.items() if values.get(key, value) != value]
        if clash:
            raise ValueError(
                f"input = {values['input']!r} means {clash[0]} = {decided[clash[0]]}: leave {clash[0]} out"
            )
        return values | decided


class PlausibilitySection(Section):
    """`[plausibility]`: warnings about implausible scans."""

    strict: bool = Field(default=False, description="every warning about the scan is an error")
    accept: tuple[str, ...] = Field(
        default=(), strict=False, description="codes of accepted warnings, also with strict"
    )


class OutputSection(Section):
    """`[output]`: where results go."""

    directory: Path = Field(default=Path("results"), strict=False)
    pictures: bool = True
    reference: Path | None = Field(default=None, strict=False, description="volume to compare every update with")
    fallback: Path | None = Field(
        default=None,
        strict=False,
        description="where the volume goes if `directory` fails; none: the checkpoint folder",
    )
    publish: str | None = Field(default=None, description="publish reconstructions as TImage here, tcp://HOST:PORT")
    open_network: bool = Field(
        default=False, description="allow `publish` and `metrics` off loopback: anyone may read them"
    )
    metrics: str | None = Field(
        default=None, description="serve Prometheus metrics here, HOST:PORT; port 0: any free one; none: no metrics"
    )
    live: str | None = Field(
        default=None, description="serve the live view here, tcp://HOST:PORT; port 0: any free one; none: no live view"
    )
    writer: Literal["auto", "direct", "hdf5"] = Field(
        default="auto",
        description="auto: snapshots direct, the volume hdf5; direct: one writer per rank; hdf5: parallel HDF5",
    )


class CheckpointSection(Section):
    """`[checkpoint]`: the state of a run on disk, from which `recon --resume DIR` continues."""

    every_s: float = Field(
        default=60.0, ge=0, description="seconds between checkpoints; 0, without every_updates: none while the job runs"
    )
    every_updates: int = Field(default=0, ge=0, description="updates between checkpoints, besides every_s")
    every_mib: float = Field(
        default=512.0, gt=0, description="MiB of frames between checkpoints, at most, besides every_s"
    )
    on_stop: bool = Field(default=True, description="at a stop signal, and before the walltime limit")
    keep: bool = Field(default=False, description="also after a complete run, which needs none")
    directory: Path | None = Field(default=None, strict=False, description="none: checkpoint in the output folder")
    resume: Path | None = Field(default=None, strict=False, description="continue from the newest checkpoint in here")
    walltime_margin_s: float = Field(
        default=60.0, ge=0, description="stop so long before SLURM_JOB_END_TIME, where Slurm sets it"
    )

    @property
    def periodic(self) -> bool:
        """Checkpoints are written while the job runs, and the producer keeps what they do not hold yet."""
        return bool(self.every_s or self.every_updates)


class ApsSection(Section):
    """`[aps]`: options of the wires of aps-mini-apps."""

    sync: str | None = Field(default=None, description="REP socket for the subscribers' ready handshake")
    subscribers: int = Field(
        default=1, ge=1, description="subscribers that the publisher waits for, or that this reader counts as"
    )
    queue: int = Field(default=64, ge=1, description="images that a subscriber may lag before the publisher waits")
    pixel_dtype: Literal["uint8", "uint16", "float32"] | None = Field(
        default=None, description="dtype of the pixels, which the wire does not carry; none: the source's own"
    )
    angle_unit: Literal["degrees", "radians"] | None = Field(
        default=None, description="unit of the angles on the wire; none: degrees in TImage, radians in TraceMQ"
    )
    hold_mib: float = Field(default=1024.0, gt=0, description="MiB of projections that wait for their calibration")
    original_order: bool = Field(default=False, description="publish interleaved, like the original")
    pass_pause_s: float = Field(default=0.0, ge=0, description="pause after each pass over the dataset")
    every_rank: bool = Field(default=False, description="every rank is a TraceMQ worker; false: rank 0 alone")


class Config(Section):
    """The whole configuration: `source` and `producer` for the producer job, the rest for the reconstruction job."""

    source: SourceSection = SourceSection()
    producer: ProducerSection = ProducerSection()
    stream: StreamSection = StreamSection()
    tunnel: TunnelSection = TunnelSection()
    window: WindowSection = WindowSection()
    recon: ReconSection = ReconSection()
    prep: PrepSection = PrepSection()
    plausibility: PlausibilitySection = PlausibilitySection()
    output: OutputSection = OutputSection()
    checkpoint: CheckpointSection = CheckpointSection()
    aps: ApsSection = ApsSection()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = Field(default="text", description="json: one object per line")

    @model_validator(mode="before")
    @classmethod
    def _corrected_already(cls, tables: dict[str, Any]) -> dict[str, Any]:
        """Projections that a wire carries corrected are not corrected again, unless `[prep]` says otherwise."""
        stream, prep = tables.get("stream"), tables.get("prep", {})
        wire = stream.get("wire") if isinstance(stream, dict) else None
        if wire in registry.names(WIRES) and isinstance(prep, dict) and _wire(wire).corrected:
            corrected = {} if prep.get("input") else {"minus_log": False, "flat_dark": False}
            return tables | {"prep": corrected | prep}
        return tables

    @model_validator(mode="after")
    def _wires_can(self) -> Self:
        sending, receiving = _wire(self.producer.wire), _wire(self.stream.wire)
        if not sending.sends:
            able = ", ".join(name for name in registry.names(WIRES) if _wire(name).sends)
            raise ValueError(f"producer.wire = {self.producer.wire!r}: the producer job cannot send it: choose {able}")
        if self.stream.curve is not None and not (sending.encrypts and receiving.encrypts):
            plain = self.stream.wire if sending.encrypts else self.producer.wire
            raise ValueError(f"stream.curve: the wire {plain!r} cannot be encrypted: leave out curve")
        if self.stream.ingress > 1 and not receiving.shares_rows:
            raise ValueError(
                f"stream.ingress = {self.stream.ingress}: frames on the wire {self.stream.wire!r} always hold all "
                "rows: leave out ingress (tracemq: aps.every_rank lets every rank receive)"
            )
        if self.stream.streams > 1 and not receiving.stripes:
            raise ValueError(
                f"stream.streams = {self.stream.streams}: the wire {self.stream.wire!r} uses one connection: "
                "leave out streams"
            )
        return self

    @property
    def checkpoint_folder(self) -> Path:
        """Where checkpoints go."""
        return self.checkpoint.directory or self.output.directory / "checkpoint"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready copy for output files; plug-ins' own keys included."""
        return self.model_dump(mode="json")


def _wire(name: str) -> Any:
    return registry.load(WIRES, name).Wire


def load(path: str | os.PathLike[str] | None, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Config:
    """Read a TOML file (None: the defaults), then apply `overrides` table by table, without their None values.

    A key `NAME.KEY` is that of the table within the table. An empty table keeps one that is there.

    Raises ConfigError naming the file, the key and the remedy.
    """
    where = "command line" if path is None else str(path)
    tables = {} if path is None else _read_toml(Path(path))
    for table, values in (overrides or {}).items():
        for key, value in values.items():
            if value is not None:
                _place(tables, [table, *key.split(".")], value, where)
    return parse(Config, tables, where)


def is_key(name: str) -> bool:
    """Whether this can name a key of a table, `KEY` or `NAME.KEY`."""
    return all(part.isidentifier() for part in name.split("."))


def _place(tables: dict[str, Any], path: list[str], value: Any, where: str) -> None:
    """tables[path[0]][path[1]]… = value; `prep.zingers.size` leaves the other keys of `[prep.zingers]` as they are."""
    inner: Any = tables
    for depth, name in enumerate(path[:-1], 1):
        inner = inner.setdefault(name, {})
        if not isinstance(inner, dict):
            table = ".".join(path[:depth])
            raise ConfigError(f"{where}: {table} must be a table, [{table}]")
    if value == {}:
        inner.setdefault(path[-1], value)
    else:
        inner[path[-1]] = value


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def parse(section: type[S], values: Mapping[str, Any], where: str) -> S:
    """Validate a mapping as `section`; `where` names its origin (a file, `[source]`) in the message.

    Raises ConfigError that names each wrong key with what would be right.
    """
    try:
        return section.model_validate(dict(values))
    except pydantic.ValidationError as error:
        problems = "; ".join(_describe(section, problem) for problem in error.errors())
        raise ConfigError(f"{where}: {problems}") from None


def _describe(section: type[pydantic.BaseModel], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        fields = _section_at(section, location[:-1]).model_fields
        known = [name for name, field in fields.items() if not field.exclude]
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return f"unknown key {key} ({hint})"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return str(message)
    shown = "" if isinstance(problem["input"], (dict, pydantic.BaseModel)) else f" = {problem['input']!r}"
    return f"{key}{shown}: {message}"


def _section_at(section: type[pydantic.BaseModel], location: list[str]) -> type[pydantic.BaseModel]:
    for part in location:
        field = section.model_fields.get(part)
        if field is None or not (
            isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel)
        ):
            break
        section = field.annotation
    return section
