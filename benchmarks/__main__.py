"""`python -m benchmarks NAME [options]`: run one benchmark; without a name, list them."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

HELPERS = {"machine"}


def names() -> list[str]:
    """The modules of this package that are benchmarks."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in found if not name.startswith("_") and name not in HELPERS)


def main(argv: list[str]) -> int:
    """Run the benchmark that the first word names with the other words; the exit code is its own."""
    if not argv or argv[0] not in names():
        print(f"usage: python -m benchmarks NAME [options]; NAME is one of {', '.join(names())}", file=sys.stderr)
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    benchmark = importlib.import_module(f"benchmarks.{argv[0]}")
    return int(benchmark.main(argv[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
