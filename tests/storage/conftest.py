"""What the tests of storage share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.locations import KINDS, new_location

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daskkm.storage.locations import Location


@pytest.fixture(params=KINDS)
def location(request: pytest.FixtureRequest) -> Iterator[Location]:
    """A location of each kind, which does not exist yet."""
    with new_location(request.param) as found:
        yield found
