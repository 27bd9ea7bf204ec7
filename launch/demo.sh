#!/usr/bin/env bash
# Sets up, then runs the whole system on this machine: producer job, tunnel, reconstruction job, volume, pictures.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash launch/demo.sh [SCAN.h5] [options] [-- options of `ministream recon`]

Without SCAN.h5, a DXchange file, it plays the simulated scan of launch/demo.toml.

options:
  --axis COLUMN          rotation axis: detector column, pixel centres at integers, or auto (default: the scan's, else the middle)
  --out DIR              folder for the results (default: a new one in results/)
  --ranks R              ranks of the reconstruction job (default: 2)
  --set TABLE.KEY=VALUE  a configuration key of either job, such as --set source.every=2; repeatable
  --accept CODE          acknowledge a warning about the scan by its code; repeatable
  --view                 show the reconstruction in the browser while it runs
  --strict               end at the first rejected frame or warning about the scan
  -h, --help             this text

The exit status is the pair's: 0 complete, 2 usage, 3 incomplete, 4 peer or tunnel, 5 storage.
TEXT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
scan='' out='' ranks=2 recon=() launch=()
# shellcheck source-path=SCRIPTDIR source=lib/report.sh
. "$root/launch/lib/report.sh"

parse_arguments() {
    while (($#)); do
        case $1 in
            --axis | --out | --ranks | --set | --accept) [[ ${2:-} && $2 != --* ]] || die "$1 needs a value" ;;&
            --axis) recon+=(--axis "$2") && shift ;;
            --out) out=$2 && shift ;;
            --ranks) ranks=$2 && shift ;;
            --set | --accept) launch+=("$1" "$2") && shift ;;
            --strict | --view) launch+=("$1") ;;
            -h | --help) usage && exit 0 ;;
            --) recon+=("${@:2}") && return ;;
            -*) die "unknown option $1 (--help shows them)" ;;
            *) [[ -z $scan ]] || die "one scan at a time, not also $1" && scan=$1 ;;
        esac
        shift
    done
}

# A new folder, named after the time.
new_folder() {
    mkdir -p "$root/results"
    until out=$root/results/$(date +%Y%m%dT%H%M%S) && mkdir "$out" 2>/dev/null; do
        sleep 0.2
    done
}

parse_arguments "$@"
bash "$root/launch/setup.sh"
# shellcheck source=/dev/null
. "$root/.venv/ministream-env.sh"
[[ $out ]] || new_folder
say "results go to $out"

# A recorded scan has its own order, so the window is the whole scan, updated as it fills.
if [[ $scan ]]; then
    source=(--producer-options "--file ${scan@Q}")
    recon=(--window-step 60 --window-iter 20 --write-freq 1 "${recon[@]}")
else
    source=("$root/launch/demo.toml")
fi
# exec: an interrupt reaches the launcher, which ends both jobs in order.
exec ministream launch "${source[@]}" --out "$out" --ranks "$ranks" "${launch[@]}" --recon-options "${recon[*]@Q}"
