#!/usr/bin/env bash
# Sets up, then runs every test and prints one table; a part that fails does not stop the others.
set -uo pipefail
shopt -s nullglob

usage() {
    cat <<'TEXT'
usage: bash launch/test.sh [PART…]

Without arguments every part, in this order:
  lint format types imports shell    ruff, mypy, import-linter, shellcheck
  unit                               tests/unit
  parallel                           tests/parallel under mpirun; parallel-1, -2 and -4 name the ranks
  integration slurm                  whole jobs from the outside; on a real Slurm
The exit status is 0 when every part passed, else 1.
TEXT
}

readonly ALL='lint format types imports shell unit parallel-1 parallel-2 parallel-4 integration slurm'
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
table=() failed=0 child=''
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

# command_of PART: the array `command` and the seconds it may take, `limit`.
command_of() {
    local pytest=(python -m pytest -q --color=no --durations=8)
    limit=600
    case $1 in
        lint) command=(ruff check .) ;;
        format) command=(ruff format --check .) ;;
        types) command=(mypy) ;;
        imports) command=(lint-imports) ;;
        shell) command=(shellcheck -x -a {launch,slurm}/*.{sh,sbatch} launch/lib/mpi_env.sh .ci/run) ;;
        unit) command=("${pytest[@]}" tests/unit) ;;
        parallel-*) command=(mpirun -n "${1#*-}" "${pytest[@]}" --with-mpi -p no:cacheprovider tests/parallel) ;;
        integration | slurm) command=("${pytest[@]}" "tests/$1") limit=1500 ;;
    esac
}

# bounded COMMAND…: run it for at most `limit` seconds; `interrupt` reaches it and all that it started.
bounded() {
    local status
    timeout --kill-after=20 "$limit" "$@" </dev/null &
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

main() {
    local part parts command limit
    [[ ${1:-} != -h && ${1:-} != --help ]] || { usage && exit 0; }
    select_parts "$@"
    bash "$root/launch/setup.sh" --with-tests --with-proxies || exit
    cd "$root" || exit
    # shellcheck source=/dev/null
    . .venv/ministream-env.sh
    trap interrupt INT TERM
    for part in "${parts[@]}"; do
        run_part "$part"
    done
    say ""
    printf '%s\n' "${table[@]}"
    say "parts: $((${#parts[@]} - failed)) passed, $failed failed"
    ((failed == 0))
}

main "$@"
