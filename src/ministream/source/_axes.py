"""The order of a dataset's axes, from the file's attribute."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ministream.errors import ConfigError, InputError
from ministream.model import Notice, notice

_ANGLE = {"theta", "angle", "angles", "rotationangle", "rotation", "omega", "phi", "projection", "projections"}
_ANGLE |= {"frame", "frames", "image", "images", "view", "views", "scan", "n", "t", "time", "thetas"}
_ROW = {"y", "row", "rows", "vertical", "detectory", "ydim", "height", "v", "slice", "slices"}
_COL = {"x", "col", "cols", "column", "columns", "horizontal", "detectorx", "xdim", "width", "u"}

Axes = tuple[int, int, int]


def axes_of(path: str, name: str, said: Sequence[str]) -> tuple[Axes, list[Notice]]:
    """The dataset's axes that hold image, row and column, and a warning about unknown axis names.

    `said` is the attribute `axes` in whatever form: `theta:y:x`, `['y', 'theta', 'x']`, one text per axis. Without it
    the order is image, row, column. Raises InputError for contradictory names.
    """
    words, known = _kinds(" ".join(said))
    if not words:
        return (0, 1, 2), []
    if (order := _order(known)) is not None:
        return order, []
    if len(words) == 3 and known[1:] == [None, None] and known[0] in ("angle", None):
        text = f"{name} has axes {':'.join(words)}, which are not known: taken as theta:y:x"
        return (0, 1, 2), [notice("axes-unknown", text)]
    raise InputError(
        f"{path}: {name} has axes {':'.join(words)}, expected theta, y and x in any order. Correct the attribute, for "
        f"example with h5py: file['{name}'].attrs['axes'] = 'theta:y:x'"
    )


def chosen_axes(said: str) -> Axes:
    """The axes that hold image, row and column, as the user says. Raises ConfigError for what is no such order."""
    order = _order(_kinds(said)[1])
    if order is None:
        raise ConfigError(f"[source]: axes = {said!r}, expected theta, y and x in any order, such as y:theta:x")
    return order


def _kinds(said: str) -> tuple[list[str], list[str | None]]:
    """The words of a description of axes, and what each stands for."""
    words = re.findall(r"[a-z_]+\d*|\.", said.lower())
    # flats and darks have axes such as theta_white
    return words, [_kind(re.sub(r"_(white|dark|flat).*|[_\d]", "", word)) for word in words]


def _order(known: Sequence[str | None]) -> Axes | None:
    if sorted(kind or "" for kind in known) != ["angle", "col", "row"]:
        return None
    return known.index("angle"), known.index("row"), known.index("col")


def _kind(word: str) -> str | None:
    kinds = {"angle": _ANGLE, "row": _ROW, "col": _COL}
    return next((kind for kind, words in kinds.items() if word in words), None)
