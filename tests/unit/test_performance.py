"""The performance model against cases that can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ministream.cli.performance import load_machine
from ministream.errors import ConfigError
from ministream.performance import (
    Layout,
    Machine,
    Moment,
    Workload,
    memory,
    moments,
    nodes_for,
    on_nodes,
    predict,
    scan_s,
)
from ministream.storage import scratch_bytes

MACHINE = Machine(
    cores_per_node=4,
    ranks_per_node=2,
    memory_gib_per_node=16.0,
    updates_per_core=1e9,
    slices_0=0.0,
    weights_per_core=1e15,
    prep_pixels_per_rank=1e12,
    ingress_bytes=1e9,
    seconds_per_frame=0.0,
    ingress_cores=0.0,
    scatter_bytes=2e9,
    write_bytes=1e8,
)
WORK = Workload(rows=64, cols=1000, projections=400, length=100, step=50)


def with_(**constants: float) -> Machine:
    return Machine.model_validate(MACHINE.model_dump() | constants)


def seconds_of(part: str, machine: Machine = MACHINE, work: Workload = WORK, ranks: int = 2, threads: int = 2) -> float:
    return predict(machine, work, Layout(ranks=ranks, threads=threads)).parts_s[part]


def test_an_update_costs_its_pixel_updates() -> None:
    # 1000² pixels × 100 projections × 32 slices on 2 threads of 1e9 updates/s
    assert seconds_of("update") == pytest.approx(1.6)


def test_padding_and_shared_work_cost_too() -> None:
    assert seconds_of("update", work=replace(WORK, rows=33)) == pytest.approx(1.6)
    assert seconds_of("update", with_(slices_0=32.0)) == pytest.approx(3.2)


def test_a_crowded_node_is_slower() -> None:
    """Crowding counts in full when all of the four cores compute, and not at all when one does."""
    assert seconds_of("update", with_(crowding=0.5)) == pytest.approx(1.5 * 1.6)
    assert seconds_of("update", with_(crowding=0.5), ranks=1, threads=1) == pytest.approx(4 * 1.6)
    assert seconds_of("update", ranks=4, threads=2) == pytest.approx(1.6)  # eight threads on four cores


def test_ranks_share_the_work_on_weights_and_exchange_them() -> None:
    # 1000² pixels, 50 projections that come (twice) and 50 that go
    slow = with_(weights_per_core=1e8)
    assert seconds_of("weights", slow, ranks=1) == pytest.approx(1000**2 * 150 / 2e8)
    assert seconds_of("weights", slow, ranks=2) == pytest.approx(1000**2 * 150 / 4e8)
    assert seconds_of("exchange", ranks=1) == 0
    assert seconds_of("exchange", ranks=4, threads=1) == pytest.approx(3e6 / 2e9)
    assert seconds_of("weights", with_(seconds_per_pixel=1e-8, seconds_per_update=0.1)) == pytest.approx(0.11, rel=1e-2)


def test_cores_that_receive_do_not_compute() -> None:
    """Two of four cores receive for a second: half a second of all four, unless cores are free."""
    slow = with_(ingress_bytes=50 * WORK.frame_bytes, ingress_cores=2.0)
    assert seconds_of("receiving", slow) == pytest.approx(0.5)
    assert seconds_of("receiving", slow, ranks=2, threads=1) == 0


def test_the_updates_of_a_scan() -> None:
    work = replace(WORK, projections=190, length=100, step=60)
    assert moments(work) == [
        Moment(held=60, new=60),
        Moment(held=100, new=60, gone=20),
        Moment(held=100, new=60, gone=60),
        Moment(held=100, new=10, gone=10),
    ]
    assert moments(work)[1].changed == 140
    assert moments(replace(work, projections=100, length=50, step=50))[1] == Moment(held=50, new=50)


def test_compute_bounds_a_slow_machine() -> None:
    found = predict(MACHINE, WORK, Layout(ranks=2, threads=2))
    assert found.bound == "update"
    assert found.seconds == pytest.approx(1.6, rel=1e-3)
    assert found.projections_per_s == pytest.approx(50 / 1.6, rel=1e-3)


def test_ingress_bounds_a_fast_machine_until_more_ranks_receive() -> None:
    fast = with_(updates_per_core=1e13)
    found = predict(fast, WORK, Layout(ranks=4, threads=1))
    assert found.bound == "ingress"
    assert found.projections_per_s == pytest.approx(1e9 / (64 * 1000 * 2))
    doubled = predict(fast, WORK, Layout(ranks=4, threads=1, ingress=2))
    assert doubled.projections_per_s == pytest.approx(2 * found.projections_per_s)


def test_scatter_bounds_where_the_network_between_ranks_is_slow() -> None:
    slow = with_(updates_per_core=1e13, scatter_bytes=1e8)
    found = predict(slow, WORK, Layout(ranks=4, threads=1))
    assert found.bound == "scatter"
    assert found.scatter_s == pytest.approx(50 * 64 * 1000 * 2 * 0.75 / 1e8)
    assert predict(slow, WORK, Layout(ranks=1, threads=1)).scatter_s == 0


def test_snapshots_are_written_while_the_ranks_compute() -> None:
    """Only the copy takes their time, until the disk is slower than they are."""
    work = replace(WORK, write_freq=2)
    plain = predict(MACHINE, WORK, Layout(ranks=2, threads=2))
    written = predict(with_(copy_bytes=1e9), work, Layout(ranks=2, threads=2))
    assert written.compute_s - plain.compute_s == pytest.approx(32 * 1000**2 * 4 / 1e9 / 2)
    assert written.write_s == pytest.approx(64 * 1000**2 * 4 / 1e8 / 2)
    assert predict(with_(write_bytes=1e6), work, Layout(ranks=2, threads=2)).bound == "write"


def test_a_snapshot_takes_one_more_image() -> None:
    """Unless HDF5 writes it at once: 32 slices of 1000² float32 values on each of two ranks."""
    layout, often = Layout(ranks=2, threads=2), replace(WORK, write_freq=1)
    plain, copied, waited = (memory(MACHINE, work, layout) for work in (WORK, often, replace(often, writer="hdf5")))
    buffer = scratch_bytes(32, 1000)  # of the snapshots' own writer
    assert copied.of_node(layout) - plain.of_node(layout) == 2 * (32 * 1000**2 * 4 + buffer)
    assert waited == plain
    assert memory(MACHINE, replace(WORK, writer="direct"), layout).mpi_io == 0 < plain.mpi_io


def test_checkpoints_take_copies_of_image_and_window() -> None:
    """Of the 32 slices on each of two ranks, 1000² pixels, the window's 1000 columns, the gate's 6 numbers twice."""
    layout, saved = Layout(ranks=2, threads=2), replace(WORK, checkpoints=True)
    more = memory(MACHINE, saved, layout).of_node(layout) - memory(MACHINE, WORK, layout).of_node(layout)
    assert more == 2 * 32 * (1000**2 + WORK.length * 1000 + 12 * WORK.projections) * 4


def test_each_receiving_rank_holds_the_credit_of_its_own_band() -> None:
    work = Workload(rows=10, cols=256, projections=32, length=32, step=32)
    credit = {k: memory(MACHINE, work, Layout(ranks=4, threads=1, ingress=k)).credit for k in (1, 2, 4)}
    # 10 rows on 4 ranks are slabs of 3, 3, 2, 2
    assert credit == {1: 32 * 10 * 512, 2: 32 * 6 * 512, 4: 32 * 3 * 512}


def test_a_scan_of_unknown_length_fills_the_credit() -> None:
    endless = replace(WORK, projections=0)
    assert memory(MACHINE, endless, Layout(ranks=1, threads=4)).credit == endless.credit_bytes


def test_a_node_holds_its_ranks() -> None:
    """Rank 0's node: all that receive on one node, their share on two."""
    parts = memory(MACHINE, WORK, Layout(ranks=4, threads=1, ingress=2))
    every = 4 * sum(parts.slab.values()) + parts.mpi_io + 2 * (parts.credit + parts.staging)
    assert parts.of_node(Layout(ranks=4, threads=1)) == every
    half = 2 * sum(parts.slab.values()) + parts.mpi_io + parts.credit + parts.staging
    assert parts.of_node(Layout(ranks=4, threads=1, nodes=2)) == half


def test_missing_memory_is_the_limit() -> None:
    assert predict(with_(memory_gib_per_node=0.1), WORK, Layout(ranks=2, threads=2)).bound == "memory"


def test_a_whole_scan_fills_its_window_first() -> None:
    # Eight updates; the first sees half a window. All 400 frames are within the credit.
    assert scan_s(MACHINE, WORK, Layout(ranks=2, threads=2)) == pytest.approx(7.5 * 1.6, rel=1e-3)


def test_what_the_credit_does_not_cover_arrives_later() -> None:
    """The credit covers the first 300 frames; the last 100 take longer than the updates before them."""
    slow = with_(updates_per_core=1e12, ingress_bytes=WORK.frame_bytes)
    work = replace(WORK, credit_bytes=300 * WORK.frame_bytes)
    assert scan_s(slow, work, Layout(ranks=2, threads=2)) == pytest.approx(100, rel=1e-3)
    assert scan_s(slow, replace(work, credit_bytes=0), Layout(ranks=2, threads=2)) == pytest.approx(400, rel=1e-3)


def test_the_fewest_nodes_that_keep_up() -> None:
    found = nodes_for(MACHINE, WORK, 100.0)
    assert found is not None
    assert found.projections_per_s >= 100
    fewer = on_nodes(MACHINE, WORK, found.layout.nodes - 1)
    assert fewer.projections_per_s < 100


def test_no_number_of_nodes_beats_the_ingress() -> None:
    limit = MACHINE.ingress_bytes / WORK.frame_bytes
    assert nodes_for(MACHINE, WORK, 1.01 * limit) is None


def test_more_nodes_never_do_less() -> None:
    rates = [on_nodes(MACHINE, WORK, nodes).projections_per_s for nodes in (1, 2, 4, 8, 16)]
    assert rates == sorted(rates)


def test_ranks_with_too_few_slices_are_left_out() -> None:
    """Sixteen nodes of two ranks would have two slices each, which cost hardly less than four."""
    shared = with_(slices_0=30.0, ranks_per_node=2)
    assert on_nodes(shared, WORK, 16).layout == Layout(ranks=16, threads=4, nodes=16)
    assert on_nodes(MACHINE, WORK, 1).layout.ranks in (1, 2)


def test_a_machine_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "machine.toml"
    path.write_text("cores_per_node = 0\n")
    with pytest.raises(ConfigError, match=r"machine\.toml"):
        load_machine(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_machine(tmp_path / "none.toml")


def test_a_rank_has_no_more_threads_than_a_node_has_cores() -> None:
    few_rows = replace(WORK, rows=3)
    layout = on_nodes(MACHINE, few_rows, nodes=8).layout
    assert (layout.ranks, layout.threads) == (3, 4)
