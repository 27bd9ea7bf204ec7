"""Compile the kernels for this processor, so that no first frame of a scan waits for them.

Several processes of this at a time share the work. A slab of 112 slices uses the kernels for 64, 32 and 16 slices;
those for narrower slabs are compiled by the first job that needs them.
"""

import numpy as np

from ministream.prep import kernels
from ministream.recon import backend

backend.default().warm_up(112)
for dtype in kernels.DTYPES:
    kernels.warm_up(np.dtype(dtype))
