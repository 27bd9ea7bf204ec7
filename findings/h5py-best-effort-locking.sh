#!/usr/bin/env bash
# h5py 3.16.0 (PyPI), also HDF5 1.10.8: HDF5_USE_FILE_LOCKING=BEST_EFFORT does not open a file where flock(2) fails with ENOLCK.
#
# Expected: the file opens, since "best effort" says that a file system without locks is no error; NFS without its lock
#           daemon answers ENOLCK.
# Found:    only ENOSYS counts as "no locks". After ENOLCK opening fails as it does without BEST_EFFORT.
# Output:   ENOSYS: opened; ENOLCK: not opened
# Instead:  ask flock oneself, and open with `locking=False`, as locks.py does.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/flock.c" <<'C'
#include <errno.h>
#include <stdlib.h>
int flock(int fd, int how) { (void)fd; (void)how; errno = atoi(getenv("FLOCK_ERRNO")); return -1; }
C
cc -shared -fPIC -o "$folder/flock.so" "$folder/flock.c"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check h5py==3.16.0 numpy==2.4.0
python=$folder/venv/bin/python
"$python" -c 'import sys, h5py; h5py.File(sys.argv[1], "w").close()' "$folder/file.h5"

# opens ERRNO: whether the file opens where flock fails with it.
opens() {
    FLOCK_ERRNO=$("$python" -c "import errno; print(errno.$1)") HDF5_USE_FILE_LOCKING=BEST_EFFORT \
        LD_PRELOAD=$folder/flock.so "$python" -c 'import sys, h5py; h5py.File(sys.argv[1], "r")' "$folder/file.h5" \
        2>/dev/null && echo opened || echo "not opened"
}

found="ENOSYS: $(opens ENOSYS); ENOLCK: $(opens ENOLCK)"
printf '%s\n' "$found"
[[ $found = "ENOSYS: opened; ENOLCK: not opened" ]]
