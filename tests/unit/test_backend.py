"""The seam between algorithms and backends: an algorithm never looks into an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ministream import config, registry
from ministream.recon import open_algorithm
from ministream.recon.backend import Backend, default
from ministream.recon.geometry import Geometry
from ministream.recon.window import Window

GEOMETRY = Geometry(n=21, cols=24, axis_col=10.5)
SLICES = 3


class Handle:
    """An image that only its backend can read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array


class Sealed:
    """The default backend, with arrays that are closed to everybody else, as those of another processor would be."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(default(), name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            opened = [value.array if isinstance(value, Handle) else value for value in arguments]
            result = method(*opened, **keywords)
            return Handle(result) if name in {"new_image", "new_sinogram", "new_dual"} else result

        return call


def reconstruct(kind: str, options: dict[str, object], backend: Backend) -> np.ndarray:
    section = config.ReconSection.model_validate({"kind": kind, "circular_mask": True, **options})
    algorithm = open_algorithm(section, GEOMETRY, SLICES, backend=backend)
    window = Window(length=12, step=4, cols=24, slices=SLICES, backend=backend)
    image = backend.new_image(GEOMETRY, SLICES)
    for index in range(16):
        rows = np.random.default_rng(index).random((24, SLICES))
        window.slot(index, 0.37 * index)[:, :SLICES] = rows
        if window.due:
            algorithm.update(image, window, 2)
            window.updated()
    return backend.host(image)


CASES = [(kind, {}) for kind in registry.names("ministream.recon.algorithms")]
CASES += [("sirt", {"seed_fbp": True}), ("fista_tv", {"non_negative": True, "upper": 0.05}), ("mlem", {"subsets": 3})]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_an_algorithm_needs_its_backend_alone(kind: str, options: dict[str, object]) -> None:
    sealed: Any = Sealed()
    expected = reconstruct(kind, options, default())
    assert expected.any()
    np.testing.assert_array_equal(reconstruct(kind, options, sealed), expected)
