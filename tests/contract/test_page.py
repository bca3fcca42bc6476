"""The contract's page says what the tests say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.page import PAGE, written


def test_the_page_is_what_the_tests_say(request: pytest.FixtureRequest) -> None:
    collected = {item.path for item in request.session.items}
    if not set(Path(__file__).parent.glob("test_*.py")) <= collected:
        pytest.skip("needs all of the contract's tests")
    assert PAGE.read_text() == written(request.session.items), "Run `make contract`."
