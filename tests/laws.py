"""How laws are tried: the same few examples each time, or many new ones with --thorough."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings


def tried(config: pytest.Config, usual: int, *, thorough: int = 300) -> Any:
    """The settings of a law, as its decorator."""
    many = config.getoption("--thorough")
    return settings(
        max_examples=thorough if many else usual,
        derandomize=not many,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
