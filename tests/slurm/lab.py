"""A real Slurm on one host for the tests: munged, slurmctld and several slurmd, in a private directory on free ports.

Needs neither systemd nor cgroups nor an accounting database. Each daemon runs in the foreground as a child of
this process, so that the end of the lab ends exactly what it started. With `networks`, every node has a network
and host name of its own, so that an address that is only good on one machine is found out.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.ports import free_ports
from tests.waiting import HANG_S, eventually

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun")
CANCEL_LIMIT_S = 5
END_LIMIT_S = 20

_CONF = """\
ClusterName=lab
SlurmctldHost={controller}({controller_address})
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={home}/munge/socket
CredType=cred/munge
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.%n.pid
SlurmdSpoolDir={home}/%n/spool
TmpFS={home}/%n/tmp
StateSaveLocation={home}/state
TaskProlog={home}/task-prolog
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=pmix
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
MinJobAge=600
KillWait=30
OverTimeLimit=0
SlurmctldTimeout=30
SlurmdTimeout=60
PropagateResourceLimits=NONE
"""

# Nodes that share one host would share one shared-memory segment, and ranks that do not know that they share
# cores would spin: both only concern a lab on one machine.
_TASK_PROLOG = """\
#!/bin/sh
echo "export OMPI_MCA_btl_vader_backing_directory={home}/$SLURMD_NODENAME/tmp"
echo "export OMPI_MCA_btl_tcp_if_include={interface}"
echo "export OMPI_MCA_btl_base_warn_component_unused=0"
echo "export OMPI_MCA_mpi_yield_when_idle=1"
"""


def missing_programs() -> list[str]:
    """What must be installed before a lab can start."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


@dataclass(kw_only=True)
class Lab:
    """A running cluster; `env` is the environment in which the Slurm commands find it."""

    nodes: int = 2
    cpus: int = 4
    networks: bool = False
    home: Path = field(init=False)
    env: dict[str, str] = field(init=False)
    _daemons: list[subprocess.Popen[bytes]] = field(init=False, default_factory=list)
    _undo: contextlib.ExitStack = field(init=False, default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        # A short path: unix sockets have a limit of 108 characters.
        self.home = Path(tempfile.mkdtemp(prefix="slurm"))
        self.home.chmod(0o755)
        self.env = os.environ | {
            "SLURM_CONF": str(self.home / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, *command: str | Path, timeout_s: float = HANG_S, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a Slurm command to its end and return its output, whatever its status."""
        return subprocess.run(
            [str(word) for word in command],
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def log_of(self, folder: Path, side: str) -> str:
        """The log of one side's job in the folder of a pair."""
        return "\n".join(log.read_text(errors="replace") for log in sorted(folder.glob(f"{side}-*.log")))

    def wait(self, job: str) -> None:
        """Wait until a job is over."""
        eventually(lambda: job not in self.jobs(), self.logs)

    def jobs(self) -> dict[str, str]:
        """The state of every job that is not yet over, by job id."""
        listed = self.run("squeue", "-h", "-o", "%i %T").stdout.split("\n")
        return dict(line.split() for line in listed if line)

    def steps(self) -> list[int]:
        """Processes of this cluster's jobs, and the slurmstepd that each step has: orphans, by their environment."""
        mark = f"SLURM_CONF={self.env['SLURM_CONF']}".encode()
        daemons = {os.getpid(), *(daemon.pid for daemon in self._daemons)}
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) not in daemons:
                    found.append(int(entry.name))
        return found

    def logs(self) -> str:
        """The last lines of every daemon's log."""
        return "\n".join(
            f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            for log in sorted(self.home.glob("*.log"))
        )

    def _start(self) -> None:
        for folder in ("munge", "state", *(f"n{n}/{part}" for n in self._numbers for part in ("spool", "tmp"))):
            (self.home / folder).mkdir(parents=True)
        (self.home / "munge").chmod(0o755)
        key = self.home / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        self._daemon(
            "munged",
            "--foreground",
            f"--key-file={key}",
            *(f"--{name}-file={self.home}/munge/{name}" for name in ("pid", "seed", "log")),
            f"--socket={self.home}/munge/socket",
        )
        eventually((self.home / "munge" / "socket").exists, self.logs)
        network = self._undo.enter_context(_Networks(self.nodes, self.home)) if self.networks else None
        self._configure(network)
        self._daemon("slurmctld", "-D", "-c")
        for n in self._numbers:
            self._daemon(*(network.enter(n) if network else ()), "slurmd", "-D", "-N", f"n{n}")
        eventually(self._all_idle, self.logs)

    def _configure(self, network: _Networks | None) -> None:
        host = socket.gethostname().partition(".")[0]
        first = free_ports(self.nodes + 1)
        values = {
            "home": self.home,
            "user": getpass.getuser(),
            "controller": host,
            "controller_address": network.address(0) if network else "127.0.0.1",
            "controller_port": first,
        }
        nodes = [
            f"NodeName=n{n} NodeHostname={f'n{n}' if network else host}"
            f" NodeAddr={network.address(n) if network else '127.0.0.1'} Port={first + n} CPUs={self.cpus} Boards=1"
            f" SocketsPerBoard=1 CoresPerSocket={self.cpus} ThreadsPerCore=1 RealMemory=1024 State=UNKNOWN"
            for n in self._numbers
        ]
        partitions = [
            f"PartitionName={name} Nodes=n[1-{self.nodes}] Default={default} MaxTime=INFINITE State=UP"
            for name, default in (("compute", "YES"), ("beamline", "NO"))
        ]
        (self.home / "slurm.conf").write_text(_CONF.format(**values) + "\n".join([*nodes, *partitions]) + "\n")
        # With a fixed plugin slurmd also starts where no cgroup file system is mounted.
        (self.home / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        prolog = self.home / "task-prolog"
        prolog.write_text(_TASK_PROLOG.format(home=self.home, interface="eth0" if network else "lo"))
        prolog.chmod(0o755)

    @property
    def _numbers(self) -> range:
        return range(1, self.nodes + 1)

    def host(self, number: int) -> str:
        """The name under which a node is found in the network."""
        return f"n{number}" if self.networks else "localhost"

    def _daemon(self, *command: str) -> None:
        name = f"{len(self._daemons)}-{command[0]}.log"
        with (self.home / name).open("wb") as log:
            daemon = subprocess.Popen(
                command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._daemons.append(daemon)

    def _all_idle(self) -> bool:
        dead = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
        if dead:
            raise RuntimeError(f"ended at once: {dead}\n{self.logs()}")
        return self.run("sinfo", "-h", "-p", "compute", "-o", "%T %D").stdout.split() == ["idle", str(self.nodes)]

    def _stop(self) -> None:
        with self._undo:
            if len(self._daemons) > 1 and self.jobs():
                self.run("scancel", "--full", "--signal=KILL", f"--user={getpass.getuser()}")
                self.run("scancel", f"--user={getpass.getuser()}")
                with contextlib.suppress(AssertionError):
                    eventually(lambda: not self.jobs(), limit_s=CANCEL_LIMIT_S)
            # A step that is cancelled while it starts may wait for ever, and slurmd then waits for it.
            for pid in self.steps():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for daemon in reversed(self._daemons):
                daemon.terminate()
            for daemon in reversed(self._daemons):
                try:
                    daemon.wait(END_LIMIT_S)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
        shutil.rmtree(self.home)


class _Networks:
    """One network namespace with one address per node, on a bridge; number 0 is the controller's address."""

    def __init__(self, nodes: int, home: Path) -> None:
        self._nodes = nodes
        self._subnet = f"10.79.{os.getpid() % 256}"
        self._tag = f"{os.getpid() % 100000}"
        self._hosts = home / "hosts"

    def address(self, number: int) -> str:
        return f"{self._subnet}.{number or 254}"

    def enter(self, number: int) -> tuple[str, ...]:
        """The words before a command that make it run on a node."""
        # Not `ip netns exec`: it mounts /sys anew, which hides the cgroup file system from slurmd.
        setup = f'hostname n{number} && mount --bind {self._hosts} /etc/hosts && exec "$@"'
        namespace = f"/run/netns/{self._name(number)}"
        return "nsenter", f"--net={namespace}", "unshare", "--uts", "--mount", "sh", "-c", setup, "sh"

    def __enter__(self) -> Self:
        host = socket.gethostname()
        known = [f"127.0.0.1 localhost\n{self.address(0)} {host} {host.partition('.')[0]}"]
        self._hosts.write_text("\n".join(known + [f"{self.address(n)} n{n}" for n in self._numbers]) + "\n")
        try:
            self._lay()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for n in self._numbers:
            self._ip("netns", "del", self._name(n), check=False)
        self._ip("link", "del", self._bridge, check=False)

    def _lay(self) -> None:
        self._ip("link", "add", self._bridge, "type", "bridge")
        self._ip("addr", "add", f"{self.address(0)}/24", "dev", self._bridge)
        self._ip("link", "set", self._bridge, "up")
        for n in self._numbers:
            name = self._name(n)
            self._ip("netns", "add", name)
            self._ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            self._ip("link", "set", name, "master", self._bridge, "up")
            self._ip("-n", name, "addr", "add", f"{self.address(n)}/24", "dev", "eth0")
            self._ip("-n", name, "link", "set", "lo", "up")
            self._ip("-n", name, "link", "set", "eth0", "up")

    @property
    def _numbers(self) -> range:
        return range(1, self._nodes + 1)

    @property
    def _bridge(self) -> str:
        return f"slb{self._tag}"

    def _name(self, number: int) -> str:
        return f"sln{self._tag}-{number}"

    @staticmethod
    def _ip(*words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words], check=check, capture_output=True)


if __name__ == "__main__":
    with Lab() as cluster:
        os.write(1, f"export SLURM_CONF={cluster.env['SLURM_CONF']}\n".encode())
        signal.pause()
