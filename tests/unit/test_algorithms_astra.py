"""SIRT, CGLS, SART and FBP against ASTRA's CPU code, whose `linear` projector is Joseph's, on data that ASTRA made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ministream.recon import open_algorithm
from ministream.recon.backend.cpu import new_image
from ministream.recon.geometry import Geometry
from ministream.recon.window import Window
from tests.unit.dense import discs, section

astra: Any = pytest.importorskip("astra", reason="astra-toolbox is not installed")

N, PROJECTIONS = 96, 60
ANGLES_RAD = np.arange(PROJECTIONS) * np.pi / PROJECTIONS
TRUTH = discs(N, 1, (N - 1) / 2)[:, :, 0]


class Scan:
    """A sinogram by ASTRA and its reconstructions."""

    def __init__(self) -> None:
        self.volume = astra.create_vol_geom(N, N)
        geometry = astra.create_proj_geom("parallel", 1.0, N, ANGLES_RAD)
        self.projector = astra.create_projector("linear", geometry, self.volume)
        self.sinogram_id, self.sinogram = astra.create_sino(TRUTH, self.projector)

    def reconstruct(self, kind: str, iterations: int, **options: Any) -> NDArray[np.float32]:
        image_id = astra.data2d.create("-vol", self.volume, 0)
        settings = astra.astra_dict(kind) | {
            "ProjectorId": self.projector,
            "ProjectionDataId": self.sinogram_id,
            "ReconstructionDataId": image_id,
            "option": options,
        }
        algorithm = astra.algorithm.create(settings)
        astra.algorithm.run(algorithm, iterations)
        image: NDArray[np.float32] = astra.data2d.get(image_id)
        return image


@pytest.fixture(scope="module")
def scan() -> Any:
    yield Scan()
    astra.clear()


def ours(scan: Scan, kind: str, iterations: int, **options: Any) -> NDArray[np.float32]:
    geometry = Geometry(n=N, cols=N, axis_col=(N - 1) / 2)
    window = Window(length=PROJECTIONS, step=PROJECTIONS, cols=N, slices=1)
    for index, angle in enumerate(ANGLES_RAD):
        window.slot(index, angle)[:, 0] = scan.sinogram[index]
    image = new_image(geometry, 1)
    open_algorithm(section(kind, **options), geometry, 1).update(image, window, iterations)
    return image[:, :, 0]


def agreement(result: NDArray[np.float32], reference: NDArray[np.float32]) -> tuple[float, float]:
    """Correlation, and difference relative to the reference, inside the circle."""
    inside = Geometry(n=N, cols=N, axis_col=(N - 1) / 2).circle()
    a, b = result[inside].astype(float), reference[inside].astype(float)
    return float(np.corrcoef(a, b)[0, 1]), float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_forward_projection(scan: Scan) -> None:
    from ministream.recon.backend import cpu
    from ministream.recon.backend.cpu.layout import aligned_zeros
    from ministream.recon.geometry import Beams

    image, sinogram = aligned_zeros((N, N, 1)), aligned_zeros((PROJECTIONS, N, 1))
    image[:, :, 0] = TRUTH
    cpu.forward(image, sinogram, Beams.at(ANGLES_RAD, (N - 1) / 2))
    np.testing.assert_allclose(sinogram[:, :, 0], scan.sinogram, atol=1e-4 * scan.sinogram.max())


def test_sirt(scan: Scan) -> None:
    correlation, difference = agreement(ours(scan, "sirt", 50), scan.reconstruct("SIRT", 50))
    assert correlation > 0.9999
    assert difference < 0.005


def test_cgls(scan: Scan) -> None:
    correlation, difference = agreement(ours(scan, "cgls", 5), scan.reconstruct("CGLS", 5))
    assert correlation > 0.9999
    assert difference < 0.005


def test_sart(scan: Scan) -> None:
    reference = scan.reconstruct("SART", 10 * PROJECTIONS, Relaxation=0.5)
    correlation, difference = agreement(ours(scan, "sart", 10, relaxation=0.5), reference)
    assert correlation > 0.999
    assert difference < 0.03


def test_fbp(scan: Scan) -> None:
    correlation, difference = agreement(
        ours(scan, "fbp", 1, filter="ramp"), scan.reconstruct("FBP", 1, FilterType="ram-lak")
    )
    assert correlation > 0.99
    assert difference < 0.1
