"""Before anything starts: validate the configuration, predict what the job needs and the rate it keeps up with."""

from __future__ import annotations

import importlib
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ministream import registry
from ministream.app.recon.assignment import Assignment, assign, groups_of
from ministream.app.recon.sinograms import UpdateSinograms
from ministream.config import Config, WindowSection
from ministream.errors import ConfigError, MachineError
from ministream.model import FrameKind, Scan
from ministream.monitor import peak_memory_mib
from ministream.performance import GIB, MIB, Layout, Machine, Prediction, Workload, predict
from ministream.prep import chain
from ministream.prep.corrections import Corrector
from ministream.recon import backend, open_algorithm
from ministream.recon.footprint import padded_slices
from ministream.recon.geometry import Geometry
from ministream.recon.window import Window
from ministream.source import describe
from ministream.tunnel import curve
from ministream.tunnel.credentials import Credentials

# The sample that the speed is measured on: enough work to be steady, little enough to be quick.
_SAMPLE_UPDATES = 3e8
_SAMPLE_SLICES = 64
_SAMPLE_PROJECTIONS = 3

_IDLE = "import sys; from ministream.app import check; sys.stdout.write(str(check.loaded_mib(int(sys.argv[1]))))"
_IDLE_TIMEOUT_S = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class JobForecast:
    """Requirements and predicted speed of one job on this machine.

    `prediction` is the model's, with kernels and corrections measured here and no limit on network and disk; `gups` are
    10⁹ pixel updates per second of all ranks. `needed_mib_per_s` is the traffic of the stream at the producer's rate
    (none: at the predicted one). `corrections` is their chain in order, `corrections_s` its seconds per update.
    """

    scan: Scan
    window: WindowSection
    prediction: Prediction
    gups: float
    needed_mib_per_s: float
    volume_mib: float
    free_mib: float
    corrections: tuple[str, ...]
    corrections_s: float
    warnings: tuple[str, ...]

    @property
    def memory_mib(self) -> dict[str, float]:
        """Memory by part, of the rank with the largest slab."""
        return {part: size / MIB for part, size in self.prediction.memory.parts.items()}

    @property
    def peak_mib(self) -> dict[str, float]:
        """Peak memory of rank 0, of the other ranks that receive, and of all others."""
        return {ranks: size / MIB for ranks, size in self.prediction.memory.peaks.items()}


def check(config: Config, ranks: int) -> JobForecast:
    """Validate everything that can be validated without starting, and predict memory, traffic and speed.

    Describes the configured source (reads no projections, connects to no detector), opens the credentials and the
    output directory; measures the kernels for about a second on this machine's cores.

    Raises the typed error that the job itself would end with.
    """
    _check_tunnel(config)
    curve.load(config.stream.curve, "receiver")
    free_mib = _free_mib(config.output.directory)
    scan = _scan(config)
    threads = config.recon.threads or max(1, _cores() // ranks)
    assignment = assign(0, ranks, config, scan, threads)
    work = workload(assignment)
    gups = _measured_gups(assignment, min(_cores(), ranks * threads))
    corrections_s = _measured_corrections_s(assignment)
    layout = Layout(ranks=ranks, threads=threads, ingress=len(groups_of(config, ranks)))
    machine = _machine(assignment, gups, corrections_s, idle_rank_mib(assignment.slab.rows))
    prediction = predict(machine, work, layout)
    rate = config.producer.rate or prediction.projections_per_s
    return JobForecast(
        scan=scan,
        window=assignment.config.window,
        prediction=prediction,
        gups=gups,
        needed_mib_per_s=rate * scan.frame_bytes / MIB,
        volume_mib=work.volume_bytes / MIB,
        free_mib=free_mib,
        corrections=chain.described(config.prep),
        corrections_s=corrections_s,
        warnings=tuple(_warnings(assignment, prediction, _volumes(assignment) * work.volume_bytes / MIB, free_mib)),
    )


def _scan(config: Config) -> Scan:
    scan = describe(config.source, order=config.producer.order, repeat=config.producer.repeat)
    if scan is None:
        raise ConfigError(
            f"[source] {config.source.kind} is live: its images are not known before it runs. Check a phantom of the "
            "same size, in a file without [source]: --set source.kind=phantom --set source.rows=R --set source.cols=C"
        )
    return scan


def workload(assignment: Assignment) -> Workload:
    """Input of the performance model for a job."""
    scan, config = assignment.scan, assignment.config
    return Workload(
        rows=scan.rows,
        cols=scan.cols,
        projections=scan.projections,
        length=config.window.length,
        step=config.window.step,
        iterations=config.window.iterations,
        write_freq=config.window.write_freq,
        checkpoints=config.checkpoint.periodic,
        pixel_bytes=scan.frame_bytes // (scan.rows * scan.cols),
        calibration_frames=scan.flats + scan.darks,
        slice_size=assignment.n,
        credit_bytes=int(config.stream.credit_mib * MIB),
        batch=assignment.batch,
        recon=config.recon,
        writer=config.output.writer,
        corrected_sinograms=chain.corrects_sinograms(config.prep),
    )


def _machine(assignment: Assignment, gups: float, corrections_s: float, idle_rank_mib: float) -> Machine:
    """This machine as measured here: kernels, corrections of an update, an idle rank. The rest is unlimited."""
    ranks, slices = len(assignment.slabs), assignment.slab.rows
    busy = min(_cores(), ranks * assignment.threads)
    unlimited: dict[str, Any] = dict.fromkeys(
        ("weights_per_core", "ingress_bytes", "scatter_bytes", "write_bytes", "copy_bytes"),
        math.inf,
    )
    return Machine(
        cores_per_node=_cores(),
        ranks_per_node=ranks,
        memory_gib_per_node=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB,
        idle_rank_mib=idle_rank_mib,
        updates_per_core=gups * 1e9 / busy * padded_slices(slices) / slices,
        slices_0=0.0,
        prep_pixels_per_rank=assignment.config.window.step * slices * assignment.scan.cols / corrections_s,
        seconds_per_frame=0.0,
        **unlimited,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _check_tunnel(config: Config) -> None:
    tunnel = config.tunnel
    registry.load("ministream.tunnel.proxy", tunnel.kind)
    if tunnel.control is None or tunnel.insecure:
        return
    if tunnel.credentials is None:
        raise ConfigError("[tunnel] control needs credentials: create them with `ministream certs init DIR`")
    Credentials.load(tunnel.credentials)


def _free_mib(directory: Path) -> float:
    existing = next(parent for parent in (directory.absolute(), *directory.absolute().parents) if parent.is_dir())
    if not os.access(existing, os.W_OK):
        raise ConfigError(f"[output] directory {directory}: {existing} is not writable")
    return shutil.disk_usage(existing).free / 2**20


def idle_rank_mib(slices: int) -> float:
    """Memory of an idle rank, measured in a separate process.

    The kernels are compiled here first, because compiling takes some hundred MiB more.
    """
    loaded_mib(slices)
    # this process may be a rank; the measured process must not join its job
    alone = {name: text for name, text in os.environ.items() if not name.startswith(("OMPI_", "PMIX_", "PMI_"))}
    command = [sys.executable, "-c", _IDLE, str(slices)]
    try:
        told = subprocess.run(command, env=alone, check=True, capture_output=True, text=True, timeout=_IDLE_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        cause = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1]
        raise MachineError(f"cannot measure the memory of an idle rank: {cause}") from error
    return float(told.stdout.split()[-1])


def loaded_mib(slices: int) -> float:
    """Peak MiB of this process after loading all that a rank of `slices` slices loads."""
    importlib.import_module("ministream.app.recon.job")
    backend.default().warm_up(slices)
    return peak_memory_mib()


def _measured_gups(assignment: Assignment, threads: int) -> float:
    """10⁹ pixel updates per second of the configured algorithm, measured on a part of its own window."""
    n, cols = assignment.n, assignment.scan.cols
    slices = min(assignment.slab.rows, _SAMPLE_SLICES)
    projections = max(1, min(assignment.config.window.length, math.ceil(_SAMPLE_UPDATES / (n * n * slices))))
    geometry = Geometry(n=n, cols=cols, axis_col=assignment.axis_col)
    window = Window(length=projections, step=projections, cols=cols, slices=slices)
    for index in range(projections):
        window.slot(index, math.pi * index / projections)
    backend.default().set_threads(threads)
    algorithm = open_algorithm(assignment.config.recon, geometry, slices)
    image = backend.default().new_image(geometry, slices)
    algorithm.update(image, window, 1)  # computes the weights
    started = time.perf_counter()
    report = algorithm.update(image, window, 2)
    return n * n * projections * slices * report.iterations / (time.perf_counter() - started) / 1e9


def _measured_corrections_s(assignment: Assignment) -> float:
    """Seconds that a rank needs to correct the projections of one update, and the sinograms of a full window.

    Measured on a few projections, and on as many slices as the rank has threads.
    """
    scan, prep, window = assignment.scan, assignment.config.prep, assignment.config.window
    rows, cols = assignment.slab.rows, scan.cols
    corrector = Corrector(rows=rows, cols=cols, options=prep, pixel_size_um=scan.pixel_size_um)
    corrector.add(FrameKind.FLAT, np.full((rows, cols), 40_000, np.uint16))
    held = Window(length=window.length, step=window.step, cols=cols, slices=min(rows, assignment.threads))
    for index in range(window.length):
        held.slot(index, math.pi * index / window.length)
    held.data[:] = np.random.default_rng(0).normal(0.5, 0.1, held.data.shape)
    sinograms = UpdateSinograms(assignment, rows=held.slices)
    raw, out = np.full((rows, cols), 20_000, np.uint16), np.zeros((cols, padded_slices(rows)), np.float32)
    corrector.correct(raw, out)  # compiles
    each_s = min(_seconds(lambda: corrector.correct(raw, out)) for _ in range(_SAMPLE_PROJECTIONS))
    return window.step * each_s + _seconds(lambda: sinograms.of(held, backend.idle)) * rows / held.slices


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _volumes(assignment: Assignment) -> int:
    """Number of volumes that the job writes."""
    window = assignment.config.window
    updates = -(-assignment.scan.projections // window.step)
    return 1 + (updates // window.write_freq if window.write_freq else 0)


def _warnings(assignment: Assignment, prediction: Prediction, written_mib: float, free_mib: float) -> list[str]:
    found = []
    asked, rate, cores = assignment.config.producer.rate, prediction.projections_per_s, _cores()
    if asked and asked > rate:
        found.append(
            f"the producer sends {asked:g} projections/s, this machine keeps up with {rate:.3g}: "
            f"use more ranks, fewer iterations or a larger step"
        )
    if written_mib > free_mib:
        found.append(f"the volumes need {written_mib:.0f} MiB, the output directory has {free_mib:.0f} MiB free")
    if prediction.memory_share > 1:
        needed = prediction.memory_gib_per_node
        found.append(
            f"all ranks together need {needed:.1f} GiB, this machine has {needed / prediction.memory_share:.1f} GiB: "
            "use more nodes or a shorter window"
        )
    if len(assignment.slabs) > cores:
        found.append(f"{len(assignment.slabs)} ranks share {cores} cores here: the prediction is for this machine")
    if padded_slices(assignment.slab.rows) > 1.5 * assignment.slab.rows:
        rows = assignment.slab.rows
        found.append(f"slabs of {rows} rows are padded to {padded_slices(rows)}: fewer ranks do less work")
    return found
