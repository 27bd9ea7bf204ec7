# Sourced by .venv/ministream-env.sh: lets plain `mpirun -n N` work on a workstation or in a container.
# Inside a batch job nothing is changed: there the scheduler and its site decide.
# shellcheck shell=sh
if [ -z "${SLURM_JOB_ID:-}${PBS_JOBID:-}${LSB_JOBID:-}" ]; then
    # More ranks than cores (Open MPI 4, Open MPI 5). mpirun then also makes waiting ranks yield.
    export OMPI_MCA_rmaps_base_oversubscribe=1
    export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
    # Open MPI would tie a rank, and all of its numba threads, to one core, and each job to the same ones.
    export OMPI_MCA_hwloc_base_binding_policy=none
    export PRTE_MCA_hwloc_default_binding_policy=none
    if [ "$(id -u)" = 0 ]; then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
fi
