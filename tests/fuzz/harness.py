"""What every fuzzing program does around its own part."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris


def fuzz(one: Callable[[bytes], None], seeds: Iterable[bytes] = ()) -> None:
    """Run `one` on input after input, as the command line says; `seeds` join a corpus that it names."""
    for corpus in [Path(word) for word in sys.argv[1:] if not word.startswith("-")][:1]:
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds):
            (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
