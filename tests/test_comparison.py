"""Both sides take turns, and a record's ratios follow from its own times. No time is judged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from evitlab.analysis import comparison
from evitlab.analysis.comparison import compare_with_timm, interleave
from evitlab.analysis.conditions import cpu_threads
from evitlab.records import SpeedRecord


def test_who_goes_first_alternates() -> None:
    """Two rounds of warm-up come before, and are not counted."""
    order: list[str] = []
    calls: dict[str, Callable[[], object]] = {
        name: partial(order.append, name) for name in ("a", "b", "c")
    }
    times = interleave(calls, rounds=3)
    rounds = [order[start : start + 3] for start in range(0, len(order), 3)]
    assert len(rounds) == 2 + 3
    assert all(mine == other[::-1] for mine, other in zip(rounds, rounds[1:], strict=False))
    assert sorted(rounds[0]) == ["a", "b", "c"]
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_times_are_those_of_the_call_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the calls move: a takes 1 s, b 10 s more every round."""
    clock = 0.0
    rounds = 0

    def a() -> None:
        nonlocal clock
        clock += 1

    def b() -> None:
        nonlocal clock, rounds
        rounds += 1
        clock += 10 * rounds

    monkeypatch.setattr(comparison.time, "perf_counter", lambda: clock)
    times = interleave({"a": a, "b": b}, rounds=3)
    assert times == {"a": [1, 1, 1], "b": [30, 40, 50]}


@pytest.fixture(scope="module")
def measured() -> tuple[SpeedRecord, list[dict[str, list[float]]]]:
    """One model at batch 1 in two rounds, with the times behind it; data path of 16 images."""
    times: list[dict[str, list[float]]] = []

    def spy(calls: Any, *, rounds: int) -> dict[str, list[float]]:
        times.append(interleave(calls, rounds=rounds))
        return times[-1]

    before = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "interleave", spy)
        patch.setattr(comparison, "_DATA_PATH_BATCH", 16)
        record = compare_with_timm(["efficientvit_m0"], batch_sizes=[1], rounds=2, threads=1)
    assert torch.equal(torch.get_rng_state(), before)
    return record, times


def test_the_record_comes_back(measured: Any, tmp_path: Path) -> None:
    record, _ = measured
    assert SpeedRecord.load(record.save(tmp_path / "speed.json")) == record
    frame = record.to_frame()
    assert list(frame["model"]) == ["efficientvit_m0"] * 2
    assert list(frame["task"]) == ["forward", "training step"]
    assert list(frame["batch_size"]) == [1, 2]  # BatchNorm needs two to train
    assert record.rounds == 2
    assert record.environment.threads == 1


def test_ratios_are_timms_time_over_ours_round_by_round(measured: Any) -> None:
    record, times = measured
    for row, rounds in zip(record.rows, times, strict=False):
        assert row.ours_ms == pytest.approx(500 * sum(rounds["ours"]))  # the median of two
        assert row.timm_ms == pytest.approx(500 * sum(rounds["timm"]))
        first, second = (b / a for a, b in zip(rounds["ours"], rounds["timm"], strict=True))
        least, most = sorted((first, second))
        assert row.ratio == pytest.approx((first + second) / 2)
        assert row.ratio_low == pytest.approx(least + (most - least) / 4)
        assert row.ratio_high == pytest.approx(most - (most - least) / 4)


def test_the_data_paths_share_is_of_the_step(measured: Any) -> None:
    record, times = measured
    assert [row.recipe for row in record.data_path] == ["cifar", "imagenet"]
    for row, rounds in zip(record.data_path, times[2:], strict=True):
        assert row.batch_size == 16
        assert row.data_ms == pytest.approx(500 * sum(rounds["data"]))
        assert row.share_pct == pytest.approx(100 * row.data_ms / row.step_ms)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"models": ["efficientvit_m9"]},
            r"^models: .*efficientvit_m0.* got \['efficientvit_m9'\]",
        ),
        ({"models": ["efficientvit_m0_p4"]}, "^models: "),  # timm has none such
        ({"models": []}, r"^models: .* got \[\]"),
        ({"batch_sizes": []}, r"^batch_sizes: expected numbers of at least 1, got \[\]"),
        ({"batch_sizes": [1, 0]}, r"^batch_sizes: .* got \[1, 0\]"),
        ({"rounds": 0}, "^rounds: expected at least 1, got 0"),
        ({"threads": 0}, "^threads: expected at least 1, got 0"),
    ],
)
def test_nothing_to_measure_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_with_timm(**{"models": ["efficientvit_m0"], "rounds": 1, **arguments})


def test_threads_come_back_also_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
    with cpu_threads(None):
        assert torch.get_num_threads() == before
