"""Cores that this machine grants to this process, and the placement of ranks and threads on them."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ministream.errors import ConfigError

_CPUS = Path("/sys/devices/system/cpu")
_NODES = Path("/sys/devices/system/node")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class CoreGrant:
    """The cores that this process may use: by affinity, and by a cgroup's quota (None: no limit).

    `domains` is how many of the granted cores each NUMA domain has; hyper-threads of one core count once.
    `whole` says that they are all cores of the machine.
    """

    domains: tuple[int, ...]
    quota: float | None = None
    whole: bool = True

    @property
    def cores(self) -> int:
        """Whole cores that may be kept busy; at least one."""
        affine = sum(self.domains)
        return max(1, affine if self.quota is None else min(affine, math.floor(self.quota)))

    @property
    def ranks(self) -> int:
        """Ranks that suit the machine: one per NUMA domain, so that threads read local memory."""
        return min(self.cores, len(self.domains))

    def threads(self, ranks: int) -> int:
        """Threads of each of `ranks` ranks on this machine; at least one."""
        return max(1, self.cores // ranks)

    def __str__(self) -> str:
        quota = f", by quota {self.quota:.1f}" if self.quota is not None else ""
        return (
            f"cores granted: {self.cores} (by affinity {sum(self.domains)}{quota}), NUMA domains: {len(self.domains)}"
        )


def granted() -> CoreGrant:
    """Read the cores that the kernel grants to this process."""
    cores = physical(os.sched_getaffinity(0))
    domains = [len(cores & _list(node / "cpulist")) for node in sorted(_NODES.glob("node[0-9]*"))]
    online = physical(_list(_CPUS / "online"))
    return CoreGrant(
        domains=tuple(filter(None, domains)) or (len(cores),),
        quota=_quota(),
        whole=cores >= online,
    )


def physical(cpus: set[int]) -> set[int]:
    """One CPU per core in `cpus`: the first of its hyper-threads."""
    return {min(_list(_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list") & cpus or {cpu}) for cpu in cpus}


def parse_list(text: str) -> set[int]:
    """The numbers of a kernel list such as `0-3,8`."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def parse_quota(text: str) -> float | None:
    """Cores from the text of cgroup v2's `cpu.max`; None for `max`."""
    quota, period = text.split()
    return None if quota == "max" else int(quota) / int(period)


def nodes_of_job(environment: Mapping[str, str]) -> int:
    """Nodes of the batch job with this environment (Slurm or PBS); 1 outside of one."""
    parts = [text for name, text in environment.items() if name.startswith("SLURM_JOB_NUM_NODES_HET_GROUP_")]
    if parts:
        return sum(map(int, parts))
    if "PBS_NODEFILE" in environment:
        return len(set(_read(environment["PBS_NODEFILE"]).split())) or 1
    return int(environment.get("SLURM_JOB_NUM_NODES", "1"))


def mpirun(ranks: int, threads: int, grant: CoreGrant) -> tuple[list[str], dict[str, str]]:
    """The command prefix that starts a program as ranks on this machine, and the environment that it needs.

    A rank is bound to `threads` exclusive cores if there are enough, and to none if ranks share cores or only some
    cores of the machine are granted. On the one node of a Slurm job the granted cores count, not Slurm's tasks
    (`salloc -n1 -c8`). Raises ConfigError when there is no mpirun.
    """
    program = shutil.which("mpirun") or shutil.which("mpiexec")
    if program is None:
        raise ConfigError("no mpirun on the PATH. Load the MPI module, or install openmpi-bin or mpich")
    crowded = ranks * threads > grant.cores
    bound = grant.whole and not crowded
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    if "Open MPI" not in version:
        return [program, "-n", str(ranks), "-bind-to", f"core:{threads}" if bound else "none"], {}
    bind = ["--map-by", f"slot:PE={threads}", "--bind-to", "core"] if bound else ["--bind-to", "none"]
    env = {"OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_mpi_yield_when_idle": "1"} if crowded else {}
    if "SLURM_JOB_ID" in os.environ and nodes_of_job(os.environ) == 1:
        # Open MPI 4, and PRRTE of Open MPI 5: the hosts and slots are this machine's, not those of the allocation
        env |= {"OMPI_MCA_ras": "^slurm", "PRTE_MCA_ras": "^slurm"}
    if os.geteuid() == 0:  # containers often have no other user
        env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return [program, "-n", str(ranks), *bind], env


def _quota() -> float | None:
    """The smallest CPU quota of this process's cgroup (version 2) and its parents; None without one."""
    own = next((line for line in _read("/proc/self/cgroup").splitlines() if line.startswith("0::")), "0::/")
    group = _CGROUP / own.removeprefix("0::").strip("/")
    texts = [_read(folder / "cpu.max") for folder in (group, *group.parents) if folder.is_relative_to(_CGROUP)]
    quotas = [quota for text in texts if text and (quota := parse_quota(text)) is not None]
    return min(quotas, default=None)


def _list(path: Path) -> set[int]:
    return parse_list(_read(path))


def _read(path: Path | str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # a kernel without this file has no such limit
        return ""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of one rank: its node, its cores there, and its threads."""

    node: str
    cores: frozenset[int]
    threads: int


def here(threads: int) -> Place:
    """This rank's place."""
    return Place(node=os.uname().nodename, cores=frozenset(physical(os.sched_getaffinity(0))), threads=threads)


def describe(places: Sequence[Place]) -> str:
    """The places of all ranks in one line; names nodes with more threads than cores."""
    nodes: dict[str, list[Place]] = {}
    for place in places:
        nodes.setdefault(place.node, []).append(place)
    each = _range(len(ranks) for ranks in nodes.values())
    threads, cores = _range(place.threads for place in places), _range(len(place.cores) for place in places)
    line = f"ranks: {len(places)} on {len(nodes)} nodes ({each} each); threads per rank: {threads}; cores: {cores}"
    crowded = [text for node, ranks in nodes.items() if (text := _crowding(node, ranks))]
    return f"{line}; oversubscribed: {', '.join(crowded)}" if crowded else line


def _crowding(node: str, ranks: Sequence[Place]) -> str:
    threads = sum(place.threads for place in ranks)
    cores = len(frozenset().union(*(place.cores for place in ranks)))
    return f"{node} runs {threads} threads on {cores} cores" if threads > cores else ""


def _range(numbers: Iterable[int]) -> str:
    low, high = min(known := list(numbers)), max(known)
    return str(low) if low == high else f"{low} to {high}"
