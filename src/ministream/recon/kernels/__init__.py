"""The numerical core: forward and back projection of a slab on all threads.

Images are float32 [n, n, padded slices], sinograms float32 [projections, cols, padded slices], both C-contiguous;
`Beams` says which projections of a sinogram take part, and where they look from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ministream import jit
from ministream.recon.geometry import aligned_zeros, padded_slices
from ministream.recon.kernels import back as _back
from ministream.recon.kernels import elementwise as _elementwise
from ministream.recon.kernels import forward as _forward
from ministream.recon.kernels.threads import get_threads, idle, run, set_threads

__all__ = ["Beams", "back", "forward", "get_threads", "lane_blocks", "padded_slices", "set_threads", "warm_up", "weigh"]

Image = NDArray[np.float32]
Sinogram = NDArray[np.float32]
Progress = Callable[[], None]

MAX_LANES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Beams:
    """The projections `slots` of a sinogram, with the direction of every projection and the rotation axis."""

    slots: NDArray[np.int64]
    cos: NDArray[np.float64]
    sin: NDArray[np.float64]
    axis_col: float

    @classmethod
    def at(cls, angles_rad: NDArray[np.float64], axis_col: float, slots: NDArray[np.int64] | None = None) -> Self:
        """Projections at `angles_rad`, [projections]; `slots` picks some of them, in any order."""
        chosen = np.arange(len(angles_rad)) if slots is None else np.asarray(slots)
        # neighbours in angle cross the image in the same way, so they share what is in cache
        ordered = chosen[np.argsort(np.mod(angles_rad[chosen], np.pi), kind="stable")]
        return cls(
            slots=ordered.astype(np.int64), cos=np.cos(angles_rad), sin=np.sin(angles_rad), axis_col=float(axis_col)
        )


def lane_blocks(slices: int) -> list[tuple[int, int, int]]:
    """Padded slices as (lanes, first slice, number of blocks): the widest kernels first."""
    blocks, first, lanes = [], 0, MAX_LANES
    while first < slices:
        count = (slices - first) // lanes
        if count:
            blocks.append((lanes, first, count))
            first += count * lanes
        lanes //= 2
    return blocks


def forward(image: Image, sinogram: Sinogram, beams: Beams, *, gain: float = 1.0, progress: Progress = idle) -> None:
    """sinogram += gain · A image, for the projections of `beams`."""
    for lanes, first, blocks in lane_blocks(image.shape[2]):
        group = 16
        tasks = blocks * -(-beams.slots.size // group)
        kernel = _forward_kernel(lanes)

        def work(
            counter: NDArray[np.int64],
            quota: int,
            *,
            _k: Any = kernel,
            _t: int = tasks,
            _a: tuple[int, int, int] = (first, blocks, group),
            _l: int = lanes,
        ) -> int:  # noqa: E501
            rays = _forward.RAYS * _forward.LINES
            scratch = aligned_zeros((_forward.LINES * _forward.WIDTH * _l,))
            done: int = _k(
                counter, quota, _t, image, sinogram, beams.slots, beams.cos, beams.sin, beams.axis_col, gain, *_a,
                scratch, np.empty(rays, np.float32), np.empty(rays, np.float32), np.empty(rays, np.int32),
            )  # fmt: skip
            return done

        run(work, tasks, progress)


def back(
    sinogram: Sinogram,
    image: Image,
    beams: Beams,
    *,
    factor: NDArray[np.float32],
    multiply: bool = False,
    lower: float = -np.inf,
    upper: float = np.inf,
    progress: Progress = idle,
) -> None:
    """image = clip(image + factor · Aᵀ sinogram, lower, upper), or image · factor · Aᵀ sinogram with `multiply`.

    `factor` is float32 [n, n].
    """
    side = -(-image.shape[0] // _back.SIDE)
    mode = _back.MULTIPLY if multiply else _back.ADD
    for lanes, first, blocks in lane_blocks(image.shape[2]):
        tasks = blocks * side**2
        kernel = _back_kernel(lanes)

        def work(
            counter: NDArray[np.int64],
            quota: int,
            *,
            _k: Any = kernel,
            _t: int = tasks,
            _a: tuple[int, int] = (first, blocks),
            _l: int = lanes,
        ) -> int:  # noqa: E501
            done: int = _k(
                counter, quota, _t, image, sinogram, beams.slots, beams.cos, beams.sin, beams.axis_col,
                factor, mode, np.float32(lower), np.float32(upper), *_a,
                aligned_zeros((_back.GROUP * _back.SPAN * _l,)), aligned_zeros((_back.SIDE**2 * _l,)),
                aligned_zeros((_back.GROUP,)), aligned_zeros((_back.GROUP,)), np.empty(_back.GROUP, np.int32),
                aligned_zeros((4, _back.GROUP)),
            )  # fmt: skip
            return done

        run(work, tasks, progress)


def weigh(sinogram: Sinogram, beams: Beams, factor: NDArray[np.float32]) -> NDArray[np.float64]:
    """Multiply by `factor` [projections, cols]; return the squared norm per slice from before that."""
    norms = np.zeros((sinogram.shape[0], sinogram.shape[2]))

    def work(counter: NDArray[np.int64], quota: int) -> int:
        done: int = _elementwise.weigh(counter, quota, beams.slots.size, sinogram, beams.slots, factor, norms)
        return done

    run(work, beams.slots.size)
    total: NDArray[np.float64] = norms[beams.slots].sum(axis=0)
    return total


def warm_up(slices: int) -> None:
    """Compile or load every kernel that a slab of `slices` padded slices uses; one process of a node at a time."""
    with jit.one_compiles_first():
        beams = Beams.at(np.zeros(1), 0.5)
        for padded in {1, slices}:
            image, sinogram = aligned_zeros((2, 2, padded)), aligned_zeros((1, 2, padded))
            forward(image, sinogram, beams)
            back(sinogram, image, beams, factor=np.ones((2, 2), np.float32))
            weigh(sinogram, beams, np.ones((1, 2), np.float32))


@functools.cache
def _forward_kernel(lanes: int) -> Any:
    return _forward.make_forward(lanes)


@functools.cache
def _back_kernel(lanes: int) -> Any:
    return _back.make_back(lanes)
