"""The axis c about which opposite directions mirror each other: p(theta + pi, u) = p(theta, 2c - u).

With P and Q the Fourier transforms along the columns of a projection and of the one from the opposite direction, as
recorded, the correlation of the first with the mirrored second is Σ_k P(k) Q(k) exp(2ikc). A `Spectrum` holds the
products of each row, so that the correlation is known for every c, fractions of a column included, without shifting any
data (phase correlation with the mirrored image).

Half a turn has no opposite directions, but its continuation by mirrored projections must be as smooth as a sinogram
can be: the two-dimensional spectrum of a sinogram is confined to the double wedge |m| ≤ radius |k|. The energy outside
is least at the axis (Vo et al. 2014, doi:10.1364/OE.22.019078). It has the same form in c, so that a minimum over all
c costs one Fourier transform instead of one for each candidate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ministream.axis import Total
from ministream.axis.directions import MirrorPairs

FINE_COL = 0.01
NEAR_COL = 3.0
"""A local search covers this distance to either side."""
LEAST_OVERLAP = 0.05
"""Opposite projections must overlap in this share of the columns."""
SEAM_SHARE = 3
"""A local search for smoothness looks at this part of half a turn to either side of the seam."""
SEAM_WEDGES = (2.0, 3.0)
"""Radii of a sample that may reach beyond the detector, in half widths of the field around the axis: where they lead to
different axes, the sample is too large to tell.
"""

_LEAST_MODES = 2.0  # orders of theta that stripes and drift occupy
_ROUNDS = 2
_SMOOTH = 64  # coarse search: projections are averaged over cols / _SMOOTH columns
_TAPER = 0.3


Products = tuple[NDArray[np.complex128], float]
"""Of one row: the products of the spectra of both sides, [bins], and the energy of both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spectrum:
    """Products of each row, [rows, bins] complex, at the frequencies k = 2 pi bin / `length`.

    Columns begin at `origin`. `energy` is that of both sides, of all rows. `sign`: 1 where the correlation is largest
    at the axis, -1 where the energy of the sum is least.
    """

    products: NDArray[np.complex128]
    energy: float
    length: int
    origin: float
    sign: int

    def score(self, products: NDArray[np.complex128], cols: NDArray[np.float64]) -> NDArray[np.float64]:
        """Correlation of `products` [bins] at the candidates `cols`; the axis has the largest."""
        frequency = 2 * np.pi * np.arange(products.size) / self.length
        scores: NDArray[np.float64] = self.sign * np.real(
            np.exp(2j * np.outer(cols - self.origin, frequency)) @ products
        )
        return scores

    def peaks(self, products: NDArray[np.complex128], low: float, high: float) -> NDArray[np.float64]:
        """The best column of `products` [..., bins] between two columns, to a quarter of a column."""
        everywhere = self.sign * np.fft.irfft(products, 2 * self.length)
        first, last = (int(np.clip(4 * (col - self.origin), 0, 2 * self.length - 1)) for col in (low, high))
        places: NDArray[np.float64] = self.origin + (first + everywhere[..., first : last + 1].argmax(axis=-1)) / 4
        return places


class Fit(NamedTuple):
    """The axis from all rows of all ranks and from each local row, and the share of the energy that it does not
    explain.
    """

    axis_col: float
    rows: NDArray[np.float64]
    residual: float


def best(spectrum: Spectrum, low: float, high: float, total: Total) -> Fit:
    """The axis between two columns; collective."""
    bins = spectrum.products.shape[1]
    everything = spectrum.products.sum(axis=0)
    summed = total(np.concatenate([everything.real, everything.imag, [spectrum.energy]]))
    together = summed[:bins] + 1j * summed[bins:-1]
    each = np.concatenate([together[None], spectrum.products])
    peaks = spectrum.peaks(each, low, high)
    axis_col, *rows = (_finely(spectrum, products, peak) for products, peak in zip(each, peaks, strict=True))
    explained = float(spectrum.score(together, np.array([axis_col]))[0])
    return Fit(axis_col, np.array(rows), 1 - 2 * explained / max(float(summed[-1]), 1e-30))


def _finely(spectrum: Spectrum, products: NDArray[np.complex128], peak: float) -> float:
    cols = np.arange(peak - 0.25, peak + 0.25 + FINE_COL / 2, FINE_COL)
    return float(cols[spectrum.score(products, cols).argmax()])


def overlap(
    sinograms: NDArray[np.float32], pairs: MirrorPairs, total: Total
) -> tuple[float, NDArray[np.float64], float]:
    """The axis to half a column, searched over the whole detector: of all rows, of each local row, and the correlation.

    `sinograms` [rows, projections, cols]. The correlation is normalised by the energy in the overlap, 1 for a perfect
    match. Only differences between columns count, so that the level of the flats does not matter.
    """
    rows, _, cols = sinograms.shape
    width = max(1, cols // _SMOOTH)
    cross, energy = np.zeros((2, rows, 2 * (cols - width) - 1))
    for row, sinogram in enumerate(sinograms):
        cross[row], energy[row] = _correlations(*_sides(_smooth(sinogram, width), pairs))
    place = np.arange(cross.shape[1])
    wide = np.minimum(place + 1, place[::-1] + 1) >= max(8, LEAST_OVERLAP * cols)
    summed = total(np.concatenate([cross.sum(axis=0), energy.sum(axis=0)])).reshape(2, -1)
    each = [_normalised(*pair, wide) for pair in ((summed[0], summed[1]), *zip(cross, energy, strict=True))]
    peaks = np.array([normalised.argmax() for normalised in each]) / 2 + width / 2
    return float(peaks[0]), peaks[1:], float(each[0].max())


def _smooth(sinogram: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Running sums over `width` columns, and their differences: [projections, cols - width]."""
    sums = np.cumsum(sinogram, axis=1, dtype=np.float64)
    sums = np.concatenate([np.zeros((len(sums), 1)), sums], axis=1)
    means = (sums[:, width:] - sums[:, :-width]) / width
    return np.diff(means, axis=1).astype(np.float32)


def _sides(changes: NDArray[np.float32], pairs: MirrorPairs) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Changes from column to column of the pairs, [pairs, cols - 1] each: mirroring changes their sign."""
    weight = pairs.weight[:, None]
    return changes[pairs.direct], -((1 - weight) * changes[pairs.before] + weight * changes[pairs.after])


def _correlations(
    direct: NDArray[np.float32], opposite: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """2 Σ_u direct(u) opposite(s - u), and the energy of both in the overlap, for every sum s of two columns."""
    cols = direct.shape[1]
    size, places = 2 * cols, 2 * cols - 1
    cross = np.fft.irfft((np.fft.rfft(direct, size) * np.fft.rfft(opposite, size)).sum(axis=0), size)[:places]
    power = (direct**2 + opposite**2).sum(axis=0, dtype=np.float64)
    energy = np.fft.irfft(np.fft.rfft(power, size) * np.fft.rfft(np.ones(cols), size), size)[:places]
    return np.asarray(2 * cross), np.asarray(energy)


def _normalised(
    cross: NDArray[np.float64], energy: NDArray[np.float64], wide: NDArray[np.bool_]
) -> NDArray[np.float64]:
    told = wide & (energy > LEAST_OVERLAP * energy.max())
    normalised: NDArray[np.float64] = np.divide(cross, energy, out=np.full(cross.shape, -1.0), where=told)
    return normalised


def from_pairs(sinograms: NDArray[np.float32], pairs: MirrorPairs, near: float, total: Total) -> Fit:
    """The axis within NEAR_COL of `near`, from mirrored pairs; collective."""

    def spectrum(col: float) -> Spectrum:
        products = [_pair_products(sinogram, pairs, col) for sinogram in sinograms]
        return _spectrum(products, sinograms.shape[2] - 1, origin=0.5, sign=1)

    return _locally(spectrum, near, total)


def _pair_products(sinogram: NDArray[np.float32], pairs: MirrorPairs, col: float) -> Products:
    direct, opposite = _sides(np.diff(sinogram, axis=1), pairs)
    window, size = _field(direct.shape[1], col), 2 * direct.shape[1]
    seen, mirrored = np.fft.rfft(direct * window, size), np.fft.rfft(opposite * window, size)
    return (seen * mirrored).sum(axis=0), _energy(seen) + _energy(mirrored)


def from_seam(sinograms: NDArray[np.float32], near: float, wedge: float, total: Total) -> Fit:
    """The axis within NEAR_COL of `near`, from the smoothness of half a turn where its mirrored continuation begins.

    Only changes between columns count, in the field around the axis; `wedge` is one of SEAM_WEDGES.
    """
    count = max(8, sinograms.shape[1] // SEAM_SHARE)

    def spectrum(col: float) -> Spectrum:
        cols = sinograms.shape[2]
        radius = wedge * (min(col, cols - 1 - col) + 0.5)
        window = _field(cols - 1, col)
        fade = np.sin(np.pi * (np.arange(2 * count) + 0.5) / (2 * count)) ** 2
        step_rad = np.pi / sinograms.shape[1]
        products = []
        for sinogram in sinograms:
            changes = np.diff(sinogram, axis=1) * window
            pieces = changes[:count], -changes[-count:]
            products.append(_outside_wedge(*pieces, fade, step_rad=step_rad, radius=radius, least=0.0))
        return _spectrum(products, cols - 1, origin=0.5, sign=-1)

    return _locally(spectrum, near, total)


def from_half_turn(sinograms: NDArray[np.float32], total: Total) -> Fit:
    """The axis from half a turn of a sample that is inside the detector; searched over the whole detector."""
    cols = sinograms.shape[2]
    fade = np.ones(2 * sinograms.shape[1])
    step_rad = np.pi / sinograms.shape[1]
    products = [
        _outside_wedge(level, level, fade, step_rad=step_rad, radius=cols / 2, least=_LEAST_MODES)
        for level in map(level_air, sinograms)
    ]
    return best(_spectrum(products, cols, origin=0.0, sign=-1), 0.0, cols - 1.0, total)


def level_air(sinogram: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sinogram [projections, cols] without the straight line through the means of both edges."""
    cols = sinogram.shape[1]
    edge = edge_cols(cols)
    left, right = sinogram[:, :edge].mean(axis=1), sinogram[:, -edge:].mean(axis=1)
    along = (np.arange(cols) - (edge - 1) / 2) / (cols - edge)
    levelled: NDArray[np.float32] = sinogram - (left[:, None] + (right - left)[:, None] * along)
    return levelled.astype(np.float32)


def edge_cols(cols: int) -> int:
    """The number of columns of an edge where air is expected."""
    return max(2, cols // 64)


def _outside_wedge(
    first: NDArray[np.float32],
    last: NDArray[np.float32],
    fade: NDArray[np.float64],
    *,
    step_rad: float,
    radius: float,
    least: float,
) -> Products:
    """Σ over |m| > radius |k| + least of the spectra of `first`, and of `last` as recorded, mirrored by the caller's c.

    [steps, cols] each: the mirrored `last` steps precede the `first` ones. `fade` weights the 2 · steps.
    """
    steps, cols = first.shape
    ahead = np.fft.rfft(first, 2 * cols) * fade[steps:, None]
    behind = np.conj(np.fft.rfft(last, 2 * cols)) * fade[:steps, None]
    nothing = np.zeros_like(ahead)
    seen = np.fft.fft(np.concatenate([nothing, ahead]), axis=0)
    mirrored = np.fft.fft(np.concatenate([behind, nothing]), axis=0)
    orders = np.abs(np.fft.fftfreq(2 * steps, step_rad)) * 2 * np.pi
    outside = orders[:, None] > radius * np.pi * np.arange(ahead.shape[1]) / cols + least
    seen, mirrored = seen * outside, mirrored * outside
    return (seen * np.conj(mirrored)).sum(axis=0), _energy(seen) + _energy(mirrored)


def _energy(transforms: NDArray[np.complex128]) -> float:
    return float(np.vdot(transforms, transforms).real)


def _field(cols: int, col: float) -> NDArray[np.float32]:
    """A smooth window on changes between columns: the field that both directions see around the axis `col`."""
    half = max(min(col, cols - col), 1.0)
    inside = (half - np.abs(np.arange(cols) + 0.5 - col)) / (_TAPER * half)
    window: NDArray[np.float32] = (0.5 - 0.5 * np.cos(np.pi * np.clip(inside, 0, 1))).astype(np.float32)
    return window


def _spectrum(products: list[Products], cols: int, *, origin: float, sign: int) -> Spectrum:
    """Of data with `cols` columns, padded to twice as many."""
    stacked = np.array([each for each, _ in products], np.complex128).reshape(-1, cols + 1)
    return Spectrum(
        products=stacked, energy=sum(energy for _, energy in products), length=2 * cols, origin=origin, sign=sign
    )


def _locally(spectrum: Callable[[float], Spectrum], near: float, total: Total) -> Fit:
    """Search around `near`, and again around what was found: the window follows the axis."""
    found = Fit(near, np.zeros(0), 1.0)
    for _ in range(_ROUNDS):
        found = best(spectrum(found.axis_col), found.axis_col - NEAR_COL, found.axis_col + NEAR_COL, total)
    return found
