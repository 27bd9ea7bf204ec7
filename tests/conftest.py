"""Fixtures for every test; `shared` skips cleanly where the folder beside the project is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded traffic, real scans and references that lies beside the project in CI."""
    folder = Path(os.environ.get("MINISTREAM_SHARED", PROJECT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


@pytest.fixture(scope="session")
def tooth(shared: Path) -> Path:
    """A real scan: 181 projections of 2 rows × 640 columns, in DXchange form."""
    return shared / "data" / "tooth.h5"
