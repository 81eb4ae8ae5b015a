"""Each test here runs on both databases."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path}/headway.db"
    else:
        yield request.getfixturevalue("postgres_server").database()
