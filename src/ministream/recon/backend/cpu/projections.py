"""Forward and back projection of a slab, and the sums of their matrix, on all threads.

Images are float32 [n, n, padded slices], sinograms float32 [projections, cols, padded slices], both C-contiguous;
`Beams` selects projections of a sinogram and holds their directions.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ministream.recon.backend import Progress, idle
from ministream.recon.backend.cpu import back as _back
from ministream.recon.backend.cpu import forward as _forward
from ministream.recon.backend.cpu import sums as _sums
from ministream.recon.backend.cpu.blocking import PROCESSOR, Blocking
from ministream.recon.backend.cpu.threads import Work, get_threads, run
from ministream.recon.geometry import Beams

Image = NDArray[np.float32]
Sinogram = NDArray[np.float32]

_FEWEST = 4
"""Minimum number of projections per task, to amortise one pass over the image."""


class Pixels(NamedTuple):
    """The flat memory of an image, its size, and its row pitch."""

    data: NDArray[np.float32]
    n: int
    pitch: int

    @classmethod
    def of(cls, image: Image) -> Self:
        """Raises ValueError for an image whose pixels are not contiguous in a row."""
        n, slices = image.shape[1:]
        if image.strides[1:] != (4 * slices, 4):
            raise ValueError("the pixels of an image's row must be contiguous: make images with new_image")
        row = image.strides[0]
        size = (image.shape[0] - 1) * row // 4 + n * slices
        data = np.lib.stride_tricks.as_strided(image, (size,), (4,))
        return cls(data, n, row // 4)


def lane_blocks(slices: int, widest: int = PROCESSOR.widest) -> list[tuple[int, int, int]]:
    """Padded slices as (lanes, first slice, number of blocks): the widest kernels first."""
    blocks, first, lanes = [], 0, widest
    while first < slices:
        count = (slices - first) // lanes
        if count:
            blocks.append((lanes, first, count))
            first += count * lanes
        lanes //= 2
    return blocks


def forward(image: Image, sinogram: Sinogram, beams: Beams, *, gain: float = 1.0, progress: Progress = idle) -> None:
    """sinogram += gain · A image, for the projections of `beams`."""
    if image.shape[0] == 1:
        image = np.pad(image, ((1, 1), (1, 1), (0, 0)))  # rays read pairs of pixels, also at the border
    pixels, projections = Pixels.of(image), beams.slots.size
    for lanes, first, blocks in lane_blocks(image.shape[2]):
        # tasks for all threads: fewer projections each, and only then parts of the detector
        shares = -(-get_threads() // blocks)
        blocking = PROCESSOR.forward(lanes)
        group = min(blocking.group, max(_FEWEST, -(-projections // shares)))
        groups = -(-projections // group)
        strips = -(-get_threads() // (groups * blocks))
        plan = _forward.ForwardPlan(groups * blocks * strips, first, blocks, group, strips)

        def prepare(blocking: Blocking = blocking, plan: _forward.ForwardPlan = plan) -> Work:
            scratch = _forward.ForwardScratch.new()
            return lambda counter, quota: int(
                _forward.forward(blocking, counter, quota, plan, pixels, sinogram, beams, float(gain), scratch)
            )

        run(prepare, plan.tasks, progress, units=_forward.squares(blocking, pixels.n))


def back(
    sinogram: Sinogram,
    image: Image,
    beams: Beams,
    *,
    factor: NDArray[np.float32],
    multiply: bool = False,
    interpolate: bool = False,
    lower: float = -np.inf,
    upper: float = np.inf,
    progress: Progress = idle,
) -> None:
    """image = clip(image + factor · Aᵀ sinogram, lower, upper), or image · factor · Aᵀ sinogram with `multiply`.

    `factor` is float32 [n, n]. With `interpolate` a projection's value at a pixel is interpolated on the detector, as
    filtered back projection needs it, instead of weighted as in `forward`.
    """
    pixels = Pixels.of(image)
    update = _back.PixelUpdate(factor, multiply, interpolate, np.float32(lower), np.float32(upper))
    for lanes, first, blocks in lane_blocks(image.shape[2]):
        blocking = PROCESSOR.back(lanes)
        plan = _back.BackPlan(blocks * (-(-pixels.n // blocking.side)) ** 2, first, blocks)

        def prepare(blocking: Blocking = blocking, plan: _back.BackPlan = plan) -> Work:
            scratch = _back.BackScratch.of(blocking)
            return lambda counter, quota: int(
                _back.back(blocking, counter, quota, plan, pixels, sinogram, beams, update, scratch)
            )

        run(prepare, plan.tasks, progress)


def column_sums(beams: Beams, n: int, cols: int, part: slice = slice(None)) -> NDArray[np.float64]:
    """Aᵀ 1 of the projections of `beams`, [n, n], or those of its rows that `part` picks."""
    first, stop, _ = part.indices(n)
    sums = np.zeros((stop - first, n))
    run(lambda: lambda counter, quota: int(_sums.columns(counter, quota, beams, cols, first, sums)), stop - first)
    return sums


def row_sums(beams: Beams, support: NDArray[np.bool_], cols: int) -> NDArray[np.float64]:
    """A `support` of the projections of `beams`, in their order, [projections, cols].

    `support` [n, n] must be contiguous in every row and every column (ValueError).
    """
    spans = np.array([_spans(support), _spans(support.T)])
    sums = np.zeros((beams.slots.size, cols))
    run(lambda: lambda counter, quota: int(_sums.rows(counter, quota, beams, spans, sums)), beams.slots.size)
    return sums


def _spans(support: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where the support begins in each row, and one beyond where it ends, [2, n]."""
    length = support.sum(axis=1)
    begin = support.argmax(axis=1)
    end = np.where(length, support.shape[1] - support[:, ::-1].argmax(axis=1), begin)
    if not np.array_equal(end - begin, length):
        raise ValueError("the support of an image must have no gaps in its rows and columns")
    return np.array([begin, end])
