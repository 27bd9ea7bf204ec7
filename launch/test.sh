#!/usr/bin/env bash
# Sets up, then runs every check and every test; a part that fails does not stop the others. At the end: what did not
# run and why, the slowest tests, and a table of the parts.
set -uo pipefail
shopt -s nullglob

usage() {
    cat <<'TEXT'
usage: bash launch/test.sh [PART…]

Without arguments every part, in this order:
  lint format types imports shell    ruff, mypy, import-linter, shellcheck
  unit security                      tests/unit, tests/security
  parallel                           tests/parallel under mpirun; parallel-1, -2 and -4 name the ranks
  integration slurm                  whole jobs from the outside; on a real Slurm
  faults                             cables that come out, programs that stop or die, bits that change
The tests of unit, security, integration and faults run side by side, as many as the cores allow.
The exit status is 0 when every part passed, else 1.
TEXT
}

readonly ALL='lint format types imports shell unit security parallel-1 parallel-2 parallel-4 integration slurm faults'
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cores=$(nproc)
table=() failed=0 child='' report=''
# shellcheck source-path=SCRIPTDIR source=lib/report.sh
. "$root/launch/lib/report.sh"

# select_parts ARGUMENT…: the array `parts`, in the order of ALL.
select_parts() {
    local part wanted=" $* "
    parts=()
    for part in "$@"; do
        [[ " $ALL parallel " = *" $part "* ]] || die "unknown part $part; known: parallel $ALL"
    done
    for part in $ALL; do
        [[ $# = 0 || $wanted = *" $part "* || $wanted = *" ${part%-*} "* ]] && parts+=("$part")
    done
}

# command_of PART: the array `command` and the seconds it may take, `limit`. The test runs have no limit of their own:
# every test has one (setup.cfg), and a run in which no test ends any more gives up by itself (tests/conftest.py).
command_of() {
    local pytest=(python -m pytest -q --color=no)
    limit=0
    case $1 in
        lint) command=(ruff check .) limit=300 ;;
        format) command=(ruff format --check .) limit=300 ;;
        types) command=(mypy) limit=900 ;;
        imports) command=(lint-imports) limit=300 ;;
        shell) command=(shellcheck -x -a {launch,slurm}/*.{sh,sbatch} pbs/*.pbs lsf/*.lsf launch/lib/mpi_env.sh .ci/run) limit=300 ;;
        unit | security) command=("${pytest[@]}" -n "$cores" "tests/$1") ;;
        parallel-*) command=(mpirun -n "${1#*-}" "${pytest[@]}" --with-mpi -p no:cacheprovider tests/parallel) ;;
        # Their jobs wait for each other and for timeouts most of the time.
        integration | faults) command=("${pytest[@]}" -n $((2 * cores)) "tests/$1") ;;
        slurm) command=("${pytest[@]}" tests/slurm) ;;
    esac
}

# bounded COMMAND…: run it for at most `limit` seconds, 0 is no limit; `interrupt` reaches all that it started.
bounded() {
    local status
    MINISTREAM_TEST_REPORT=$report/$part timeout --kill-after=60 "$limit" "$@" </dev/null &
    child=$!
    wait "$child"
    status=$?
    child=''
    return "$status"
}

interrupt() {
    [[ -z $child ]] || { kill -TERM "$child" && wait "$child"; }
    exit 130
}

run_part() {
    local status=0 started=$EPOCHREALTIME outcome
    command_of "$1"
    say $'\n'"==> $1: ${command[*]}"
    bounded "${command[@]}" || status=$?
    case $status in
        0) outcome=passed ;;
        5) outcome='no tests' ;; # pytest found none
        124 | 137) outcome="FAILED, took more than $limit s" ;;
        *) outcome="FAILED, exit status $status" ;;
    esac
    [[ $outcome != FAILED* ]] || ((failed += 1))
    table+=("$(printf '%-12s %7s s   %s' "$1" "$(seconds_since "$started")" "$outcome")")
}

# compile: modules, and the kernels that setup.sh leaves out, before thousands of processes would wait for it.
compile() {
    python -m compileall -q src tests && python -c 'from ministream.recon import backend
for slices in 1, 2, 4, 8: backend.default().warm_up(slices)'
}

# summary: what the test runs left in `report` (tests/conftest.py), over all parts.
summary() {
    local reports=("$report"/*)
    ((${#reports[@]})) || return 0
    say $'\nslowest tests:'
    sort -t$'\t' -k2,2 -rn < <(grep -h ^took "${reports[@]}") | awk -F'\t' 'NR <= 12 { printf "%8.1f s  %s\n", $2, $3 }'
    say $'\nskipped tests:'
    awk -F'\t' '/^skipped/ { sub(/.*\//, "", FILENAME); printf "%-12s %3d × %s\n", FILENAME, $2, $3 }' "${reports[@]}"
}

main() {
    local part parts command limit
    [[ ${1:-} != -h && ${1:-} != --help ]] || { usage && exit 0; }
    select_parts "$@"
    bash "$root/launch/setup.sh" --with-tests --with-proxies || exit
    cd "$root" || exit
    # shellcheck source=/dev/null
    . .venv/ministream-env.sh
    trap interrupt INT TERM
    report=$(mktemp -d)
    trap 'rm -rf "$report"' EXIT
    compile || exit
    for part in "${parts[@]}"; do
        run_part "$part"
    done
    summary
    say ""
    printf '%s\n' "${table[@]}"
    say "parts: $((${#parts[@]} - failed)) passed, $failed failed"
    ((failed == 0))
}

main "$@"
