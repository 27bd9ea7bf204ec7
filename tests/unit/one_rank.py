"""Volumes as a run without MPI writes them."""

from __future__ import annotations

import math

import numpy as np

from ministream import storage
from ministream.ledger import Ledger
from ministream.model import Scan, Slab

# of a state in which nothing is missing
COMPLETE = {"ledger": Ledger(received=9, used=9, imaged=9, written=9)}


class Own:
    """What one rank gathers of itself."""

    given = None

    def give(self, value):
        self.given = [value]

    def take(self):
        return self.given

    def drop(self):
        self.given = None


class Alone:
    """A run without MPI."""

    rank = 0
    size = 1
    raw = None

    def allgather(self, value):
        return [value]

    def agree(self, error):
        if error is not None:
            raise error

    def gathering(self):
        return Own()

    def send_array(self, array, destination):
        raise AssertionError("nobody to send to")

    recv_array = send_array


def scan(rows, n, **known):
    return Scan(scan_id="s-1", rows=rows, cols=n, projections=9, flats=1, darks=1, dtype="<u2", **known)


def state(**changes):
    ledger = Ledger(received=8, used=7, imaged=7, written=7, refusals={"projection": {"checksum": 1}})
    known = {
        "ledger": ledger,
        "announced": Ledger(delivered=9, sent=9),
        "updates": 3,
        "elapsed_s": 1.5,
        "angles_rad": (0.0, math.pi),
    }
    return storage.VolumeState(**(known | changes))


def volume_writer(directory, rows=5, n=33, how="auto", **known):
    return storage.VolumeWriter(
        Alone(),
        directory,
        scan=scan(rows, n, **known),
        n=n,
        slab=Slab(0, rows),
        axis_col=16.25,
        config={"window": 7},
        how=how,
    )


def random_image(rows, n, padded):
    return np.random.default_rng(3).random((n, n, padded), dtype=np.float32)
