"""`evitlab …`, the same as `python -m evitlab …`: one module for each group of commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from evitlab.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0 done, 1 a finding or a check failed or another process of the run is gone, 2 a user's mistake.
    Of the processes that torchrun started, number 0 prints, and the first that fails says why.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv == ["--version"]:  # before torch loads, which takes seconds
        print(f"evitlab {__version__}")
        return 0
    from evitlab.cli.commands import run

    return run(argv)
