"""Widths of matched speed, decided with clocks that tell a known time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import one_line

from evitlab import ThroughputMatch, match_throughput
from evitlab.analysis import matching

SMALL: dict[str, Any] = dict(embed_dim=24, num_classes=5, device="cpu", batch_size=1)


@pytest.fixture()
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[int], float]]:
    """Seconds of a width, in place of measured ones; the original takes 24 s."""
    law: dict[str, Callable[[int], float]] = {"seconds": float}

    def interleave(calls: dict[str, Any], *, rounds: int) -> dict[str, list[float]]:
        for call in calls.values():
            call()  # each does run
        return {
            name: [24.0 if name == "original" else law["seconds"](int(name))] * rounds
            for name in calls
        }

    monkeypatch.setattr(matching, "interleave", interleave)
    return law


def test_the_width_that_runs_as_fast_as_asked(clock: dict, tmp_path: Path) -> None:
    record = match_throughput("deit_t_p4", speedup=24 / 18, attention_share=0.5, **SMALL)
    assert record.embed_dim == 18 and record.match.speedup == pytest.approx(24 / 18)
    assert record.baseline_width == 24 and record.attention_share == 0.5
    widths = [row.embed_dim for row in record.tried]
    assert widths == sorted(set(widths)) and 18 in widths and all(w % 3 == 0 for w in widths)
    record.save(tmp_path / "match.json")
    assert ThroughputMatch.load(tmp_path / "match.json") == record
    assert len(record.to_frame()) == len(record.tried)


def test_a_wider_network_that_is_fast_enough_is_taken(clock: dict) -> None:
    """Widths that fill vector registers may run faster than narrower ones."""
    clock["seconds"] = lambda width: 17.0 if width == 24 else float(width)
    record = match_throughput("deit_t_p4", speedup=24 / 18, attention_share=0.5, **SMALL)
    assert record.embed_dim == 24


def test_a_speed_out_of_reach(clock: dict) -> None:
    clock["seconds"] = lambda width: 20.0 + width
    with pytest.raises(ValueError) as raised:
        match_throughput("swin_t_p2", speedup=3.0, **SMALL)
    assert "speedup: expected 0.35 to 1.04, what widths 3 to 48 reach, got 3.0" in one_line(raised)
    closest = match_throughput("swin_t_p2", speedup=3.0, closest=True, **SMALL)
    assert closest.embed_dim == 3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"baseline": "diet_t"}, "did you mean 'deit_t'?"),
        ({"speedup": 0}, "speedup: expected more than 0, got 0"),
        ({"rounds": 0}, "rounds: expected at least 1, got 0"),
        ({"attention_share": 1.5}, "attention_share: expected 0 to 1, got 1.5"),
        ({"threads": 0}, "threads: expected at least 1, got 0"),
    ],
)
def test_wrong_values_are_named(clock: dict, changes: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"baseline": "deit_t_p4", **SMALL, **changes}
    with pytest.raises(ValueError) as raised:
        match_throughput(options.pop("baseline"), **options)
    assert message in one_line(raised)


def test_on_a_real_clock() -> None:
    """A tenth of the width is faster than the whole, whatever the machine does."""
    record = match_throughput("deit_t_p4", speedup=1.0, attention_share=0.5, rounds=3, **SMALL)
    assert all(row.img_per_s > 0 and row.macs > 0 for row in record.tried)
