"""Records of what was timed: what they derive from their fields."""

from __future__ import annotations

import dataclasses

import pytest
from timed_records import ROOFLINE, family_sweep, profile, sweep, timing

from evitlab.records import OperatorProfile, ThroughputSweep


def test_a_roofline_by_hand():
    assert ROOFLINE.ridge == 8  # 80e9 MACs and 10e9 bytes per second
    assert ROOFLINE.floor_ms(8e7, 1) == pytest.approx(1)
    assert ROOFLINE.floor_ms(8e7, 4e7) == pytest.approx(4)


def test_a_profile_by_hand():
    unfused, fused = profile(), profile(fused=True)
    assert unfused.self_ms == pytest.approx(100) and fused.self_ms == pytest.approx(80)
    assert unfused.memory_bound_share == pytest.approx(0.36)
    assert fused.memory_bound_share == pytest.approx(0.2)
    assert unfused.overhead == 1.25
    frame = unfused.to_frame()
    assert len(frame) == len(unfused.rows) and set(frame["model"]) == {"deit_t"}


def test_profiles_and_sweeps_reload(tmp_path):
    for record, kind in ((profile(), OperatorProfile), (family_sweep(), ThroughputSweep)):
        assert kind.load(record.save(tmp_path / "record.json")) == record


def test_a_failed_row_has_no_time():
    assert timing("m", 8, 100.0).batch_ms == pytest.approx(80)
    assert timing("m", 8, None).batch_ms is None


def test_half_speed_lies_where_half_of_the_best_is_reached():
    rows = [timing("m", size, speed) for size, speed in ((1, 10.0), (4, 40.0), (16, 80.0))]
    (half,) = sweep(rows).half_speed().itertuples()
    assert (half.best_img_per_s, half.best_batch_size) == (80, 16)
    assert half.half_batch_size == pytest.approx(4)
    rows[1] = timing("m", 4, 20.0)  # between 4 and 16 speed grows as the batch does
    assert sweep(rows).half_speed()["half_batch_size"][0] == pytest.approx(8)


def test_half_speed_of_a_call_with_a_fixed_cost():
    """t0 = 24 ms a call, t1 = 2 ms an image: t0 / t1 = 12 images, if the sweep goes far enough."""
    rows = [timing("m", 2**k, 1e3 * 2**k / (24 + 2 * 2**k)) for k in range(15)]
    assert sweep(rows).half_speed()["half_batch_size"][0] == pytest.approx(12, rel=0.05)


def test_half_speed_where_the_batch_does_not_matter():
    """On a CPU that is busy with one image, no batch size is launch-bound."""
    rows = [timing("m", size, speed) for size, speed in ((1, 90.0), (8, 100.0), (64, 70.0))]
    assert sweep(rows).half_speed()["half_batch_size"].tolist() == [1]
    assert sweep(rows[:1]).half_speed()["half_batch_size"].tolist() == [1]


def test_half_speed_keeps_curves_apart_and_leaves_failures_out():
    rows = [timing("m", 1, 10.0), timing("m", 4, 40.0)]
    rows += [dataclasses.replace(row, layout="channels_last") for row in rows]
    rows += [timing("m", 16, None), timing("gone", 1, None)]
    frame = sweep(rows).half_speed()
    assert frame["layout"].tolist() == ["contiguous", "channels_last"]
    assert frame["half_batch_size"].tolist() == pytest.approx([2, 2])
