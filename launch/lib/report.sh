# Sourced by the launch scripts: a few lines for people, everything else in a log, its end when a step fails.
# shellcheck shell=bash
exec 3>&1 4>&2
failing='' remedy='' log=''

# say WORDS…: one line for people, past every redirection.
say() {
    printf '%s\n' "$*" >&3
}

# die MESSAGE: what is wrong and what to do; exit status 2, like every usage error of Mini-Stream.
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&4
    failing=
    exit 2
}

# open_log FOLDER: `log` in it, for one script at a time.
open_log() {
    mkdir -p "$1" 2>/dev/null || die "$1 cannot be written: name another folder in XDG_CACHE_HOME"
    exec 9>"$1/setup.lock"
    flock --nonblock 9 || { say "waiting for another setup.sh to end" && flock 9; }
    log=$1/setup.log
}

# step LABEL REMEDY COMMAND…: run COMMAND into the log and print LABEL with the time it took.
# COMMAND is not tested in a condition, so `set -e` holds inside it and the first failure ends the script.
step() {
    failing=$1 remedy=$2
    local started=$EPOCHREALTIME
    printf '  %-58s ' "$failing" >&3
    printf '\n## %s\n' "$failing" >>"$log"
    "${@:3}" >>"$log" 2>&1 </dev/null
    failing=
    say "$(seconds_since "$started") s"
}

# seconds_since EPOCH: elapsed seconds with one decimal.
seconds_since() {
    local tenths=$(((${EPOCHREALTIME/[.,]/} - ${1/[.,]/}) / 100000))
    printf '%d.%d' $((tenths / 10)) $((tenths % 10))
}

# explain_failure: for the EXIT trap; when a step was under way, show why it failed.
explain_failure() {
    [[ $failing ]] || return 0
    say "failed"
    {
        printf '\n'
        tail -n 15 "$log" | sed 's/^/    /'
        printf "\n%s: '%s' failed. %s\nThe whole log: %s\n" "${0##*/}" "$failing" "$remedy" "$log"
    } >&4
}
