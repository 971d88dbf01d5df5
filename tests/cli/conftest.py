"""The command line in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import Ended


@pytest.fixture
def slimrl(command_line: Callable[..., Ended]) -> Callable[..., Ended]:
    """The command, by its name."""
    return command_line
