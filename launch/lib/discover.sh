# Sourced by setup.sh: what this machine has. Nothing here changes anything.
# shellcheck shell=bash

# suits PYTHON: is it a Python that Mini-Stream runs on?
suits() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# find_python: `python`, the one that was named or the first that suits.
find_python() {
    local candidate candidates=(python3 python3.{11..15})
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if suits "$candidate"; then
            python=$("$candidate" -c 'import sys; print(sys.executable)')
            return
        fi
    done
    die "Mini-Stream needs Python 3.11 or later; ${PYTHON:-python3} is: $("${PYTHON:-python3}" -V 2>&1 || true)." \
        "Install or load one, or name it: PYTHON=/path/to/python3.11 bash launch/setup.sh"
}

# probe PYTHON: fill the map `has` with what lib/probe.py says about it.
probe() {
    local key value
    has=()
    while read -r key value; do
        has["$key"]=$value
    done < <("$1" -B "$lib/probe.py" 2>/dev/null)
}

# find_base: `base`, a Python that already has mpi4py and a parallel h5py: the active environment's or `python`.
# `near_miss` says why one that comes close will not do.
find_base() {
    local candidate
    for candidate in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "${CONDA_PREFIX:+$CONDA_PREFIX/bin/python}" "$python"; do
        [[ $candidate ]] && suits "$candidate" && probe "$candidate" && [[ ${has[parallel]:-no} = yes ]] || continue
        base=$("$candidate" -c 'import sys; print(sys.executable)')
        [[ ${has[old]} ]] || return 0
        near_miss="$base is left aside: ${has[old]}"
    done
    base=''
    return 1
}

# mpi_of COMPILER_OR_LAUNCHER: `openmpi VERSION` or `mpich VERSION`; fails for anything else.
mpi_of() {
    local answer
    answer=$("$1" --showme:version 2>/dev/null || "$1" --version 2>&1; "$1" -v 2>&1 </dev/null || true)
    if [[ $answer =~ 'Open MPI'\)?\ ([0-9.a-z]+) ]]; then
        printf 'openmpi %s' "${BASH_REMATCH[1]}"
    elif [[ $answer =~ ('MPICH version'|'HYDRA build details:'[[:space:]]+'Version:')[[:space:]]+([0-9.a-z]+) ]]; then
        printf 'mpich %s' "${BASH_REMATCH[2]}"
    else
        return 1
    fi
}

# hdf5_of DIR: the version of the parallel HDF5 installed there; fails when there is none.
hdf5_of() {
    local header=$1/include/H5pubconf.h
    grep -qs '^#define H5_HAVE_PARALLEL 1' "$header" && sed -n 's/^#define H5_VERSION "\(.*\)"/\1/p' "$header"
}

# find_stack: `mpicc`, `mpi` (openmpi VERSION, mpich VERSION), `hdf5_dir` and `hdf5` of an MPI with parallel HDF5.
# First what modules put on the PATH, then Debian's, where several MPIs live side by side under their own names.
find_stack() {
    local dir flavour h5pcc
    h5pcc=$(command -v h5pcc || true)
    for dir in "${HDF5_DIR:-}" "${h5pcc%/bin/h5pcc}"; do
        ! take_stack mpicc "$dir" || return 0
    done
    flavour=$(mpi_of mpicc || true)
    for flavour in "${flavour%% *}" openmpi mpich; do
        for dir in /usr/lib/*/hdf5/"$flavour"; do
            ! take_stack "mpicc.$flavour" "$dir" || return 0
        done
    done
    return 1
}

# take_stack MPICC HDF5_DIR: make these two the stack if both are there and are the MPI that was asked for.
take_stack() {
    local compiler=$1 dir=$2 found version
    command -v "$compiler" >/dev/null && version=$(hdf5_of "$dir") && found=$(mpi_of "$compiler") || return 1
    [[ ${wanted_mpi:-${found%% *}} = "${found%% *}" ]] || return 1
    mpicc=$compiler mpi=$found hdf5_dir=$dir hdf5=$version
}

# can_build: a stack is there, and its compiler finds mpi.h and Python's headers.
can_build() {
    local headers
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    find_stack &&
        printf '#include <Python.h>\n#include <mpi.h>\n' | "$mpicc" -I"$headers" -x c -fsyntax-only - 2>/dev/null
}

# can_install: root on a system with apt.
can_install() {
    [[ $EUID = 0 ]] && command -v apt-get >/dev/null
}

# build_packages: the Debian packages that h5py is compiled with.
build_packages() {
    printf '%s\n' gcc libc6-dev
    [[ $python != /usr/bin/* ]] || printf '%s\n' "lib$(python_name)-dev"
    case ${wanted_mpi:-openmpi} in
        openmpi) printf '%s\n' openmpi-bin libopenmpi-dev libhdf5-openmpi-dev ;;
        mpich) printf '%s\n' mpich libmpich-dev libhdf5-mpich-dev ;;
    esac
}

# python_name: python3.11, as Debian's packages call it.
python_name() {
    "$python" -c 'import sys; print("python3.%d" % sys.version_info.minor)'
}

# missing_for COMMAND PACKAGE …: the packages of those commands that are not found.
missing_for() {
    while (($#)); do
        command -v "$1" >/dev/null || printf '%s\n' "$2"
        shift 2
    done
}

# missing_packages: the Debian packages still missing for the chosen way and the wanted parts.
missing_packages() {
    "$python" -c 'import ensurepip' 2>/dev/null || printf '%s\n' "$(python_name)-venv"
    if [[ $way = build ]] && ! has_parallel_h5py && ! can_build; then
        build_packages
    fi
    if [[ " $with " = *' proxies '* ]]; then
        missing_for stunnel stunnel4 haproxy haproxy nginx nginx-light
        [[ -e /usr/lib/nginx/modules/ngx_stream_module.so ]] || printf '%s\n' libnginx-mod-stream
    fi
    if [[ " $with " = *' tests '* ]]; then
        missing_for slurmctld slurmctld slurmd slurmd sbatch slurm-client munged munge
        missing_for ip iproute2 nft nftables iptables iptables chromium chromium
    fi
}
