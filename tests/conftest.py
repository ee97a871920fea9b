"""Fixtures that several test files share."""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("lmkit", deadline=None)  # time is never asserted
settings.load_profile("lmkit")

WIKITEXT = Path(__file__).resolve().parents[2] / "shared" / "data" / "wikitext-2"


@pytest.fixture(scope="session")
def wikitext() -> Path:
    """The directory of WikiText-2, which a checkout alone does not have."""
    if not WIKITEXT.is_dir():
        pytest.skip("WikiText-2 is not on this machine")
    return WIKITEXT
