"""Where projections come from; one module per kind of source."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import pydantic
from numpy.typing import NDArray

from ministream import config, registry
from ministream.errors import ConfigError, ProtocolError
from ministream.model import Frame, Scan, Slab

MAX_RECIPE_CHARS = 4096


class Source(Protocol):
    """One acquisition, opened and checked; the producer job reads it once, frame by frame."""

    scan: Scan

    def frames(self) -> Iterator[Frame]:
        """Darks, flats, then projections in acquisition order, each made or read when it is asked for."""
        ...

    def close(self) -> None:
        """Give back files and connections; harmless when called again."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Recipe(pydantic.BaseModel):
    """What every source's truth recipe says; the rest belongs to the source named."""

    model_config = pydantic.ConfigDict(strict=True)

    source: str
    rows: int
    cols: int


def open_source(section: config.SourceSection, *, order: str, repeat: int) -> Source:
    """Open the source that `[source]` describes, its views in `order`, played `repeat` times.

    Raises ConfigError for a wrong kind or option and InputError for a file that cannot be used.
    """
    plugin = registry.load(__name__, section.kind)
    options = config.parse(plugin.Options, section.options, f"[source] {section.kind}")
    source: Source = plugin.Source(options, order=order, repeat=repeat)
    return source


def truth(scan: Scan, slab: Slab) -> NDArray[np.float32] | None:
    """The ground truth of a slab, [slab.rows, cols, cols] attenuation per pixel; None where it is not known.

    Raises ProtocolError when the scan's recipe, which comes from the producer, is malformed or of another scan.
    """
    if scan.truth is None:
        return None
    recipe = _read_recipe(scan.truth)
    if (recipe.rows, recipe.cols) != (scan.rows, scan.cols):
        described, sent = f"{recipe.rows} x {recipe.cols}", f"{scan.rows} x {scan.cols}"
        raise ProtocolError(f"the scan's truth recipe is for a detector of {described} pixels, the scan's has {sent}")
    image: NDArray[np.float32] = _plugin_with_truth(recipe.source).truth(scan.truth, slab)
    return image


def _read_recipe(text: str) -> _Recipe:
    if len(text) > MAX_RECIPE_CHARS:
        raise ProtocolError(f"the scan's truth recipe has {len(text)} characters, more than {MAX_RECIPE_CHARS}")
    try:
        return _Recipe.model_validate_json(text)
    except pydantic.ValidationError as error:
        raise ProtocolError(f"the scan's truth recipe is malformed: {error.errors()[0]['msg']}") from None


def _plugin_with_truth(name: str) -> Any:
    try:
        plugin = registry.load(__name__, name)
    except ConfigError as error:
        raise ProtocolError(f"the scan's truth recipe cannot be followed: {error}") from error
    if not hasattr(plugin, "truth"):
        raise ProtocolError(f"the scan's truth recipe names source {name!r}, which knows no ground truth")
    return plugin
