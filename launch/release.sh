#!/usr/bin/env bash
# Makes a release in DIR (default: dist): source archive, wheel, list of components (SBOM, CycloneDX 1.6), checksums.
#
#   pip install build cyclonedx-bom && bash launch/release.sh [DIR]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
mkdir -p "${1:-$root/dist}"
out=$(cd "${1:-$root/dist}" && pwd -P)
cd "$root"
python -m build --outdir "$out" .
# What an installation with --locked contains, each component with its hashes.
cyclonedx-py requirements launch/requirements.lock --spec-version 1.6 --output-reproducible \
    --output-format JSON --output-file "$out/ministream.cdx.json"
cd "$out"
sha256sum -- *.whl *.tar.gz ministream.cdx.json >SHA256SUMS
