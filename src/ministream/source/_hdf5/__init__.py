"""Reading scans from HDF5 files; h5py is used here alone among the sources."""

from ministream.source._hdf5.file import DataFile, written_in_swmr_mode

__all__ = ["DataFile", "written_in_swmr_mode"]
