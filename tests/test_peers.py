"""Torch-Pruning beside ours: the same budget, the same data, the same training."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from small_runs import recipe, shapes

from evitlab.analysis.peers import compare_pruning, kept_channels, prune_with_torch_pruning
from evitlab.models.cost import count_macs
from evitlab.models.zoo import create_model
from evitlab.records import PruningComparison


def build(name: str = "deit_t_p4", **overrides: Any) -> Any:
    torch.manual_seed(0)
    small: dict[str, Any] = {"embed_dim": 12, "depth": (2,)} if name.startswith("deit") else {
        "embed_dim": 12, "depth": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)
    }  # fmt: skip
    return create_model(name, img_size=32, num_classes=3, **{**small, **overrides})


def batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) % 3)]


@pytest.mark.parametrize("name", ["deit_t_p4", "swin_t_p2"])
def test_peer_reaches_the_budget_with_heads_cut_alike(name):
    pytest.importorskip("torch_pruning", reason="the extra peers")
    model = build(name)
    pruned = prune_with_torch_pruning(model, batches(), macs=0.8, steps=2)
    assert 0.7 < count_macs(pruned, 32) / count_macs(model, 32) <= 0.8
    kept = kept_channels(model, pruned)
    assert kept["qk"] == kept["v"] <= 1 and kept["ffn"] <= 1  # Q, K and V go together
    assert pruned(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    before = [m.scale for m in model.modules() if hasattr(m, "qkv")]
    assert [m.scale for m in pruned.modules() if hasattr(m, "qkv")] == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_peer_may_cut_the_width_of_a_deit():
    pytest.importorskip("torch_pruning", reason="the extra peers")
    pruned: Any = prune_with_torch_pruning(build(), batches(), macs=0.6, whole=True)
    assert pruned.patch_embed.proj.out_channels < 12
    assert pruned(torch.randn(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.slow
def test_ways_to_prune_stand_side_by_side(tmp_path):
    pytest.importorskip("torch_pruning", reason="the extra peers")
    data = shapes(32), shapes(18, "val")
    record = compare_pruning(
        build(), *data, recipe(epochs=1), macs=0.8, out_dir=tmp_path, steps=1, images=16
    )
    methods = [(row.method, row.criterion) for row in record.rows]
    assert methods[0][0] == "torch-pruning"
    assert methods[1:] == [("evitlab", name) for name in ("taylor", "abs-taylor", "random")]
    for row in record.rows:  # never above what Torch-Pruning left
        assert row.macs <= record.rows[0].macs <= 0.8 * record.macs
        assert row.params < record.params and 0 <= row.recovered_top1 <= 100
    assert PruningComparison.load(record.save(tmp_path / "r.json")) == record


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), {}, "model: expected a DeiT or Swin .* got Linear"),
        (lambda: build(split_heads=True), {}, "with split-feature heads"),
        (build, {"macs": 1.2}, "macs: expected a share above 0 and below 1, got 1.2"),
        (build, {"steps": 0}, "steps: expected at least 1, got 0"),
        (lambda: build("swin_t_p2"), {"whole": True}, "whole: expected False for Swin"),
        (build, {"macs": 0.01}, "macs: expected a share that Torch-Pruning can reach, got 0.01"),
    ],
)
def test_what_cannot_be_done_is_said(model, options, message):
    pytest.importorskip("torch_pruning", reason="the extra peers")
    with pytest.raises(ValueError, match=message):
        prune_with_torch_pruning(model(), batches(), **{"macs": 0.7, **options})


def test_a_missing_peer_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ImportError, match=r"pip install 'evitlab\[peers\]'"):
        prune_with_torch_pruning(build(), batches(), macs=0.7)
