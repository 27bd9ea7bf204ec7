"""Where projections come from; one module per kind of source.

A source module offers `Options`, a configuration section, and `Source`. A recording or a simulation subclasses
`Recorded`: it is described without being played, and it can be played in another order or several times. A recorded
stream subclasses `AsRecorded`: it has one order. A detector subclasses `Live`: it has one order, does not know its
length, and nothing but the producer job connects to it.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
import pydantic
from numpy.typing import NDArray

from ministream import config, registry
from ministream.errors import ConfigError, ProtocolError
from ministream.model import Frame, Scan, Slab

MAX_RECIPE_CHARS = 4096


class Source(abc.ABC):
    """One acquisition, opened and checked; the producer job reads it once, frame by frame."""

    dropped: int = 0
    """Projections of the acquisition that `frames` has left out because they are lost; the scan is incomplete."""

    policies: Mapping[int, str] = MappingProxyType({})
    """Projections that a policy dropped when the stream was recorded, each with the policy's name; not in `dropped`."""

    keeps_time: bool = False
    """Whether frames come at times of their own, as from a detector, however fast they are taken."""

    @abc.abstractmethod
    def describe(self) -> Scan:
        """Geometry, counts and calibration of the acquisition; the same value at every call."""

    @abc.abstractmethod
    def frames(self) -> Iterator[Frame]:
        """Darks, flats, then projections in acquisition order, each made or read on demand."""

    def stop(self) -> None:  # noqa: B027
        """End `frames` soon, from any thread; sources that wait for something override it."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close files and connections; repeatable."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Recorded(Source):
    """A recording or a simulation: opening and describing it is cheap and has no side effects.

    Made with `order`, one of `_order.ORDERS`, and `repeat`, how often its projections are played.
    """


class AsRecorded(Source):
    """A recorded stream, played as it was: one order, one pass. Opening it is cheap and has no side effects."""


class Live(Source):
    """A detector: `describe` waits for its first image, `frames` ends when the acquisition does.

    The scan that it describes has 0 projections unless the options say how many come. Images that are not fetched are
    lost in the detector's own queue.
    """

    keeps_time = True


class _Recipe(pydantic.BaseModel):
    """Fields of every source's truth recipe; the rest depends on the source."""

    model_config = pydantic.ConfigDict(strict=True)

    source: str
    rows: int
    cols: int


def open_source(section: config.SourceSection, *, order: str, repeat: int) -> Source:
    """Open the source that `[source]` names, its projections in `order`, played `repeat` times.

    Raises ConfigError for a wrong kind or option, and for an order or repetition of a source that has one order;
    InputError for a file that cannot be used.
    """
    plugin = registry.load(__name__, section.kind)
    options = config.parse(plugin.Options, section.options, f"[source] {section.kind}")
    source: Source
    if issubclass(plugin.Source, Live | AsRecorded):
        _check_playback(section.kind, order, repeat)
        source = plugin.Source(options)
    else:
        source = plugin.Source(options, order=order, repeat=repeat)
    return source


def describe(section: config.SourceSection, *, order: str, repeat: int) -> Scan | None:
    """What the source that `[source]` names will send, without its pixels; None for a live source, which is not opened.

    Raises ConfigError and InputError as `open_source` does.
    """
    if issubclass(registry.load(__name__, section.kind).Source, Live):
        plugin = registry.load(__name__, section.kind)
        config.parse(plugin.Options, section.options, f"[source] {section.kind}")
        _check_playback(section.kind, order, repeat)
        return None
    with open_source(section, order=order, repeat=repeat) as source:
        return source.describe()


def _check_playback(kind: str, order: str, repeat: int) -> None:
    if order != "sequential" or repeat != 1:
        raise ConfigError(
            f"[producer] order = {order!r}, repeat = {repeat}: [source] {kind} has one order, and its images come "
            "once. Omit order and repeat."
        )


def truth(scan: Scan, slab: Slab, *, n: int, at: float) -> NDArray[np.float32] | None:
    """The ground truth of a slab, [slab.rows, n, n] attenuation per pixel around the axis; None where it is not known.

    `at` is the time of interest as a share of the scan's projections, for a sample that changes.

    Raises ProtocolError when the scan's recipe, which comes from the producer, is malformed or of another scan.
    """
    if scan.truth is None:
        return None
    recipe = _read_recipe(scan.truth)
    if (recipe.rows, recipe.cols) != (scan.rows, scan.cols):
        described, sent = f"{recipe.rows} x {recipe.cols}", f"{scan.rows} x {scan.cols}"
        raise ProtocolError(f"the scan's truth recipe is for a detector of {described} pixels, the scan's has {sent}")
    image: NDArray[np.float32] = _plugin_with_truth(recipe.source).truth(scan.truth, slab, n=n, at=at)
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
        raise ProtocolError(f"the scan's truth recipe cannot be used: {error}") from error
    if not hasattr(plugin, "truth"):
        raise ProtocolError(f"the scan's truth recipe names source {name!r}, which has no ground truth")
    return plugin
