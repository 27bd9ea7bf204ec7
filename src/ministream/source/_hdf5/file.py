"""HDF5 files of a scan; every failure names the file, the dataset and the remedy."""

from __future__ import annotations

import fcntl
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ministream import locks, log
from ministream.errors import InputError
from ministream.source._hdf5.failures import reading
from ministream.source._hdf5.links import LinkPolicy, MappedImages, external_files, mappings
from ministream.source._hdf5.stack import Stack, is_real
from ministream.source._images import Gap, Held, ImageRange, Images, JoinedImages
from ministream.source._watch import Unchanged, kind_of

_LOG = log.get(__name__)

MAX_TEXT = 256
MAX_LISTED = 10
MAX_LINKS = 16


class DataFile:
    """An HDF5 file open for reading, and the files that its links lead to."""

    def __init__(self, path: Path, *, follow_links: bool = False, growing: bool = False) -> None:
        """Raises InputError that distinguishes a missing file, an unreadable one, not HDF5, and a truncated one.

        A `growing` file may be open for writing, by a writer in SWMR mode or one that opens and closes it.
        """
        self.path, self._growing = path, growing
        self._policy = LinkPolicy.of(path, follow=follow_links)
        self._files: dict[Path, tuple[h5py.File, Unchanged]] = {}
        self._file = self._opened(path)

    def close(self) -> None:
        """Close the file and those it leads to; repeatable."""
        for file, _ in self._files.values():
            file.close()

    def contents(self) -> str:
        """The stacks of images in the file, else what is at its root, for messages."""
        with reading(self.path, "the root group"):
            stacks: list[str] = []
            self._file.visititems(
                lambda name, item: (
                    stacks.append(f"/{name}") if isinstance(item, h5py.Dataset) and item.ndim == 3 else None
                )
            )
            return ", ".join(stacks[:MAX_LISTED] or sorted(self._file)[:MAX_LISTED]) or "nothing"

    def named(self, last: str) -> list[str]:
        """The datasets of the file, behind no links, whose names end with `last`."""
        with reading(self.path, "the root group"):
            found: list[str] = []
            self._file.visit(lambda name: found.append(f"/{name}") if name.endswith(last) else None)
            return found

    def groups(self) -> list[str]:
        """What is at the root."""
        with reading(self.path, "the root group"):
            return sorted(self._file)

    def has(self, name: str) -> bool:
        """Whether the file has an object, or at least a link, of that name."""
        with reading(self.path, name):
            parent, _, last = name.rpartition("/")
            group = self._walk(self.path, parent, name)
            return isinstance(group, h5py.Group) and group.get(last, getlink=True) is not None

    def find(self, *names: str) -> h5py.Dataset | None:
        """The first of these datasets that the file has.

        Raises InputError where the name stands for a group, for a dataset that is broken or of an unknown type, or for
        a link that the policy does not allow.
        """
        for name in names:
            with reading(self.path, name):
                item = self._walk(self.path, name, name)
                if item is None:
                    continue
                if isinstance(item, h5py.Dataset) and item.dtype is not None:
                    return self._checked(item, MAX_LINKS)
            raise InputError(f"{self.path}: {name} is a group, expected a dataset")
        return None

    def parts(self, name: str) -> list[h5py.Dataset]:
        """The numbered datasets of a group, such as `data_000001`, in order; empty where `name` is no such group."""
        with reading(self.path, name):
            group = self._walk(self.path, name, name)
            if not isinstance(group, h5py.Group):
                return []
            parts = sorted((int(found[0]), part) for part in group if (found := re.findall(r"(\d+)$", part)))
        for (number, part), (following, other) in itertools.pairwise(parts):
            if following != number + 1:
                raise InputError(
                    f"{self.path}: in {name}, {other} follows {part}, expected parts with successive numbers. Put the "
                    "missing part back, or name the dataset or group of the projections with --set source.data=NAME"
                )
        datasets = (self.find(f"{name.rstrip('/')}/{part}") for _, part in parts)
        return [dataset for dataset in datasets if dataset is not None]

    def images(self, dataset: h5py.Dataset, *, axes: Sequence[int] = (0, 1, 2), unsigned: bool = False) -> Images:
        """The images of a dataset, those of a virtual one in the files where they are.

        Raises InputError for anything but [image, row, column] of real numbers, and for parts that are missing.
        """
        return self._images(dataset, tuple(axes), unsigned, MAX_LINKS)

    def image(self, dataset: h5py.Dataset, *, unsigned: bool = False) -> Images:
        """The one image of a dataset [row, column]. Raises InputError for anything but real numbers."""
        path = Path(dataset.file.filename)
        if not is_real(dataset):
            raise InputError(f"{path}: {dataset.name} holds {dataset.dtype}, expected integers or floats")
        with reading(path, dataset.name):
            image = np.asarray(dataset[()])
        image = image.astype(image.dtype.newbyteorder("="))
        if unsigned and image.dtype.kind == "i":
            image = image.view(f"u{image.dtype.itemsize}")
        return Held(f"{path}: {dataset.name}", image[None])

    def values(self, dataset: h5py.Dataset) -> NDArray[np.float64]:
        """A small dataset of real numbers as a flat array. Raises InputError for anything else."""
        if not is_real(dataset):
            raise InputError(f"{self.path}: {dataset.name} holds {dataset.dtype}, expected numbers")
        with reading(self.path, dataset.name):
            return np.asarray(dataset[()], dtype=np.float64).ravel()

    def number(self, *names: str) -> float | None:
        """The first number of the first of these datasets; None where it is absent, empty or no number."""
        dataset = self.find(*names)
        if dataset is None or not dataset.size or not is_real(dataset):
            return None
        return float(self.values(dataset)[0])

    def flag(self, name: str) -> bool:
        """Whether a dataset of one truth value is there and true."""
        dataset = self.find(name)
        if dataset is None or dataset.size != 1 or dataset.dtype.kind not in "biu":
            return False
        with reading(self.path, name):
            return bool(np.ravel(dataset[()])[0])

    def quantity(self, name: str, factors: Mapping[str, float]) -> float | None:
        """A positive number times the factor of its `units` attribute; None where it is absent or unclear.

        Units are not guessed: a number without units that `factors` knows is left out with a warning.
        """
        value = self.number(name)
        if value is None:
            return None
        units = self.attribute(name, "units").lower()
        if units not in factors or not math.isfinite(value) or value <= 0:
            _LOG.warning(
                "%s: %s = %g %s is left out: not positive, or its units are unknown", self.path, name, value, units
            )
            return None
        return value * factors[units]

    def attribute(self, name: str, key: str) -> str:
        """A text attribute of a dataset that exists, empty where there is none."""
        with reading(self.path, f"{name} attribute {key}"):
            item = self._walk(self.path, name, name)
            return "" if item is None else _as_text(item.attrs.get(key, ""))

    def texts(self, name: str, key: str) -> list[str]:
        """A text attribute that may hold several texts."""
        with reading(self.path, f"{name} attribute {key}"):
            item = self._walk(self.path, name, name)
            value = () if item is None else item.attrs.get(key, ())
            return [
                _as_text(text) for text in (value.ravel() if isinstance(value, np.ndarray) else np.atleast_1d(value))
            ]

    def text(self, name: str) -> str:
        """A text dataset, empty where it is absent or holds no text."""
        dataset = self.find(name)
        if dataset is None or not dataset.size:
            return ""
        with reading(self.path, name):
            return _as_text(dataset[()])

    def _images(self, dataset: h5py.Dataset, axes: tuple[int, ...], unsigned: bool, links: int) -> Images:
        path = Path(dataset.file.filename)
        if dataset.is_virtual and dataset.ndim == 3 and axes[0] == 0:
            found = mappings(dataset)
            apart = all(one.stop <= other.first for one, other in itertools.pairwise(found))
            if found and apart and all(part.plain for part in found):
                return self._joined(path, dataset, found, axes, unsigned, links)
        watched = [watch for _, watch in self._files.values()] if dataset.is_virtual else [self._files[path][1]]
        watched += [Unchanged(self._raw(path, dataset, name)) for name in external_files(dataset)]
        return Stack(path, dataset, axes=axes, unsigned=unsigned, watched=watched)

    def _joined(
        self, path: Path, dataset: h5py.Dataset, found: Sequence[MappedImages], axes: tuple[int, ...], unsigned: bool,
        links: int,
    ) -> Images:  # fmt: skip
        """The images of a virtual dataset, read from its sources, so that what these lack is known."""
        stacks: list[Images] = []
        end = 0
        for part in found:
            images = self._images(self._source(path, dataset, part.file, part.dataset), axes, unsigned, links - 1)
            count = max(0, min(part.stop - part.first, images.count - part.source_first))
            stacks += [Gap(images, part.first - end), ImageRange(images, part.source_first, count)]
            stacks += [Gap(images, part.stop - part.first - count)]
            end = part.stop
        stacks.append(Gap(stacks[0], dataset.shape[0] - end))
        return JoinedImages(f"{path}: {dataset.name}", [stack for stack in stacks if stack.count])

    def _checked(self, dataset: h5py.Dataset, links: int) -> h5py.Dataset:
        """The dataset, whose raw data and sources are there and allowed."""
        path = Path(dataset.file.filename)
        if not links:
            raise InputError(f"{path}: {dataset.name} leads through more than {MAX_LINKS} virtual datasets")
        if not dataset.is_virtual and not external_files(dataset):
            return dataset
        raw = [self._raw(path, dataset, name) for name in external_files(dataset)]
        needed, held = dataset.size * dataset.dtype.itemsize, sum(file.stat().st_size for file in raw)
        if raw and held < needed:
            raise InputError(
                f"{path}: the external storage of {dataset.name} has {held} bytes, expected {needed}. Copy it again."
            )
        for part in mappings(dataset) if dataset.is_virtual else []:
            self._checked(self._source(path, dataset, part.file, part.dataset), links - 1)
        return dataset

    def _raw(self, path: Path, dataset: h5py.Dataset, name: str) -> Path:
        return self._policy.allowed(name, source=path, what=f"the external storage of {dataset.name}")

    def _source(self, path: Path, dataset: h5py.Dataset, file: str | None, name: str) -> h5py.Dataset:
        """A source of a virtual dataset; of a numbered series the first one."""
        what = f"the virtual dataset {dataset.name}"
        source = path if file is None else self._policy.allowed(file.replace("%b", "0"), source=path, what=what)
        item = self._walk(source, name.replace("%b", "0"), name)
        if not isinstance(item, h5py.Dataset):
            raise InputError(f"{path}: {what} leads to {name} in {source}, which has no such dataset. Repair the file.")
        return item

    def _walk(self, path: Path, name: str, asked: str, links: int = MAX_LINKS) -> h5py.HLObject | None:
        """The object of that name; every soft and external link on the way is followed here, not by HDF5."""
        node = self._opened(path)["/"]
        parts = [part for part in name.split("/") if part not in ("", ".")]
        for k, part in enumerate(parts):
            link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
            if link is None:
                if links == MAX_LINKS:
                    return None
                raise InputError(f"{self.path}: {asked} cannot be read: a link in it leads nowhere, to {path}: {name}")
            if isinstance(link, h5py.HardLink):
                node = _child(path, node, part)
                continue
            if not links:
                raise InputError(f"{self.path}: {asked} cannot be read: it leads through more than {MAX_LINKS} links")
            rest = "/".join(parts[k + 1 :])
            if isinstance(link, h5py.ExternalLink):
                target = self._policy.allowed(
                    link.filename, source=path, what=f"the link {node.name.rstrip('/')}/{part}"
                )
                return self._walk(target, f"{link.path}/{rest}", asked, links - 1)
            where = link.path if link.path.startswith("/") else f"{node.name}/{link.path}"
            return self._walk(path, f"{where}/{rest}", asked, links - 1)
        return node

    def _opened(self, path: Path) -> h5py.File:
        if path not in self._files:
            _check_there(path)
            watch = Unchanged(path, growing=self._growing)
            self._files[path] = (_open(path, growing=self._growing), watch)
        return self._files[path][0]


def written_in_swmr_mode(path: Path) -> bool:
    """Whether a writer in SWMR mode has the file open, or was killed before it closed it.

    The superblock (HDF5 file format, version 3) says so in its flags: bit 0 for writing, bit 2 for SWMR.
    """
    with path.open("rb") as file:
        head = file.read(12)
    return len(head) == 12 and head[8] >= 3 and head[11] & 0b101 == 0b101


def _child(path: Path, group: h5py.Group, name: str) -> h5py.HLObject:
    """An object of a group; a dataset so that HDF5 looks for its raw data and sources beside the file alone."""
    if not issubclass(group.get(name, getclass=True), h5py.Dataset):
        return group[name]
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_efile_prefix(bytes(path.resolve().parent))
    access.set_virtual_prefix(bytes(path.resolve().parent))
    return h5py.Dataset(h5py.h5d.open(group.id, name.encode(), access))


def _check_there(path: Path) -> None:
    found = kind_of(path)
    if found == "absent":
        raise InputError(f"{path}: no such file")
    if found == "folder":
        raise InputError(f"{path}: is a directory, expected an HDF5 file")


def _open(path: Path, *, growing: bool) -> h5py.File:
    try:
        swmr = written_in_swmr_mode(path)
        if swmr and not growing:
            raise InputError(
                f"{path}: is being written in SWMR mode, or its writer was killed. Follow it with "
                "--set source.follow=true, which reads the present images and those to come"
            )
        if growing and not swmr:
            _check_not_locked(path)
        if h5py.is_hdf5(path):
            # our lock would block a writer that opens the file for every image
            return h5py.File(path, "r", swmr=swmr, locking=False if growing else locks.for_reading(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error}{_hint(str(error))}") from error
    raise InputError(f"{path}: is not an HDF5 file")


def _check_not_locked(path: Path) -> None:
    """Raises BlockingIOError while a writer has the file open, which holds an exclusive lock as HDF5 does."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError("a writer holds the lock") from None
        except OSError as error:
            if not locks.are_missing(error):
                raise


def _hint(message: str) -> str:
    if "truncated" in message:
        return ": the file was cut short, copy it again"
    if "lock" in message:
        return (
            ": another process is writing it. Wait until it is closed, or follow it with --set source.follow=true. "
            "Where no process has it open, a lock is left over on its server: set HDF5_USE_FILE_LOCKING=FALSE"
        )
    return ""


def _as_text(value: Any) -> str:
    """The first element of a value as h5py returns text, in any of its forms; empty for what is no text."""
    first = value.flat[0] if isinstance(value, np.ndarray) and value.size else value
    if isinstance(first, bytes):
        first = first.decode("utf-8", errors="replace")
    return "".join(filter(str.isprintable, first)).strip()[:MAX_TEXT] if isinstance(first, str) else ""
