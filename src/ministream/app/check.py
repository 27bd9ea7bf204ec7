"""Before anything starts: is the configuration sound, what will the job need, and will it keep up?"""

from __future__ import annotations

import importlib
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ministream import registry
from ministream.app.recon.assignment import Assignment, assign, groups_of
from ministream.config import Config
from ministream.errors import ConfigError, MachineError
from ministream.model import Scan
from ministream.monitor import peak_memory_mib
from ministream.parallel.row_scatter import RowScatter
from ministream.recon import backend, memory, open_algorithm
from ministream.recon.footprint import padded_slices
from ministream.recon.geometry import Geometry
from ministream.recon.window import Window
from ministream.source import describe
from ministream.storage import scratch_bytes
from ministream.tunnel import curve
from ministream.tunnel.credentials import Credentials

# The sample that the speed is measured on: enough work to be steady, little enough to be quick.
_SAMPLE_UPDATES = 3e8
_SAMPLE_SLICES = 64

_IDLE = "import sys; from ministream.app import check; sys.stdout.write(str(check.idle_mib(int(sys.argv[1]))))"
_IDLE_TIMEOUT_S = 300.0

# What the MPI library gathers in on rank 0 when ranks write one file together (measured, Open MPI 4.1).
_MPI_IO_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class JobPrediction:
    """What one job will need on this kind of machine.

    Memory is in MiB: `base` is an idle rank (interpreter, MPI, numba), the other parts are of the rank with the
    largest slab; `credit` counts on the `receiving` ranks only, `MPI-IO` on rank 0, `staging` on those that receive
    nothing. `update_s` is one window update
    on all ranks together; `projections_per_s` what the job keeps up with; `needed_mib_per_s` what the stream then
    carries.
    """

    scan: Scan
    ranks: int
    threads: int
    receiving: tuple[int, ...]
    window_length: int
    window_step: int
    iterations: int
    memory_mib: dict[str, float]
    update_s: float
    gups: float
    projections_per_s: float
    needed_mib_per_s: float
    volume_mib: float
    free_mib: float
    warnings: tuple[str, ...]

    @property
    def peak_mib(self) -> dict[str, float]:
        """Predicted peak of rank 0 and of every other rank, those apart that receive too."""
        parts = self.memory_mib
        every = sum(size for part, size in parts.items() if part not in {"credit", "MPI-IO", "staging"})
        peaks = {"rank 0": every + parts["credit"] + parts["MPI-IO"]}
        if len(self.receiving) > 1:
            peaks["ranks that receive"] = every + parts["credit"]
        return peaks | {"other ranks": every + parts["staging"]}


def check(config: Config, ranks: int) -> JobPrediction:
    """Validate everything that can be validated without starting, and predict memory, traffic and speed.

    Describes the configured source (reads no projections, connects to no detector), opens the credentials and the
    output directory; measures the kernels for about a second on this machine's cores.

    Raises the typed error that the job itself would end with.
    """
    _check_tunnel(config)
    curve.load(config.stream.curve, "receiver")
    free_mib = _free_mib(config.output.directory)
    scan = _scan(config)
    cores = len(os.sched_getaffinity(0))
    threads = config.recon.threads or max(1, cores // ranks)
    assignment = assign(0, ranks, config, scan, threads)
    base_mib = _base_mib(assignment.slab.rows)
    gups = _measured_gups(assignment, min(cores, ranks * threads))
    window = assignment.config.window
    updates_per_update = scan.cols**2 * window.length * scan.rows * window.iterations
    update_s = updates_per_update / (gups * 1e9)
    rate = window.step / update_s
    volume_mib = scan.rows * scan.cols**2 * 4 / 2**20
    return JobPrediction(
        scan=scan,
        ranks=ranks,
        threads=threads,
        receiving=tuple(group.start for group in groups_of(config, ranks)),
        window_length=window.length,
        window_step=window.step,
        iterations=window.iterations,
        memory_mib={"base": base_mib} | {part: size / 2**20 for part, size in _memory(assignment).items()},
        update_s=update_s,
        gups=gups,
        projections_per_s=rate,
        needed_mib_per_s=(config.producer.rate or rate) * scan.frame_bytes / 2**20,
        volume_mib=volume_mib,
        free_mib=free_mib,
        warnings=tuple(_warnings(assignment, rate, _volumes(assignment) * volume_mib, free_mib, cores)),
    )


def _scan(config: Config) -> Scan:
    scan = describe(config.source, order=config.producer.order, repeat=config.producer.repeat)
    if scan is None:
        raise ConfigError(
            f"[source] {config.source.kind} is live: its images are not known before it runs. Check a phantom of the "
            "same size, in a file without [source]: --set source.kind=phantom --set source.rows=R --set source.cols=C"
        )
    return scan


def _check_tunnel(config: Config) -> None:
    tunnel = config.tunnel
    registry.load("ministream.tunnel.proxy", tunnel.kind)
    if tunnel.control is None or tunnel.insecure:
        return
    if tunnel.credentials is None:
        raise ConfigError("[tunnel] control needs credentials: make them with `ministream certs init DIR`")
    Credentials.load(tunnel.credentials)


def _free_mib(directory: Path) -> float:
    existing = next(parent for parent in (directory.absolute(), *directory.absolute().parents) if parent.is_dir())
    if not os.access(existing, os.W_OK):
        raise ConfigError(f"[output] directory {directory}: {existing} is not writable")
    return shutil.disk_usage(existing).free / 2**20


def _base_mib(slices: int) -> float:
    """What an idle rank holds, in a process of its own, for which the kernels are there already.

    Compiling them, should they not be, takes some hundred MiB more, and is done here.
    """
    idle_mib(slices)
    # not a rank of whatever this process may be a rank of
    alone = {name: text for name, text in os.environ.items() if not name.startswith(("OMPI_", "PMIX_", "PMI_"))}
    command = [sys.executable, "-c", _IDLE, str(slices)]
    try:
        told = subprocess.run(command, env=alone, check=True, capture_output=True, text=True, timeout=_IDLE_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        cause = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1]
        raise MachineError(f"the memory of an idle rank cannot be measured: {cause}") from error
    return float(told.stdout.split()[-1])


def idle_mib(slices: int) -> float:
    """MiB that this process has held at most, once it has loaded what a rank of `slices` slices loads."""
    importlib.import_module("ministream.app.recon.job")
    backend.default().warm_up(slices)
    return peak_memory_mib()


def _measured_gups(assignment: Assignment, threads: int) -> float:
    """10⁹ pixel updates per second of the configured algorithm, measured on a part of its own window."""
    n = assignment.scan.cols
    slices = min(assignment.slab.rows, _SAMPLE_SLICES)
    projections = max(1, min(assignment.config.window.length, math.ceil(_SAMPLE_UPDATES / (n * n * slices))))
    geometry = Geometry(n=n, cols=n, axis_col=assignment.axis_col)
    window = Window(length=projections, step=projections, cols=n, slices=slices)
    for index in range(projections):
        window.slot(index, math.pi * index / projections)
    backend.default().set_threads(threads)
    algorithm = open_algorithm(assignment.config.recon, geometry, slices)
    image = backend.default().new_image(geometry, slices)
    algorithm.update(image, window, 1)  # makes the weights
    started = time.perf_counter()
    report = algorithm.update(image, window, 2)
    return n * n * projections * slices * report.iterations / (time.perf_counter() - started) / 1e9


def _memory(assignment: Assignment) -> dict[str, int]:
    """Bytes by part, of the largest slab, which is rank 0's."""
    scan, slices, window = assignment.scan, assignment.slab.rows, assignment.config.window
    geometry = Geometry(n=scan.cols, cols=scan.cols, axis_col=assignment.axis_col)
    copy = scan.cols**2 * padded_slices(slices) * 4 if _writes_behind(assignment) else 0
    slab = memory(assignment.config.recon, geometry, slices, window.length)
    frames = scan.projections + scan.flats + scan.darks
    band_bytes = scan.frame_bytes * assignment.band[-1].stop // scan.rows
    return {
        "window": slab.window,
        "image": slab.images,
        "residual": slab.residuals,
        "weights": slab.weights,
        "calibration": 6 * slices * scan.cols * 8,
        "staging": RowScatter.memory_bytes(scan, assignment.slab, assignment.batch, rank=1),
        "credit": min(int(assignment.config.stream.credit_mib * 2**20), frames * band_bytes),
        "writing": scratch_bytes(slices, scan.cols) + copy,
        "MPI-IO": _MPI_IO_BYTES if len(assignment.slabs) > 1 and assignment.config.output.writer != "direct" else 0,
    }


def _writes_behind(assignment: Assignment) -> bool:
    """Whether a rank keeps a copy of its image, to write it while the image goes on."""
    return assignment.config.output.writer != "hdf5" and assignment.config.window.write_freq > 0


def _volumes(assignment: Assignment) -> int:
    """How many volumes the job writes."""
    window = assignment.config.window
    updates = -(-assignment.scan.projections // window.step)
    return 1 + (updates // window.write_freq if window.write_freq else 0)


def _warnings(assignment: Assignment, rate: float, written_mib: float, free_mib: float, cores: int) -> list[str]:
    found = []
    asked = assignment.config.producer.rate
    if asked and asked > rate:
        found.append(
            f"the producer's {asked:g} projections/s are more than the {rate:.3g} that this machine keeps up with: "
            f"use more ranks, fewer iterations or a larger step"
        )
    if written_mib > free_mib:
        found.append(f"the volumes need {written_mib:.0f} MiB, the output directory has {free_mib:.0f} MiB free")
    if len(assignment.slabs) > cores:
        found.append(f"{len(assignment.slabs)} ranks share {cores} cores here: the prediction is for this machine")
    if padded_slices(assignment.slab.rows) > 1.5 * assignment.slab.rows:
        rows = assignment.slab.rows
        found.append(f"slabs of {rows} rows are padded to {padded_slices(rows)}: fewer ranks do less work")
    return found
