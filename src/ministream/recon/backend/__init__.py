"""Backends: they own the images and do the arithmetic on them. One folder per kind of processor.

An algorithm holds images and sinograms as opaque handles: its backend creates them and operates on them. Small
data, and data for MPI and files, stay in NumPy arrays on the host: the window's data, weights, angles, sums per slice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ministream.recon.geometry import Beams, Geometry
from ministream.recon.planes import Plane

Image = Any
"""An image, float32 [n, n, padded slices]: a handle of the backend that made it."""
Sinogram = Any
"""Projections, float32 [projections, cols, padded slices]: a handle, or the window's data as they are."""
Array = Any
"""An image or a sinogram."""
PerSlice = NDArray[np.float64]
"""One number per slice, [padded slices]."""
Progress = Callable[[], None]
"""Called on the calling thread while a backend works, so that MPI can progress."""


def idle() -> None:
    """A `Progress` that does nothing."""


class Backend(Protocol):
    """The arrays and the kernels of one kind of processor.

    Every method returns when its result may be used by the next one. Slices are padded to the vector width of the
    processor; the padding of an image and of a window is 0 and stays 0. Results do not depend on the number of threads.
    """

    def set_threads(self, threads: int) -> None:
        """Use `threads` threads from now on."""
        ...

    def warm_up(self, slices: int) -> None:
        """Compile or load what a slab of `slices` slices uses; the processes of one node do so one at a time."""
        ...

    def padded_slices(self, slices: int) -> int:
        """The number of slices after padding."""
        ...

    def new_image(self, geometry: Geometry, slices: int) -> Image:
        """A zero image."""
        ...

    def new_window(self, length: int, cols: int, slices: int) -> NDArray[np.float32]:
        """Zero projections [length, cols, padded slices] in host memory, to be filled by the caller."""
        ...

    def new_sinogram(self, window: NDArray[np.float32]) -> Sinogram:
        """A zero sinogram as large as a window's data."""
        ...

    def new_dual(self, image: Image) -> Array:
        """A zero vector per pixel, for `denoise`."""
        ...

    def host(self, image: Array) -> NDArray[np.float32]:
        """The image (or dual) in the host's memory, [n, n, padded slices], read-only, valid until it changes."""
        ...

    def clear(self, array: Array, slots: NDArray[np.int64] | None = None) -> None:
        """array = 0, or array[slots] = 0."""
        ...

    def copy(self, to: Array, of: Array, slots: NDArray[np.int64] | None = None) -> None:
        """to = of, or to[slots] = of[slots]; `of` may be in the host's memory."""
        ...

    def scale(self, array: Array, factor: float) -> None:
        """array = factor · array."""
        ...

    def limit(self, image: Image, lower: float | PerSlice, upper: float = np.inf) -> None:
        """Clip to `lower`, one or one per slice, and `upper`."""
        ...

    def mask(self, image: Image, support: NDArray[np.bool_]) -> None:
        """image = 0 outside the `support` [n, n]."""
        ...

    def occupied(self, image: Image) -> NDArray[np.bool_]:
        """Which slices have a pixel that is not 0, [padded slices]."""
        ...

    def positive_sums(self, sinogram: Sinogram, held: int) -> PerSlice:
        """Σ max(y, 0) over the first `held` projections."""
        ...

    def dot(self, y: Array, x: Array, held: int | None = None) -> PerSlice:
        """Σ x y of each slice, over all or over the first `held` projections."""
        ...

    def combine(
        self,
        y: Array,
        x: Array,
        *,
        alpha: PerSlice | float = 1.0,
        beta: PerSlice | float = 1.0,
        held: int | None = None,
    ) -> None:
        """y = alpha x + beta y, with a factor each or one per slice; all, or the first `held` projections."""
        ...

    def weigh(self, sinogram: Sinogram, beams: Beams, factor: NDArray[np.float32]) -> PerSlice:
        """Multiply by `factor` [projections, cols]; return the squared norm from before that."""
        ...

    def divide(self, sinogram: Sinogram, measured: Sinogram, beams: Beams, smallest: NDArray[np.float32]) -> PerSlice:
        """Replace A x by max(b, 0) / A x, 0 where A x is not above smallest[slice]; return |b - A x|²."""
        ...

    def denoise(self, noisy: Image, image: Image, dual: Array, *, threshold: float, passes: int) -> None:
        """image = argmin |image - noisy|² / 2 + threshold TV(image), slice by slice; `dual` is kept in between."""
        ...

    def filter(
        self,
        to: Sinogram,
        of: Sinogram,
        slots: NDArray[np.int64],
        response: NDArray[np.float32],
        progress: Progress = idle,
    ) -> None:
        """to[slots] = of[slots], filtered along the detector; `response` is that of the positive frequencies."""
        ...

    def forward(
        self, image: Image, sinogram: Sinogram, beams: Beams, *, gain: float = 1.0, progress: Progress = idle
    ) -> None:
        """sinogram += gain · A image, for the projections of `beams`."""
        ...

    def back(
        self,
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

        `factor` is float32 [n, n]. With `interpolate` a projection's value at a pixel is interpolated on the detector,
        as filtered back projection needs it, instead of weighted as in `forward`.
        """
        ...

    def column_sums(self, beams: Beams, n: int, cols: int, part: slice = slice(None)) -> NDArray[np.float64]:
        """Aᵀ 1 of the projections of `beams`, [n, n], or those of its rows that `part` picks."""
        ...

    def row_sums(self, beams: Beams, support: NDArray[np.bool_], cols: int) -> NDArray[np.float64]:
        """A `support` of the projections of `beams`, in their order, [projections, cols].

        `support` [n, n] must be contiguous in every row and every column (ValueError).
        """
        ...

    def warm_up_planes(self) -> None:
        """Compile or load what planes use, as `warm_up` does."""
        ...

    def slab_plane(
        self,
        filtered: Sinogram,
        beams: Beams,
        weights: NDArray[np.float32],
        plane: Plane,
        first: int,
        slices: int,
        progress: Progress = idle,
    ) -> NDArray[np.float32]:
        """What the detector rows [first, first + slices), those of `filtered`, give to a plane: [rows, cols].

        The sum over the slabs is the plane's sum of the back projections, with one weight per projection; linear
        interpolation on the detector.
        """
        ...

    def row_plane(
        self, sinogram: NDArray[np.float32], beams: Beams, plane: Plane, progress: Progress = idle
    ) -> NDArray[np.float32]:
        """A horizontal plane [rows, cols] from the filtered, weighted sinogram of its row, [projections, cols]."""
        ...

    def image_plane(self, image: Image, plane: Plane, first: int, slices: int) -> NDArray[np.float32]:
        """What the slices [first, first + slices), those of `image`, give to a plane [rows, cols]; 0 outside."""
        ...


def default() -> Backend:
    """The backend of this machine: currently always the CPU."""
    from ministream.recon.backend import cpu

    return cpu
