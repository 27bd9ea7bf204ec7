# Sourced by setup.sh: the steps that change something. Each runs in the log, under `set -e`.
# shellcheck shell=bash

# in_venv COMMAND…: run it as a user does who has sourced the environment file.
in_venv() {
    # shellcheck source=/dev/null
    . "$env_file" && "$@"
}

has_parallel_h5py() {
    [[ -e $env_file ]] && (in_venv probe "$venv/bin/python" && [[ ${has[parallel]:-no} = yes ]])
}

pip_install() {
    in_venv python -m pip --disable-pip-version-check --no-input install --progress-bar off "$@"
}

# from_lock [-v] NAME…: the lock's entries of these packages; with -v those of all others.
from_lock() {
    local others=0
    if [[ $1 = -v ]]; then
        others=1
        shift
    fi
    awk -v names=" $* " -v others="$others" '
        /^[a-z]/ { name = $1; sub(/[=;].*/, "", name); kept = (index(names, " " name " ") > 0) != others }
        kept' "$lock"
}

is_locked() { [[ " $with " = *' locked '* ]]; }

# install_locked [-v] NAME…: exactly these packages, from files whose hashes are in the lock.
install_locked() {
    from_lock "$@" >"$venv/ministream-lock.txt"
    pip_install --require-hashes --no-deps --requirement "$venv/ministream-lock.txt"
}

install_packages() {
    local packages
    mapfile -t packages < <(missing_packages)
    export DEBIAN_FRONTEND=noninteractive
    apt-get update
    apt-get -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "${packages[@]}"
    [[ $way != build ]] || has_parallel_h5py || can_build
}

# .venv, over the base where there is one, with the file that users source and an mpirun that fits its mpi4py.
install_venv() {
    if [[ $fresh || ! -x $venv/bin/python ]] || ! "$venv/bin/python" -c ''; then
        "${base:-$python}" -m venv --clear "$venv"
    fi
    if [[ $way = environment ]]; then
        lay_over_base
    fi
    write_env_file
    if is_locked; then
        install_locked setuptools
    else
        pip_install 'setuptools>=77'
    fi
    case $way in
        build) if is_locked; then
            install_locked mpi4py numpy cython pkgconfig
        else
            pip_install mpi4py numpy cython pkgconfig
        fi ;;
        pip) [[ $(mpi_of mpirun) = "$mpi" ]] || pip_install "$mpi" ;;
    esac
}

# Make the base's packages visible in .venv, after its own.
lay_over_base() {
    probe "$base"
    local folder packages
    packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    tr : '\n' <<<"${has[folders]}" | while read -r folder; do
        printf "import site; site.addsitedir('%s')\n" "$folder"
    done >"$packages/ministream-base.pth"
}

write_env_file() {
    local base_bin=${base%/*}
    {
        printf '# Written by launch/setup.sh. Source it in a shell before running Mini-Stream by hand.\n'
        printf ". '%s'\n" "$venv/bin/activate"
        if [[ $way = environment && -x $base_bin/mpirun && $base_bin != /usr/bin ]]; then
            printf "PATH='%s':'%s':\$PATH\n" "$venv/bin" "$base_bin"
        fi
        if [[ $mpi = mpich* ]]; then
            mpich_lines
        fi
        printf ". '%s'\n" "$lib/mpi_env.sh"
    } >"$env_file"
    choose_mpirun
}

# mpi4py's wheel looks for MPICH under its ABI name, libmpi.so.12; Debian has it as libmpich.so.12 only.
mpich_lines() {
    local library
    printf 'export MPI4PY_MPIABI=mpich\n'
    [[ $mpi = *' '* ]] || return 0 # not this machine's but pip's, which has that name
    for library in /usr/lib/*/libmpich.so.12; do
        [[ -e $library && ! -e ${library%/*}/libmpi.so.12 ]] || continue
        mkdir -p "$venv/lib/mpich"
        ln -sf "$library" "$venv/lib/mpich/libmpi.so.12"
        printf "export LD_LIBRARY_PATH='%s'\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}\n" "$venv/lib/mpich"
    done
}

# Where Debian's `mpirun` is another MPI's, .venv gets one that calls the right one by its own name.
choose_mpirun() {
    local flavour=${mpi%% *}
    if [[ $way = build && $(mpi_of mpirun) != "$flavour "* ]]; then
        command -v "mpirun.$flavour"
        printf '#!/bin/sh\nexec mpirun.%s "$@"\n' "$flavour" >"$venv/bin/mpirun"
        chmod +x "$venv/bin/mpirun"
    fi
}

# The compiled wheel is kept, under everything that it depends on.
install_h5py() {
    local abi kept
    ! has_parallel_h5py || return 0 # .venv was made by hand
    find_stack
    abi=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("SOABI"))')
    kept=$cache/wheels/h5py-$H5PY_VERSION-$abi-${mpi/ /-}-hdf5-$hdf5
    if ! compgen -G "$kept/h5py-*.whl"; then
        build_h5py "$kept"
    fi
    # Not "already satisfied" by a serial h5py of the same version that some package pulled in.
    pip_install --no-index --no-deps --force-reinstall "$kept"/h5py-*.whl
}

# build_h5py FOLDER: compile into FOLDER, which appears only when complete. Without build isolation, which would
# compile mpi4py too, and without pip's own cache of wheels, which does not know one MPI from another.
build_h5py() {
    local work
    mkdir -p "$cache/wheels"
    work=$(mktemp -d "$cache/wheels/.build-XXXXXX")
    printf '[build_ext]\nparallel=%d\n' "$(nproc)" >"$work/build.cfg"
    local wanted=("h5py==$H5PY_VERSION")
    if is_locked; then
        from_lock h5py >"$work/h5py.txt"
        wanted=(--require-hashes --requirement "$work/h5py.txt")
    fi
    (
        export CC=$mpicc HDF5_MPI=ON HDF5_DIR=$hdf5_dir CFLAGS='-O1 -g0' DIST_EXTRA_CONFIG=$work/build.cfg
        in_venv python -m pip --no-input wheel --progress-bar off --no-build-isolation --no-cache-dir --no-deps \
            --no-binary=h5py --wheel-dir "$work/wheel" "${wanted[@]}"
    )
    mv -T "$work/wheel" "$1"
    rm -r "$work"
}

extras() {
    local part extras=all
    for part in $with; do
        case $part in
            tests) extras+=,test ;;
            bench) extras+=,bench ;;
        esac
    done
    printf '%s' "$extras"
}

# The MPI stack is pinned to what is there: no dependency may replace it by pip's serial one.
install_ministream() {
    local pins=$venv/ministream-pins.txt
    case $way in
        environment) pinned numpy mpi4py h5py ;;
        build) pinned mpi4py h5py ;;
        pip) true ;;
    esac >"$pins"
    if is_locked; then
        case $way in
            pip) install_locked -v cython pkgconfig setuptools ;;
            *) install_locked -v cython pkgconfig setuptools numpy mpi4py h5py ;;
        esac
    fi
    pip_install --no-build-isolation --constraint "$pins" --editable "${root}[$(extras)]"
}

pinned() {
    in_venv python -c 'import sys; from importlib.metadata import version
for name in sys.argv[1:]: print(f"{name}=={version(name)}")' "$@"
}

# `proof`: the line with which two ranks describe the installation.
install_proof() {
    proof=$(in_venv timeout 120 mpirun -n 2 python "$lib/two_ranks.py" 2)
    printf '%s\n' "$proof"
}

# `kernels`: two processes share the compiling.
install_kernels() {
    local process processes=()
    for process in 1 2; do
        in_venv python "$lib/compile_kernels.py" &
        processes+=($!)
    done
    for process in "${processes[@]}"; do
        wait "$process"
    done
}
