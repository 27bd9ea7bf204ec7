"""Image quality: against a reference during the job, and between two volumes as in aps-mini-apps."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ministream import atomic
from ministream.errors import ConfigError, InputError

Image = NDArray[np.float32]

SMALLEST = 11  # pixels: the window of SSIM and MS-SSIM
MS_SSIM_SCALES = 5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class QualitySums:
    """Sums over slices and over the pixels in their inscribed circles; ranks combine them with `+`.

    `image`, `truth` and their squares and product are sums of pixel values; `low` and `high` bound the truth.
    """

    slices: int = 0
    pixels: int = 0
    ssim: float = 0.0
    error_2: float = 0.0
    image: float = 0.0
    truth: float = 0.0
    image_2: float = 0.0
    truth_2: float = 0.0
    product: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def __add__(self, other: QualitySums) -> QualitySums:
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("low", "high")]
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return QualitySums(low=min(self.low, other.low), high=max(self.high, other.high), **sums)

    @classmethod
    def total(cls, parts: Iterable[QualitySums]) -> QualitySums:
        """The sums of all ranks."""
        return sum(parts, start=cls())

    def mean(self) -> dict[str, float]:
        """`ssim` averaged over slices; `psnr` (dB), `nrmse` and `correlation` over all pixels of the volume.

        PSNR is relative to the range of the truth, NRMSE to its root mean square.
        """
        mse = self.error_2 / self.pixels
        variances = (self.pixels * self.image_2 - self.image**2) * (self.pixels * self.truth_2 - self.truth**2)
        covariance = self.pixels * self.product - self.image * self.truth
        return {
            "ssim": self.ssim / self.slices,
            "psnr": 10 * math.log10((self.high - self.low) ** 2 / mse) if mse else math.inf,
            "nrmse": math.sqrt(self.error_2 / self.truth_2) if self.truth_2 else math.inf,
            "correlation": covariance / math.sqrt(variances) if variances > 0 else math.nan,
        }


def circle(n: int) -> NDArray[np.bool_]:
    """The pixels [n, n] whose centres lie in the inscribed circle."""
    offset = np.arange(n) - (n - 1) / 2
    inside: NDArray[np.bool_] = np.hypot(*np.meshgrid(offset, offset)) <= (n - 1) / 2
    return inside


def value_range(truth: Image) -> tuple[float, float]:
    """Smallest and largest value of a truth [slices, n, n] in its circle; SSIM needs the range over all ranks."""
    values = truth[:, circle(truth.shape[1])]
    return float(values.min()), float(values.max())


def slab_quality(image: Image, truth: Image, data_range: float) -> QualitySums:
    """Compare a slab [slices, n, n] with its truth inside the inscribed circle, slice by slice.

    `data_range` is largest minus smallest `value_range` of the whole volume, so that the result does
    not depend on the partition of slices over ranks. SSIM as Wang et al., IEEE TIP 13 (2004) 600: Gaussian
    window of 1.5 pixels, K1 = 0.01, K2 = 0.03.

    Raises ConfigError without the extra `quality`, InputError for unlike shapes or slices below 11 pixels.
    """
    if image.shape != truth.shape:
        raise InputError(f"the image {list(image.shape)} and its reference {list(truth.shape)} differ in shape")
    _check_size(image.shape[1:])
    inside = circle(image.shape[1])
    return QualitySums.total(_slice_sums(*pair, inside, data_range) for pair in zip(image, truth, strict=True))


def _slice_sums(image: Image, truth: Image, inside: NDArray[np.bool_], data_range: float) -> QualitySums:
    metrics = _extra("skimage.metrics")
    _, similarity = metrics.structural_similarity(
        np.ascontiguousarray(image),
        truth,
        data_range=data_range or 1.0,  # a truth without contrast: any range is valid
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    a, b = image[inside].astype(np.float64), truth[inside].astype(np.float64)
    return QualitySums(
        slices=1,
        pixels=a.size,
        ssim=float(similarity[inside].mean()),
        error_2=float(np.sum((a - b) ** 2)),
        image=float(a.sum()),
        truth=float(b.sum()),
        image_2=float(a @ a),
        truth_2=float(b @ b),
        product=float(a @ b),
        low=float(b.min()),
        high=float(b.max()),
    )


class LiveQuality:
    """Quality after every update: rows for a plot, and rows appended to `quality.csv`. Rank 0 only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[dict[str, float]] = []

    def add(self, sums: QualitySums, *, update: int, projections: int, seconds: float) -> dict[str, float]:
        """Append one row, to the file too, and return it. Raises StorageError."""
        row = {"update": update, "projections": projections, "seconds": round(seconds, 3)} | sums.mean()
        self.rows.append(row)
        try:
            with self._path.open("w" if len(self.rows) == 1 else "a", newline="") as file:
                table = csv.DictWriter(file, row)
                if len(self.rows) == 1:
                    table.writeheader()
                table.writerow(row)
        except OSError as error:
            raise atomic.failed(self._path, error) from error
        return row


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SliceQuality:
    """One slice, or the mean of several, against the reference.

    The first five are computed as in `iqcheck.py` of aps-mini-apps: the whole slice, transposed, each image
    rescaled by itself to 0…1; MS-SSIM, SSIM and PSNR on 8 bits, UQI and MSE on floats; sewar's definitions.
    `nrmse` (relative to the reference's root mean square) and `correlation` compare the values as they are,
    inside the inscribed circle.
    """

    ms_ssim: float
    ssim: float
    uqi: float
    mse: float
    psnr: float
    nrmse: float
    correlation: float

    @classmethod
    def mean(cls, slices: Sequence[SliceQuality]) -> Self:
        """The mean of every metric."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: math.fsum(getattr(one, name) for one in slices) / len(slices) for name in names})


def compare(image: Image, reference: Image) -> SliceQuality:
    """Compare one slice [rows, cols] with its reference.

    Raises ConfigError without the extra `quality`; InputError for unlike shapes, values that are not
    finite, and slices below 11 pixels.
    """
    if image.shape != reference.shape:
        raise InputError(f"slices {list(image.shape)} and {list(reference.shape)} differ in shape")
    _check_size(image.shape)
    for name, values in (("image", image), ("reference", reference)):
        if not np.isfinite(values).all():
            raise InputError(f"the {name} has NaN or infinite pixels: it cannot be compared")
    sewar = _extra("sewar.full_ref")
    a, b = _prepared(image), _prepared(reference)
    a8, b8 = ((x * 255).astype(np.uint8) for x in (a, b))
    with warnings.catch_warnings():
        # sewar omits scales for which a slice is too small; ms_ssim_scales() reports their number to the caller
        warnings.filterwarnings("ignore", "Image is too small", UserWarning)
        ms_ssim = float(np.real(sewar.msssim(b8, a8)))
    return SliceQuality(
        ms_ssim=ms_ssim,
        ssim=float(sewar.ssim(b8, a8)[0]),
        uqi=float(sewar.uqi(b, a)),
        mse=float(sewar.mse(b, a)),
        psnr=float(sewar.psnr(b8, a8)),
        **_plain(image, reference),
    )


def ms_ssim_scales(shape: Sequence[int]) -> int:
    """How many of the five scales MS-SSIM has for slices of this shape; below 176 pixels some are omitted."""
    return min(MS_SSIM_SCALES, int(math.log2(min(shape) / SMALLEST)) + 1)


def _prepared(slice_: Image) -> Image:
    turned = np.rot90(slice_)[::-1]  # iqcheck.py's orientation, the transpose
    rescaled: Image = _extra("skimage.exposure").rescale_intensity(turned, out_range=(0.0, 1.0))
    return rescaled


def _plain(image: Image, reference: Image) -> dict[str, float]:
    inside = circle(image.shape[0]) if image.shape[0] == image.shape[1] else np.ones(image.shape, np.bool_)
    a, b = image[inside].astype(np.float64), reference[inside].astype(np.float64)
    norm, spread = float(np.linalg.norm(b)), float(a.std() * b.std())
    return {
        "nrmse": float(np.linalg.norm(a - b)) / norm if norm else math.inf,
        "correlation": float(np.mean((a - a.mean()) * (b - b.mean()))) / spread if spread else math.nan,
    }


def check_possible(shape: Sequence[int]) -> None:
    """Raise InputError or ConfigError early if slices of this shape cannot be compared."""
    _check_size(shape)
    if importlib.util.find_spec("skimage") is None:
        raise _missing("skimage")


def _check_size(shape: Sequence[int]) -> None:
    if min(shape) < SMALLEST:
        raise InputError(
            f"slices of {shape[0]} × {shape[1]} pixels are smaller than the {SMALLEST}-pixel window of SSIM"
        )


def _extra(name: str) -> Any:
    try:
        module: ModuleType = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise _missing(error.name) from error
    return module


def _missing(package: str | None) -> ConfigError:
    return ConfigError(f"quality needs the Python package {package!r}: pip install 'ministream[quality]'")
