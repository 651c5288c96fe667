"""Records of channels and of pruned models: what their frames say, and JSON."""

from __future__ import annotations

import dataclasses

import pytest

from evitlab.records import (
    Accuracy,
    ChannelCut,
    ChannelCuts,
    ChannelImportance,
    ChannelScores,
    ChannelWidths,
    PrunedPeer,
    PruningComparison,
    PruningRecord,
    environment_card,
)

CARD = environment_card(dataset="CIFAR-10", scale="smoke", seed=0)
ACCURACY = Accuracy(top1=60.0, top5=95.0, loss=1.1, n=1_000, environment=CARD)
IMPORTANCE = ChannelImportance(
    model="deit_t",
    criterion="taylor",
    images=64,
    batches=2,
    channels=(
        ChannelScores(1, "blocks.0.attn", "q", 2, 4, (0.4, 0.3, 0.2, 0.1)),
        ChannelScores(1, "blocks.0.mlp", "ffn", 1, 4, tuple(range(8))),
    ),
    environment=CARD,
)
CUTS = ChannelCuts(
    model="deit_t",
    criterion="taylor",
    images=64,
    loss=1.1,
    cuts=(ChannelCut(1, "blocks.0.attn", "q", 3, 0.1, 0.0, 1e-4),),
    command="evitlab study channel-importance",
    environment=CARD,
)
PRUNED = PruningRecord(
    model="deit_t",
    criterion="taylor",
    images=64,
    budget={"macs": 0.7},
    steps=5,
    macs_before=100,
    macs_after=70,
    params_before=40,
    params_after=30,
    widths=(
        ChannelWidths(1, "blocks.0.attn", "qk", 4, 2, 4),
        ChannelWidths(1, "blocks.0.attn", "v", 4, 4, 4),
        ChannelWidths(1, "blocks.0.mlp", "ffn", 16, 12, 4),
    ),
    command="evitlab prune deit_t --macs 0.7",
    environment=CARD,
    before=ACCURACY,
)
PEERS = PruningComparison(
    model="deit_t",
    macs=100,
    params=40,
    budget=0.7,
    steps=5,
    images=64,
    train_images=1_000,
    recipe={"epochs": 2},
    before=ACCURACY,
    rows=(PrunedPeer("evitlab", "taylor", 70, 30, 20.0, 55.0, {"qk": 0.5, "v": 1, "ffn": 0.75}),),
    command="evitlab bench --preset pruning",
    environment=CARD,
)


@pytest.mark.parametrize(
    "record", [IMPORTANCE, CUTS, PRUNED, PEERS], ids=lambda record: type(record).__name__
)
def test_loaded_equals_saved(record, tmp_path):
    assert type(record).load(record.save(tmp_path / "record.json")) == record


def test_channels_come_head_by_head():
    frame = IMPORTANCE.to_frame()
    assert frame.query("component == 'q'")["head"].tolist() == [0, 0, 1, 1]
    assert frame.query("component == 'q'")["score"].tolist() == [0.4, 0.3, 0.2, 0.1]
    hidden = frame.query("component == 'ffn'")
    assert hidden["head"].isna().all() and hidden["channel"].tolist() == list(range(8))


def test_scores_are_found_by_module_and_component():
    assert IMPORTANCE.of("blocks.0.attn", "q").scores[0] == 0.4
    with pytest.raises(KeyError, match="deit_t has no 'v' channels in 'blocks.0.attn'"):
        IMPORTANCE.of("blocks.0.attn", "v")


def test_ratios_are_to_the_channels_of_the_blocks_input():
    frame = PRUNED.to_frame().set_index("component")
    assert frame["ratio_before"].to_dict() == {"qk": 1.0, "v": 1.0, "ffn": 4.0}
    assert frame["ratio_after"].to_dict() == {"qk": 0.5, "v": 1.0, "ffn": 3.0}
    assert frame["kept"].to_dict() == {"qk": 0.5, "v": 1.0, "ffn": 0.75}


def test_peers_stand_side_by_side():
    (row,) = PEERS.to_frame().to_dict("records")
    assert (row["before_top1"], row["pruned_top1"], row["recovered_top1"]) == (60.0, 20.0, 55.0)
    assert (row["macs_share"], row["qk_kept"], row["v_kept"]) == (0.7, 0.5, 1)
    assert "kept" not in row


def test_cuts_are_tidy():
    assert CUTS.to_frame().loc[0, ["model", "component", "channel", "loss_change"]].tolist() == [
        "deit_t", "q", 3, 1e-4,
    ]  # fmt: skip


def test_a_score_that_is_not_finite_is_refused(tmp_path):
    group = dataclasses.replace(IMPORTANCE.channels[0], scores=(float("nan"),) * 4)
    broken = dataclasses.replace(IMPORTANCE, channels=(group,))
    with pytest.raises(ValueError, match=r"channels\[0\]\.scores\[0\]: expected a finite number"):
        broken.save(tmp_path / "r.json")
