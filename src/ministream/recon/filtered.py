"""Steps of filtered back projection: the filter, the weights, and the back projection."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from ministream.recon.backend import Backend, Image, Progress, Sinogram
from ministream.recon.geometry import Beams, Geometry
from ministream.recon.window import Window

SAME_RAD = np.pi / 2**16
"""Directions that differ by less, 0.003 degrees, are one."""
HALF_TURN_RAD = 0.95 * np.pi
"""Directions spanning this angle count as half a turn: the last step of a scan is often missing."""


def shares_rad(angles_rad: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of half a turn that each projection stands for, [projections]: half the gaps to the next directions.

    Projections of one direction share its part, so that directions seen twice weigh half. The largest gap counts as the
    usual one: what a scan has not covered is nobody's part.
    """
    steps = np.rint(np.mod(angles_rad, np.pi) / SAME_RAD).astype(np.int64) % round(np.pi / SAME_RAD)
    places, member, count = np.unique(steps, return_inverse=True, return_counts=True)
    if places.size < 2:
        return np.zeros(len(angles_rad))
    # the exact angle of one projection of each direction: rounded ones would change all shares a little
    directions = np.zeros(places.size)
    directions[member] = np.mod(angles_rad, np.pi)
    directions[0] -= np.pi * (directions[0] > directions[1])
    gaps = np.diff(np.append(directions, directions[0] + np.pi))
    largest = gaps.argmax()
    gaps[largest] = np.median(np.delete(gaps, largest))
    shares: NDArray[np.float64] = ((gaps + np.roll(gaps, 1)) / 2 / count)[member]
    return shares


def coverage_rad(angles_rad: NDArray[np.float64]) -> float:
    """The part of half a turn covered by the directions."""
    return float(shares_rad(angles_rad).sum())


@functools.lru_cache(maxsize=4)
def ramp(cols: int, window: str) -> NDArray[np.float32]:
    """Frequency response [padded cols / 2 + 1] of the band-limited ramp, zero-padded to avoid wrap-around.

    Kak & Slaney, Principles of Computerized Tomographic Imaging (1988), equation 3-61.
    """
    size = 2 ** (2 * cols - 1).bit_length()
    place = np.fft.fftfreq(size, 1 / size)
    kernel = np.zeros(size)
    kernel[0] = 0.25
    odd = place % 2 == 1
    kernel[odd] = -1 / (np.pi * place[odd]) ** 2
    frequency = np.fft.rfftfreq(size)
    window_of = {
        "ramp": np.ones_like(frequency),
        "shepp": np.sinc(frequency),
        "cosine": np.cos(np.pi * frequency),
        "hann": 0.5 + 0.5 * np.cos(2 * np.pi * frequency),
    }[window]
    response: NDArray[np.float32] = (np.fft.rfft(kernel).real * window_of).astype(np.float32)
    return response


def weigh(backend: Backend, filtered: Sinogram, beams: Beams, factors: NDArray[np.float64], cols: int) -> None:
    """Multiply the projections of `beams` by one factor each, [projections held]."""
    backend.weigh(filtered, beams, np.repeat(factors.astype(np.float32)[:, None], cols, axis=1))


def add(
    backend: Backend, image: Image, filtered: Sinogram, beams: Beams, *, n: int, sign: float = 1.0, progress: Progress
) -> None:
    """image += sign · back projection of filtered projections, with linear interpolation on the detector."""
    factor = np.full((n, n), sign, np.float32)
    backend.back(filtered, image, beams, factor=factor, interpolate=True, progress=progress)


def reconstruct(
    backend: Backend, image: Image, window: Window, geometry: Geometry, scratch: Sinogram, progress: Progress
) -> None:
    """image = filtered back projection of all projections in the window; `scratch` is as large as the window's data."""
    backend.clear(image)
    cols, beams = window.data.shape[1], Beams.at(window.angles_rad, geometry.axis_col)
    backend.filter(scratch, window.data, np.arange(window.held), ramp(cols, "shepp"), progress)
    weigh(backend, scratch, beams, shares_rad(window.angles_rad), cols)
    add(backend, image, scratch, beams, n=geometry.n, progress=progress)
