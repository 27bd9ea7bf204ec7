#!/usr/bin/env bash
# tifffile 2026.3.3: an ImageJ stack that was cut short reads as one image, without an exception or a warning.
#
# Expected: an error, since the file's own ImageJ description says how many images it holds (`images=12`).
# Found:    where the file describes its first page alone, as ImageJ does for stacks above 4 GiB, `imread` returns that
#           page. A line of the logger `tifffile` is the only sign. The whole file reads as 12 images.
# Output:   whole: (12, 5, 8); cut short: (5, 8)
# Instead:  compare `TiffFile.imagej_metadata["images"]` with the number of images, as source/tiff.py does.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check tifffile==2026.3.3 numpy==2.4.0
found=$("$folder/venv/bin/python" - "$folder/stack.tif" <<'PYTHON' 2>/dev/null
import os
import sys

import numpy as np
import tifffile

path = sys.argv[1]
tifffile.imwrite(path, np.ones((12, 5, 8), np.uint16), imagej=True)
with tifffile.TiffFile(path, mode="r+b") as file:
    # the first page's directory ends with the offset of the next one; 0 says that there is none
    file.filehandle.seek(file.pages.first.offset + 2 + 12 * len(file.pages.first.tags))
    file.filehandle.write(bytes(4))
whole = tifffile.imread(path).shape
os.truncate(path, 1000)
print(f"whole: {whole}; cut short: {tifffile.imread(path).shape}")
PYTHON
)
printf '%s\n' "$found"
[[ $found = "whole: (12, 5, 8); cut short: (5, 8)" ]]
