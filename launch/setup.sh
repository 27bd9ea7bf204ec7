#!/usr/bin/env bash
# Makes .venv, where `mpirun -n N ministream …` works. Safe to repeat; instant when nothing is to be done.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash launch/setup.sh [options]

Makes .venv in the project's folder, in the first of these ways that is possible:
  environment  mpi4py and a parallel h5py are here already (modules, conda, an active environment):
               .venv is laid over them, they stay untouched
  build        h5py is compiled against the MPI and parallel HDF5 found here; root on Debian installs them
  pip          neither is possible: pip's MPI and a serial h5py

options:
  --check              only report: what is here, what would be done; exit status 1 when something is to be done
  --mpi openmpi|mpich  the MPI to use (default: the one whose mpicc is on the PATH, else Open MPI)
  --with-tests         also what the tests need (pytest, …; Slurm, iproute2, nftables, iptables, Chromium)
  --with-proxies       also stunnel, HAProxy and nginx
  --with-bench         also what the benchmarks need
  --locked             exactly the packages of launch/requirements.lock, checked by their hashes (not those that only
                       tests and benchmarks need)
  --fresh              make .venv anew, for instance after MPI modules became available
  -h, --help           this text

environment: PYTHON (the Python to use), HDF5_DIR (a parallel HDF5), XDG_CACHE_HOME (compiled wheels, log)
TEXT
}

readonly H5PY_VERSION=3.16.0
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
lib=$root/launch/lib
lock=$root/launch/requirements.lock
venv=$root/.venv
env_file=$venv/ministream-env.sh
stamp=$venv/ministream-setup
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ministream
declare -A has=()
check='' fresh='' wanted_mpi='' with=''
way='' python='' base='' near_miss='' mpicc='' mpi='' hdf5='' hdf5_dir=''
export PATH=$PATH:/usr/sbin:/sbin # the daemons that tests start
export PYTHONDONTWRITEBYTECODE=1  # importing from an environment that was here before must not change it
# shellcheck source-path=SCRIPTDIR source=lib/report.sh
. "$lib/report.sh"
# shellcheck source-path=SCRIPTDIR source=lib/discover.sh
. "$lib/discover.sh"
# shellcheck source-path=SCRIPTDIR source=lib/install.sh
. "$lib/install.sh"

parse_arguments() {
    while (($#)); do
        case $1 in
            --check) check=yes ;;
            --fresh) fresh=yes ;;
            --mpi)
                [[ ${2:-} =~ ^(openmpi|mpich)$ ]] || die "--mpi is openmpi or mpich, not '${2:-}'"
                wanted_mpi=$2
                shift
                ;;
            --locked) with+=' locked' ;;
            --with-tests | --with-proxies | --with-bench) with+=" ${1#--with-}" ;;
            -h | --help)
                usage
                exit 0
                ;;
            *) die "unknown option $1 (--help shows them)" ;;
        esac
        shift
    done
}

# The project's own environment must not count as one that was here before.
leave_own_environment() {
    PATH=:$PATH:
    PATH=${PATH//":$venv/bin:"/:}
    PATH=${PATH#:}
    PATH=${PATH%:}
    [[ ${VIRTUAL_ENV:-} != "$venv" ]] || unset VIRTUAL_ENV
}

# What the stamp says about the last time: `done_way`, `done_mpi`, `done_inputs`, `done_with`; empty when .venv is broken.
read_stamp() {
    done_way='' done_mpi='' done_inputs='' done_with=''
    if [[ -z $fresh && -e $stamp ]] && "$venv/bin/python" -c '' 2>/dev/null; then
        read -r done_way done_mpi done_inputs done_with <"$stamp"
    fi
}

# Everything that the result depends on, as one hash.
hash_inputs() {
    cat "$root"/{setup.cfg,pyproject.toml,launch/setup.sh} "$lib"/{discover.sh,install.sh,probe.py} "$lock" | sha256sum |
        cut -c-16
}

is_done() {
    local part
    [[ $done_inputs = "$(hash_inputs)" && ${wanted_mpi:-$done_mpi} = "$done_mpi" ]] || return 1
    for part in $with; do
        [[ " $done_with " = *" $part "* ]] || return 1
    done
    [[ $done_way != build ]] || has_parallel_h5py || return 1 # pip can have put a serial one in its place
    (in_venv command -v mpirun) >/dev/null
}

# The way stays what it was as long as .venv works and no other MPI is asked for; else the first that is possible.
choose_way() {
    if [[ $done_way && ${wanted_mpi:-$done_mpi} = "$done_mpi" ]]; then
        way=$done_way mpi=$done_mpi
        return
    fi
    [[ -z $done_way ]] || fresh=yes
    if [[ -z $wanted_mpi ]] && find_base; then
        way=environment mpi=${has[mpi]}
    elif can_build || can_install; then
        way=build mpi=${mpi:-${wanted_mpi:-openmpi}}
    else
        way=pip mpi=$(mpi_of mpirun || printf 'openmpi')
        [[ ${wanted_mpi:-${mpi%% *}} = "${mpi%% *}" ]] || mpi=$wanted_mpi
    fi
}

describe_way() {
    local name=${mpi/openmpi/Open MPI}
    name=${name/mpich/MPICH}
    case $way in
        environment) printf '.venv over %s, which has %s and a parallel h5py' "${base:-what was here}" "$name" ;;
        build) printf '.venv with h5py for %s%s' "$name" "${hdf5:+ and HDF5 $hdf5}" ;;
        pip) printf '.venv with a serial h5py and %s' "$name$([[ $mpi = *' '* ]] || printf " from pip")" ;;
    esac
}

# todo NAME: is this step needed?
todo() {
    case $1 in
        packages) [[ $missing ]] && can_install ;;
        venv) [[ $fresh || ! -e $env_file ]] || ! "$venv/bin/python" -c '' 2>/dev/null ;;
        h5py) [[ $way = build ]] && { [[ $fresh ]] || ! has_parallel_h5py; } ;;
        ministream | kernels | proof) true ;;
    esac
}

label() {
    case $1 in
        packages) printf 'system packages: %s' "$missing" ;;
        venv) printf '.venv' ;;
        h5py) printf 'h5py %s for MPI, compiled or from the cache' "$H5PY_VERSION" ;;
        ministream) printf 'ministream[%s]' "$(extras)" ;;
        kernels) printf 'kernels, compiled for this processor' ;;
        proof) printf 'proof: two ranks write one HDF5 file' ;;
    esac
}

remedy() {
    case $1 in
        packages) printf 'Try "apt-get update" by hand, or install the packages and repeat.' ;;
        venv | ministream) printf 'Is the network there, and does "pip config list" name the right index?' ;;
        h5py) printf 'HDF5 or MPI is incomplete, see above; another MPI: --mpi, another HDF5: HDF5_DIR.' ;;
        kernels) printf 'Is the folder of compiled kernels writable? NUMBA_CACHE_DIR names another one.' ;;
        proof) printf 'Is another MPI first on the PATH? Load the modules that were loaded before, or use --fresh.' ;;
    esac
}

# What a person must know about the chosen way.
notes() {
    [[ -z $near_miss ]] || say "note: $near_miss."
    if [[ $missing ]] && ! can_install; then
        say "note: not installed, that takes root and apt-get: $missing."
    fi
    [[ $way = pip ]] || return 0
    say "note: no MPI with a parallel HDF5 to build for was found. Everything works, at a price: where HDF5 itself is to"
    say "      write, rank 0 gathers the volume$([[ $mpi = *' '* ]] || printf ", and pip's MPI knows no scheduler and no fast network")."
    say "      Better: load modules with an MPI and a parallel HDF5 (or mpi4py and h5py built for it), or ask for the"
    say "      packages $(build_packages | paste -sd' '); then: bash launch/setup.sh --fresh"
}

report() {
    local name
    say "python  $python, $("$python" -c 'import platform; print(platform.python_version())')"
    say "way     $way: $(describe_way)"
    for name in "${steps[@]}"; do
        say "to do   $(label "$name")"
    done
    notes
}

set_up() {
    local name proof started=$EPOCHREALTIME
    say "Mini-Stream: $(describe_way)"
    date +'# launch/setup.sh, %Y-%m-%d %H:%M:%S' >"$log"
    for name in "${steps[@]}"; do
        step "$(label "$name")" "$(remedy "$name")" "install_$name"
    done
    printf '%s %s %s %s\n' "$way" "${mpi%% *}" "$(hash_inputs)" "$with" >"$stamp"
    notes
    say "ready in $(seconds_since "$started") s: $proof"
    say "by hand: . .venv/ministream-env.sh"
}

main() {
    local name steps=()
    trap explain_failure EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    parse_arguments "$@"
    leave_own_environment
    [[ $check ]] || open_log "$cache"
    read_stamp
    with=$(xargs -n1 <<<"$done_with $with" | sort -u | xargs)
    if is_done; then
        say "Mini-Stream is set up, nothing to do (.venv, way $done_way, $done_mpi)."
        exit
    fi
    find_python
    choose_way
    missing=$(missing_packages | paste -sd' ')
    [[ $missing != *-venv* ]] || can_install || die "$python cannot make environments: ask for the package $(python_name)-venv"
    for name in packages venv h5py ministream kernels proof; do
        ! todo "$name" || steps+=("$name")
    done
    if [[ $check ]]; then
        report
        exit 1
    fi
    set_up
}

main "$@"
