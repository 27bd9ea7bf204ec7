#!/bin/bash
# Submit a producer job and a reconstruction job as one pair with one outcome.
#
#   slurm/submit.sh run.toml [options] [-- options of `ministream launch`]
#
# Results, both logs and the rendezvous go to one folder, which every node must see.
set -euo pipefail

usage() {
    cat <<'END'
usage: slurm/submit.sh RUN.toml [options] [-- options of `ministream launch`]

  --out DIR                 folder for results, logs and rendezvous, seen by all nodes (default: runs/DATE-TIME)
  --producer-partition P    partition of the producer job
  --recon-partition P       partition of the reconstruction job
  --recon-nodes N           nodes of the reconstruction job (1)
  --ranks-per-node R        its ranks on each node (1)
  --threads T               cores of each rank (2)
  --time LIMIT              time limit of both jobs (01:00:00)
  --signal-before S         seconds before the limit at which the pair begins to finish (120)
  --set TABLE.KEY=VALUE     a configuration key of either job, such as --set source.every=2; repeatable
  --accept CODE             acknowledge a warning about the scan by its code; repeatable
  --strict                  end at the first rejected frame or warning about the scan
  --sbatch OPTION           any option of sbatch for both jobs, such as --sbatch --account=PROJECT; repeatable
  --producer-sbatch OPTION  the same for the producer job alone
  --recon-sbatch OPTION     the same for the reconstruction job alone
  --producer HOST:PORT      control server of a producer elsewhere: submit no producer job
  --advertise HOST          address at which the reconstruction reaches the producer's node, where it is behind NAT
  --credentials DIR         credentials of the same authority as that producer's (`ministream certs`)
  --mpi KIND                value of srun --mpi: pmix (Open MPI, the default), pmi2 (MPICH)
  --het                     one heterogeneous job instead of two jobs
  --wait                    wait until the pair has ended; the exit code is the pair's
  --dry-run                 check ranks and rows, and print the sbatch lines without submitting
END
}

fail() {
    echo "submit.sh: $1" >&2
    exit 2
}

here=$(cd "$(dirname "$0")" && pwd)
run='' out='' producer='' credentials='' het=0 wait=0 dry=0
producer_options=() recon_options=() launch_options=() producer_words=()
nodes=1 ranks=1 threads=2 limit=01:00:00 before=120

while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --het) het=1; shift; continue ;;
        --wait) wait=1; shift; continue ;;
        --dry-run) dry=1; shift; continue ;;
        --strict) launch_options+=(--strict); shift; continue ;;
        --) shift; launch_options+=("$@"); break ;;
        --*) [ $# -ge 2 ] || fail "$1 needs a value" ;;
        *) [ -z "$run" ] || fail "one run file, not also $1"; run=$1; shift; continue ;;
    esac
    case $1 in
        --out) out=$2 ;;
        --set | --accept) launch_options+=("$1" "$2") ;;
        --producer-partition) producer_options+=("--partition=$2") ;;
        --recon-partition) recon_options+=("--partition=$2") ;;
        --recon-nodes) nodes=$2 ;;
        --ranks-per-node) ranks=$2 ;;
        --threads) threads=$2 ;;
        --time) limit=$2 ;;
        --signal-before) before=$2 ;;
        --sbatch) producer_options+=("$2"); recon_options+=("$2") ;;
        --producer-sbatch) producer_options+=("$2") ;;
        --recon-sbatch) recon_options+=("$2") ;;
        --producer) producer=$2 ;;
        --advertise) producer_words=(--advertise "$2") ;;
        --credentials) credentials=$2 ;;
        --mpi) export MINISTREAM_MPI=$2 ;;
        *) fail "unknown option $1 (see --help)" ;;
    esac
    shift 2
done

[ -n "$run" ] || { usage >&2; exit 2; }
[ -r "$run" ] || fail "$run: no such run file"
[ -z "$producer" ] || [ -n "$credentials" ] || fail "--producer needs --credentials of the same authority"
[ -z "$producer" ] || [ "$het" = 0 ] || fail "--het submits a producer job: leave --producer out"

# The jobs inherit the environment. Without ministream on the PATH, the one beside this script is used.
command -v ministream >/dev/null || export PATH="$here/../.venv/bin:$PATH"
command -v ministream >/dev/null || fail "no ministream on the PATH: activate its environment, or run launch/setup.sh"

if [[ " ${launch_options[*]} " = *" --scratch"* ]] && { [ "$nodes" != 1 ] || [ "$het" = 1 ]; }; then
    fail "--scratch is a disk of one node. Leave it out with several nodes or --het, whose ranks write one file together"
fi

run=$(realpath "$run")
out=$(realpath -m "${out:-runs/$(date +%Y%m%dT%H%M%S)}")
rendezvous=$out/rendezvous
common=(--parsable "--time=$limit" "--signal=B:USR1@$before")
producer_options=("${common[@]}" "--output=$out/producer-%j.log" "${producer_options[@]}")
recon_options=("${common[@]}" "--output=$out/recon-%j.log" "--nodes=$nodes" "--ntasks-per-node=$ranks"
    "--cpus-per-task=$threads" "${recon_options[@]}")
launch_options+=(--out "$out" --rendezvous "$rendezvous")
[ -z "$producer" ] || launch_options+=(--producer "$producer" --credentials "$(realpath "$credentials")")

# Inherited from an interactive job: beside the memory that a job itself asks for, srun would refuse them.
unset "${!SLURM_MEM_PER_@}"

submit() {
    if [ "$dry" = 1 ]; then
        printf '%q ' sbatch "$@" >&2
        echo >&2
    else
        sbatch "$@"
    fi
}

if [ "$dry" = 1 ]; then
    ministream launch "$run" "${launch_options[@]}" --ranks $((nodes * ranks)) --dry-run
else
    mkdir -p "$out"
    mkdir -m 700 "$rendezvous" || fail "$out already holds a pair: choose another --out"
fi

jobs=()
end_jobs() { [ ${#jobs[@]} = 0 ] || scancel "${jobs[@]}"; }
trap 'end_jobs; exit 4' INT TERM

if [ "$het" = 1 ]; then
    jobs=("$(submit "${producer_options[@]}" : "${recon_options[@]}" "$here/pair.sbatch" "$run" "${launch_options[@]}" \
        "${producer_words[@]}")")
else
    if [ -z "$producer" ]; then
        jobs=("$(submit "${producer_options[@]}" "$here/producer.sbatch" "$run" "${launch_options[@]}" "${producer_words[@]}")")
    fi
    last=$(submit "${recon_options[@]}" "$here/recon.sbatch" "$run" "${launch_options[@]}") || { end_jobs; exit 4; }
    jobs+=("$last")
fi
[ "$dry" = 0 ] || exit 0

echo "jobs ${jobs[*]}, results in $out"
[ "$wait" = 1 ] || exit 0

# The reconstruction job writes the pair's outcome to the rendezvous; a killed one writes nothing.
pair=${jobs[-1]}
outcome=$rendezvous/recon.end
while [ ! -e "$outcome" ] && squeue --noheader --jobs "$pair" 2>/dev/null | grep -q .; do sleep 1; done
[ -e "$outcome" ] || { echo "submit.sh: job $pair ended without an outcome: see its log in $out" >&2; exit 4; }
sed -E 's/.*"reason":"(.*)"\}$/\1/' "$outcome"
exit "$(sed -E 's/^\{"code":([0-9]+),.*/\1/' "$outcome")"
