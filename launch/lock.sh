#!/usr/bin/env bash
# Writes launch/requirements.lock anew: the newest version of everything that the installation needs, for every Python
# from 3.11 on, with the hashes of all files of each release, so that h5py and mpi4py may be compiled too.
#
#   pip install uv && bash launch/lock.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
{
    printf '# Written by launch/lock.sh. Used by bash launch/setup.sh --locked.\n'
    printf 'cython\npkgconfig\nsetuptools>=77\n' |
        uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra all --generate-hashes --no-header \
            --no-annotate setup.cfg -
} >launch/requirements.lock.part
mv launch/requirements.lock.part launch/requirements.lock
