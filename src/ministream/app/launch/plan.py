"""What to launch, and each job's command line and environment."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ministream import log
from ministream.app.launch.rendezvous import JobSide
from ministream.app.launch.supervisor import Timeouts
from ministream.app.placement import CoreGrant, granted, mpirun

_LOG = log.get(__name__)

PROGRAM = (sys.executable, "-P", "-m", "ministream")

# A rank has its own threads; the libraries below it must not start more.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), "1")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to launch.

    `side` None is both jobs. `rendezvous` is their shared folder, `producer` the address of a producer's S2CS that
    needs none. `host` and `producer_host` are the names of the sides' control servers, `advertise` the one under
    which the reconstruction reaches the producer's where it differs, `port` the port (0: any free
    one). `launcher` is the command prefix that starts the reconstruction's ranks (none: mpirun on this machine),
    `producer_launcher` the one that starts the producer. `ranks` and `threads` 0: the cores granted here. `ingress`
    ranks receive, each over `streams` connections. Results go to `out`, staged out of `scratch` where that is given.
    `curve` encrypts the stream end to end, with keys created for the pair. A reconstruction that crashed is restarted
    `restarts` times at most, from its newest checkpoint in `checkpoints` (None: in the folder of the results).
    `view` serves the live view, and starts its web page here. `log_format` is that of both jobs: text or json.
    `settings` are assignments TABLE.KEY=VALUE for both jobs; `*_options` are passed on to one.
    """

    run: Path | None
    out: Path
    settings: tuple[str, ...] = ()
    side: JobSide | None = None
    rendezvous: Path | None = None
    producer: str | None = None
    credentials: Path | None = None
    curve: bool = False
    host: str = "127.0.0.1"
    producer_host: str | None = None
    advertise: str | None = None
    port: int = 0
    ranks: int = 0
    threads: int = 0
    ingress: int = 1
    streams: int = 1
    launcher: tuple[str, ...] = ()
    producer_launcher: tuple[str, ...] = ()
    scratch: Path | None = None
    restarts: int = 0
    checkpoints: Path | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    producer_options: tuple[str, ...] = ()
    recon_options: tuple[str, ...] = ()
    view: bool = False
    log_format: str = "text"

    @property
    def results(self) -> Path:
        """Where the reconstruction job writes."""
        return self.scratch or self.out

    def host_of(self, side: JobSide) -> str:
        """The host name of a side's servers."""
        return (self.producer_host or self.host) if side == "producer" else self.host


def command(
    plan: Plan,
    side: JobSide,
    credentials: Path,
    announcement: Path,
    temporary: Path,
    *,
    curve: Path | None = None,
    resume: Path | None = None,
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The command line that starts one job, and the extra variables of its environment.

    `curve` are the keys of an encrypted stream, `resume` is the folder of checkpoints to continue from. A job on this
    machine has its temporary files in `temporary`.
    Raises ConfigError when its ranks need an mpirun and there is none.
    """
    address = f"{plan.host_of(side)}:{plan.port}"
    common = ["--control", address, "--credentials", str(credentials), "--announce", str(announcement)]
    common += ["--log-format", plan.log_format] if plan.log_format != "text" else []
    if curve is not None:
        common += ["--curve", str(curve)]
    env = {name: value for name, value in ONE_THREAD.items() if name not in os.environ}
    if not (plan.producer_launcher if side == "producer" else plan.launcher):
        env["TMPDIR"] = str(temporary)
    words, more = _producer(plan) if side == "producer" else _recon(plan, resume)
    return (*words, *common), env | more


def _producer(plan: Plan) -> tuple[list[str], dict[str, str]]:
    values: dict[str, object] = {
        "producer.peer_timeout_s": plan.timeouts.partner_s,
        "tunnel.data_host": f'"{plan.host_of("producer")}"',
    }
    if plan.advertise is not None:
        values["tunnel.advertise"] = f'"{plan.advertise}"'
    if plan.credentials is None:  # the reconstruction's side opens the session of a pair
        values["tunnel.clients"] = '["recon"]'
    settings = _settings(values)
    return [*plan.producer_launcher, *PROGRAM, "produce", *_run(plan), *settings, *plan.producer_options], {}


def _recon(plan: Plan, resume: Path | None) -> tuple[list[str], dict[str, str]]:
    ranks, threads = plan.ranks, plan.threads
    launcher, env = list(plan.launcher), dict[str, str]()
    if not launcher:
        grant = granted()
        ranks, threads = share(grant, ranks, threads)
        launcher, env = mpirun(ranks, threads, grant)
    sizes = [word for name, size in (("--ranks", ranks), ("--threads", threads)) if size for word in (name, str(size))]
    values: dict[str, object] = {"stream.connect_timeout_s": plan.timeouts.partner_s, "stream.ingress": plan.ingress}
    values["stream.streams"] = plan.streams
    if plan.ingress > 1:  # the other receiving ranks may be on other nodes
        values["tunnel.data_host"] = f'"{plan.host_of("recon")}"'
    settings = _settings(values)
    out = ["--out", str(plan.results)]
    live = ["--live", "tcp://127.0.0.1:0"] if plan.view else []
    more = [*live, *plan.recon_options, *(["--resume", str(resume)] if resume else [])]
    return [*launcher, *PROGRAM, "recon", *_run(plan), *out, *sizes, *settings, *more], env


def share(grant: CoreGrant, ranks: int, threads: int) -> tuple[int, int]:
    """Ranks and threads per rank on this machine, where 0 was given; logs them."""
    ranks = ranks or grant.ranks
    threads = threads or grant.threads(ranks)
    crowded = ", oversubscribed: timings are meaningless" if ranks * threads > grant.cores else ""
    _LOG.info("%s; ranks × threads: %d × %d%s", grant, ranks, threads, crowded)
    return ranks, threads


def _run(plan: Plan) -> list[str]:
    run = [str(plan.run)] if plan.run else []
    return run + [word for setting in plan.settings for word in ("--set", setting)]


def _settings(values: dict[str, object]) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
