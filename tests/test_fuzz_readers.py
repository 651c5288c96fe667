"""Coverage-guided fuzzing of what reads files from anywhere, for a bounded time.

Each reader runs in a process of its own, see `fuzz_targets.py`, seeded with small valid files. What
a reader may raise are ValueError and OSError, in one line; anything else ends the process and fails
the test. What was found that way is tried here ever after.
"""

from __future__ import annotations

import io
import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import faults
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz_targets import TARGETS, fuzz_all
from hostile import NEEDS_FORK, Attempt, Recorder, Room, tabled

pytestmark = NEEDS_FORK


@pytest.mark.slow
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")
def test_fuzz(tmp_path: Path, record_property: Recorder, pytestconfig: pytest.Config) -> None:
    """All readers in one test, since they share a start that takes longer than they do."""
    thorough = pytestconfig.getoption("--thorough")
    options = ["-max_total_time=60"] if thorough else ["-runs=800", "-seed=1"]
    options += ["-rss_limit_mb=3000", "-timeout=60", "-max_len=16384"]
    fuzzing = faults.process(fuzz_all, tmp_path, options)
    fuzzing.join()
    assert fuzzing.exitcode == 0
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    wrong = []
    for name in TARGETS:
        found = results[name]
        crashed = int(found["status"] != 0)
        row: dict[str, Any] = {
            "kind": f"fuzzed by coverage: {name.removesuffix('_file')}",
            "inputs tried": found["accepted"] + found["refused"] + crashed,
            "refused": found["refused"],
            "accepted": found["accepted"],
            "crashes": crashed,
            "code executed": found["executed"],
            "files outside": found["outside"],
        }
        record_property("hostile input", row)
        if crashed or found["executed"] or found["outside"] or not found["accepted"]:
            said = (tmp_path / name / "said.txt").read_text(encoding="utf-8", errors="replace")
            wrong.append(f"{row}\n{said[-3000:]}")
    assert not wrong, "\n".join(wrong)


def test_each_byte_of_a_parquet_footer(tmp_path: Path, record_property: Recorder) -> None:
    """Found: a footer that declares more rows than its columns hold was an IndexError."""
    room, file = Room(tmp_path), io.BytesIO()
    pq.write_table(pa.table({"image": [b"a", b"b"], "label": [0, 1]}), file, store_schema=False)
    whole = file.getvalue()
    first = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    attempts = []
    for place in range(first, len(whole)):
        for change in (2, 128):
            altered = bytearray(whole)
            altered[place] = (altered[place] + change) % 256
            opened = partial(TARGETS["parquet_file"], bytes(altered), room.target)
            attempts.append(Attempt(f"byte {place} + {change}", opened))
    outcomes = room.attempt(attempts)
    tabled(record_property, "parquet: each byte of a footer changed", outcomes)
