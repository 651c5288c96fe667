"""Cases of parametrised tests."""

from __future__ import annotations

from typing import Any

import pytest


def slow(*values: object) -> Any:
    """A case that the usual run leaves out, as a shorter one goes the same way."""
    return pytest.param(*values, marks=pytest.mark.slow)
