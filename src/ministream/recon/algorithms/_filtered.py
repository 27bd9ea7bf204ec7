"""Filtering and back projection steps of filtered back projection."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from ministream.recon.backend import Backend, Image, Progress, Sinogram
from ministream.recon.geometry import Beams, Geometry
from ministream.recon.window import Window

HALF_TURN_RAD = 0.95 * np.pi
"""Directions spanning this angle count as half a turn: the last step of a scan is often missing."""


def coverage_rad(angles_rad: NDArray[np.float64]) -> float:
    """The part of half a turn covered by the directions: pi minus the excess of the largest gap over the usual one."""
    directions = np.sort(np.mod(angles_rad, np.pi))
    if directions.size < 2:
        return 0.0
    gaps = np.diff(np.append(directions, directions[0] + np.pi))
    largest = gaps.argmax()
    return float(np.pi - gaps[largest] + np.median(np.delete(gaps, largest)))


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


def add(
    backend: Backend,
    image: Image,
    filtered: Sinogram,
    beams: Beams,
    *,
    n: int,
    weight_rad: float,
    progress: Progress,
) -> None:
    """image += weight · back projection of filtered projections, with linear interpolation on the detector."""
    factor = np.full((n, n), weight_rad, np.float32)
    backend.back(filtered, image, beams, factor=factor, interpolate=True, progress=progress)


def reconstruct(
    backend: Backend, image: Image, window: Window, geometry: Geometry, scratch: Sinogram, progress: Progress
) -> None:
    """image = filtered back projection of all projections in the window; `scratch` is as large as the window's data."""
    backend.clear(image)
    backend.filter(scratch, window.data, np.arange(window.held), ramp(window.data.shape[1], "shepp"), progress)
    beams = Beams.at(window.angles_rad, geometry.axis_col)
    weight_rad = coverage_rad(window.angles_rad) / window.held
    add(backend, image, scratch, beams, n=geometry.n, weight_rad=weight_rad, progress=progress)
