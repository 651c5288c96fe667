"""What holds for every test: no network, no window, and no global state left changed."""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before anything is imported that reads them.
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several that share the cores
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd
import pytest
import torch
from browser import NO_CHROMIUM, find_chromium
from timm.layers import config as timm_config

from evitlab.records import environment_card, write_atomically
from evitlab.schema import encode

pytest_plugins = ["offline"]  # no network


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("evitlab")
    group.addoption(
        "--thorough", action="store_true", help="more tries and longer fuzzing than `make test`"
    )
    group.addoption("--slow", action="store_true", help="also the tests that are marked slow")
    group.addoption(
        "--tables", type=Path, metavar="FOLDER", help="write each table of the tests there as JSON"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: only with --slow or --thorough")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is slow: what takes long, and where a shorter test goes much the same way."""
    if not (config.getoption("--slow") or config.getoption("--thorough")):
        for item in items:
            if item.get_closest_marker("slow"):  # skipped before any of its fixtures is set up
                item.add_marker(pytest.mark.skip(reason="slow: make test-slow"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """The tables that tests fill: `record_property("faults", {"fault": …, "tries": …, …})`.

    They are printed, and written where --tables says, unless a test failed.
    """
    tables: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for report in (r for reports in terminalreporter.stats.values() for r in reports):
        if getattr(report, "when", "") == "call":
            for name, row in report.user_properties:
                tables[name].append(row)
    folder: Path | None = terminalreporter.config.getoption("--tables")
    for name, rows in tables.items():
        terminalreporter.section(name)
        terminalreporter.write_line(pd.DataFrame(rows).to_string(index=False))
        if folder is not None and exitstatus == 0:
            table = {
                "table": name,
                "command": f"make {name.partition(' ')[0]}",
                "tests": {name: len(reports) for name, reports in terminalreporter.stats.items()
                          if name in ("passed", "skipped")},
                "environment": encode(environment_card(), "environment"),
                "rows": rows,
            }
            content = json.dumps(table, indent=1, ensure_ascii=False) + "\n"
            write_atomically(folder / f"{name.replace(' ', '_')}.json", content)


def pytest_report_header() -> str:
    return f"browser tests: {find_chromium() or 'skipped, ' + NO_CHROMIUM}"


@pytest.fixture(autouse=True)
def seeded_and_restored() -> Iterator[None]:
    """Each test starts from the same seeds, and leaves the process as it found it."""
    torch.manual_seed(0)
    np.random.seed(0)
    before = _global_state()
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    after = _global_state()
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not changed, f"global state left changed (before, after): {changed}"


def _global_state() -> dict[str, object]:
    return {
        "torch.get_num_threads": torch.get_num_threads(),
        "torch.is_grad_enabled": torch.is_grad_enabled(),
        "torch.get_default_dtype": torch.get_default_dtype(),
        "torch.are_deterministic_algorithms_enabled": (
            torch.are_deterministic_algorithms_enabled()
        ),
        "torch.backends.cudnn.benchmark": torch.backends.cudnn.benchmark,
        "torch.get_float32_matmul_precision": torch.get_float32_matmul_precision(),
        "timm fused attention": timm_config.use_fused_attn(),
        "working directory": os.getcwd(),
    }
