"""The real location of an HDF5 file's data: links, virtual datasets and external storage, followed explicitly.

HDF5 would follow them silently, to any file that the process can read, and would return zeros for missing data.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import h5py

from ministream import log
from ministream.errors import InputError
from ministream.source._watch import kind_of

_LOG = log.get(__name__)


@dataclass(frozen=True, slots=True)
class LinkPolicy:
    """Which files a scan may refer to: those below `folder`, or all with `follow`.

    `folder` has no symbolic links in it.
    """

    folder: Path
    follow: bool

    @classmethod
    def of(cls, scan: Path, *, follow: bool) -> LinkPolicy:
        """The files below the folder of `scan`."""
        return cls(scan.resolve().parent, follow)

    def allowed(self, target: str, *, source: Path, what: str) -> Path:
        """The file that `what` in the file `source` leads to; a relative name is below the folder of `source`.

        Raises InputError for a file that is absent, or that the policy does not allow.
        """
        path = (source.resolve().parent / target).resolve()
        if not self.follow and not path.is_relative_to(self.folder):
            raise InputError(
                f"{source}: {what} leads to {path}, outside the scan's folder {self.folder}. If you trust the file, "
                "give --set source.follow_links=true"
            )
        if kind_of(path) != "file":
            raise InputError(f"{source}: {what} leads to {path}, which is missing. Put it back, or repair the link.")
        _LOG.info("%s: %s leads to %s", source, what, path)
        return path


@dataclass(frozen=True, slots=True)
class MappedImages:
    """The images [first, stop) of a virtual dataset lie in `dataset` of `file`, there from `source_first` on.

    `file` None is the virtual dataset's own file. `plain` says that whole images follow each other on both sides.
    """

    first: int
    stop: int
    file: str | None
    dataset: str
    source_first: int
    plain: bool


def external_files(dataset: h5py.Dataset) -> list[str]:
    """The files that hold a dataset's raw data, as the dataset names them."""
    created = dataset.id.get_create_plist()
    return [os.fsdecode(created.get_external(k)[0]) for k in range(created.get_external_count())]


def mappings(dataset: h5py.Dataset) -> list[MappedImages]:
    """What a virtual dataset is made of, in order of its images. Empty where nothing is mapped."""
    return sorted((_mapping(dataset, source) for source in dataset.virtual_sources()), key=lambda found: found.first)


def _mapping(dataset: h5py.Dataset, source: h5py._hl.vds.VDSmap) -> MappedImages:
    (low, high), whole = source.vspace.get_select_bounds(), dataset.shape[1:]
    same = source.vspace.get_select_npoints() == (high[0] - low[0] + 1) * (dataset.size // max(1, dataset.shape[0]))
    from_low, from_high = _bounds(source.src_space)
    plain = (
        "%b" not in source.file_name + source.dset_name
        and same
        and tuple(high[1:]) == tuple(n - 1 for n in whole)
        and (from_low is None or (len(from_low) == len(low) and from_high[0] - from_low[0] == high[0] - low[0]))
        and (from_low is None or not any(from_low[1:]))
    )
    return MappedImages(
        first=int(low[0]),
        stop=int(high[0]) + 1,
        file=None if source.file_name == "." else source.file_name,
        dataset=source.dset_name,
        source_first=0 if from_low is None else int(from_low[0]),
        plain=plain,
    )


def _bounds(space: h5py.h5s.SpaceID) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """First and last corner of what is selected; (None, ()) for everything."""
    if space.get_select_type() == h5py.h5s.SEL_ALL or not space.get_simple_extent_ndims():
        return None, ()
    low, high = space.get_select_bounds()
    return tuple(low), tuple(high)
