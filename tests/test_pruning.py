"""Pruned models: exact where nothing was lost, at their budget, and ordinary in every other way."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import slow
from randomised import images, relative_error
from small_runs import one_line, recipe, shapes
from test_channels import FAMILIES, batches, model_of
from torch import Tensor, nn

from evitlab import (
    ChannelImportance,
    PruningRecord,
    channel_importance,
    count_macs,
    count_params,
    create_model,
    deploy,
    export_onnx,
    load_model,
    prune,
    save_weights,
    train,
)
from evitlab.analysis import pruning
from evitlab.analysis.ranking import Unit, lowest, unit_macs
from evitlab.models.channels import channel_layers, cut_channels, narrow
from evitlab.models.narrow import NarrowAttention, NarrowWindowAttention
from evitlab.models.onnx_graph import describe_onnx


def pruned_model(family: str, macs: float = 0.75) -> Any:
    return prune(model_of(family), batches(), macs=macs, steps=1).model


def widths_of(model: nn.Module) -> dict[tuple[str, str], int]:
    return {
        (layer.name, w): layer.count(w) for layer in channel_layers(model) for w in layer.widths
    }


@torch.no_grad()
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_channels_that_are_zero_are_cut_without_a_change(family: str, fused: bool) -> None:
    """One of each head's Q and K, one of each head's V, two of each FFN."""
    model = model_of(family).double()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    keep: dict[str, dict[str, Tensor]] = {}
    for layer in channel_layers(model):
        for width, components in layer.widths.items():
            heads = torch.arange(layer.count(width)).view(layer.num_heads, -1)
            gone = heads[:, [1, 3]] if width == "ffn" else heads[:, [1]]
            (run,) = {layer.count(width) // len(layer.gates(c)) for c in components}
            for component in components:
                for channel in gone.flatten().tolist():
                    for slot in layer.gates(component)[channel // run]:
                        slot.rows(slot.parameter)[channel % run] = 0
            kept = torch.tensor(
                sorted(set(range(layer.count(width))) - set(gone.flatten().tolist()))
            )
            keep.setdefault(layer.name, {})[width] = kept
    x = images(2, 3, 32, 32)
    expected = model(x)
    cut = copy.deepcopy(model)
    cut_channels(cut, keep)
    assert relative_error(cut(x), expected) <= 1e-12
    assert count_params(cut) < count_params(model)
    scales = [getattr(m, "scale", None) for m in model.modules() if hasattr(m, "scale")]
    assert [getattr(m, "scale", None) for m in cut.modules() if hasattr(m, "scale")] == scales


@pytest.mark.parametrize("family", ["deit", slow("swin"), slow("efficientvit")])
def test_budget_is_reached_from_below(family: str) -> None:
    model = model_of(family)
    state = copy.deepcopy(model.state_dict())
    for share, steps in ((0.8, 1), (0.7, 2)):
        result = prune(model, batches(2), macs=share, steps=steps)
        record = result.record
        assert record.macs_after == count_macs(result.model) <= share * count_macs(model)
        largest = max(unit_macs(model, None).values())
        assert record.macs_after > share * record.macs_before - largest
        assert record.params_after == count_params(result.model) < record.params_before
        assert (record.steps, record.images, record.budget) == (steps, 8, {"macs": share})
        after = {(row.name, row.component): row.after for row in record.widths}
        assert after == widths_of(result.model) != widths_of(model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    absolute = prune(model, batches(), macs=record.macs_after + 1, steps=1).record
    assert 0 <= record.macs_after + 1 - absolute.macs_after <= largest


@pytest.mark.parametrize("family", FAMILIES)
def test_cost_of_a_unit_is_the_difference_it_makes(family: str) -> None:
    model = model_of(family)
    costs = unit_macs(model, None)
    whole = count_macs(model)
    layers = channel_layers(model)
    keep: dict[str, dict[str, Tensor]] = {}
    saved = 0
    for layer in (layers[1], layers[-1]):  # also where several are cut at once
        for width in layer.widths:
            heads = torch.arange(layer.count(width)).view(layer.num_heads, -1)
            keep.setdefault(layer.name, {})[width] = heads[:, 2:].flatten()
            saved += 2 * costs[layer.name, width]
    cut_channels(model, keep)
    assert count_macs(model) == whole - saved


def test_the_best_channels_of_each_head_stay() -> None:
    model = model_of("deit")
    scores = channel_importance(model, batches())
    result = prune(model, scores, keep={"qk": 0.5, "v": 0.75})
    pruned: Any = result.model
    for index, block in enumerate(pruned.blocks):
        narrowed, whole = block.attn, model.blocks[index].attn
        assert isinstance(narrowed, NarrowAttention)
        assert narrowed.scale == whole.scale == 8**-0.5
        parts = narrowed.qkv.weight.split([3 * narrowed.key_dim] * 2 + [3 * narrowed.value_dim])
        for component, rows, whole_rows in zip(
            "qkv", parts, whole.qkv.weight.chunk(3), strict=True
        ):
            found = torch.tensor(scores.of(f"blocks.{index}.attn", component).scores).view(3, 8)
            best = (
                found.argsort(1)[:, 8 - len(rows) // 3 :].sort(1).values
                + 8 * torch.arange(3)[:, None]
            )
            torch.testing.assert_close(rows, whole_rows[best.flatten()])
        assert block.mlp.fc1.out_features == 96
    assert result.record.budget == {"qk": 0.5, "v": 0.75}
    kept = {width: sum(r.after for r in result.record.widths if r.component == width)
            for width in ("qk", "v", "ffn")}  # fmt: skip
    assert kept == {"qk": 24, "v": 36, "ffn": 192}


def test_ranking_worked_by_hand() -> None:
    """The lowest score per cost goes first; what turns out not to be needed comes back."""
    a, b = ("a", "ffn"), ("b", "ffn")
    units = [Unit(a, 0, 1, 2), Unit(b, 0, 9, 10), Unit(a, 1, 3, 2)]
    assert lowest(units, 1) == {a: 1}
    assert lowest(units, 3) == {b: 1}  # a's unit came back: b's alone saves enough
    assert lowest(units, 11) == {a: 1, b: 1}
    assert lowest(units, 13) == {a: 2, b: 1}
    assert lowest(units, 0) == {}


def test_scores_of_several_blocks_are_compared_as_they_are_but_for_magnitude() -> None:
    """All scores of one block a thousand times higher: Taylor spares it, magnitude does not."""
    model = model_of("deit")
    flat = channel_importance(model, None, criterion="random")
    groups = tuple(
        replace(group, scores=tuple(
            (1000.0 if group.block == 1 else 1.0) * (1 + i) for i in range(len(group.scores))
        ))
        for group in flat.channels
    )  # fmt: skip
    lost = {}
    for criterion in ("taylor", "magnitude"):
        scores = replace(flat, criterion=criterion, channels=groups)
        rows = prune(model, scores, macs=0.8).record.widths
        lost[criterion] = {b: sum(r.before - r.after for r in rows if r.block == b) for b in (1, 2)}
    assert lost["taylor"][1] == 0 < lost["taylor"][2]
    assert abs(lost["magnitude"][1] - lost["magnitude"][2]) <= 6 < lost["magnitude"][1]


def test_taylor_keeps_the_loss_where_random_does_not() -> None:
    """On a model that was trained, in which some channels do matter."""
    torch.manual_seed(0)
    model = create_model("deit_t_p4", img_size=32, num_classes=3, embed_dim=24, depth=(2,))
    x, y = shapes(48).images.float() / 127 - 1, shapes(48).labels
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.eval()

    def loss(of: nn.Module) -> float:
        with torch.no_grad():
            return nn.functional.cross_entropy(of(x), y).item()

    taylor = loss(prune(model, [(x, y)], macs=0.6, steps=2).model)
    random = [
        loss(prune(model, None, macs=0.6, criterion="random", seed=seed).model) for seed in range(3)
    ]
    assert taylor - loss(model) < 0.8 * (min(random) - loss(model)), (loss(model), taylor, random)


@torch.no_grad()
@pytest.mark.parametrize("family", ["deit", slow("swin"), slow("efficientvit")])
def test_an_ordinary_module(family: str, tmp_path: Path) -> None:
    """Copies, pickles, saves, loads, deploys and exports: the same logits each time."""
    model = pruned_model(family)
    model.class_names = tuple("abcde")
    x = images(2, 3, 32, 32).float()
    expected = model(x)
    torch.save(model, tmp_path / "whole.pt")
    save_weights(model, tmp_path / "model.safetensors", class_names=model.class_names)
    again = {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "torch.save": torch.load(tmp_path / "whole.pt", weights_only=False),
        "load_model": load_model(tmp_path),
    }
    for name, other in again.items():
        assert torch.equal(other(x), expected), name
        assert other.channel_widths == model.channel_widths and widths_of(other) == widths_of(model)
    assert relative_error(deploy(model)(x), expected) <= 1e-5
    if family != "efficientvit":  # it takes seconds; checked with ONNX Runtime before it stays
        card = describe_onnx(export_onnx(model, tmp_path / "model.onnx")).card
        assert card["channel_widths"] == model.channel_widths
    twice = prune(again["load_model"], batches(), macs=0.95, steps=1)
    save_weights(twice.model, tmp_path / "twice.safetensors")
    assert torch.equal(load_model(tmp_path / "twice.safetensors")(x), twice.model(x))
    if family != "efficientvit":
        kinds = (NarrowAttention, NarrowWindowAttention)
        assert any(isinstance(module, kinds) for module in model.modules())


def test_training_knows_the_widths(tmp_path: Path) -> None:
    """A pruned model trains and resumes, and is not taken for the whole one or another."""
    whole = create_model("deit_t_p4", img_size=32, num_classes=3, embed_dim=12, depth=(1,))
    scores = channel_importance(whole, None, criterion="random")
    pruned = prune(whole, scores, macs=0.8).model
    data = shapes(16), shapes(8, "val")
    few = recipe(epochs=1, batch_size=8)
    record = train(pruned, *data, few, out_dir=tmp_path)
    assert record.macs == count_macs(pruned) and record.params == count_params(pruned)
    loaded = load_model(tmp_path)
    assert train(loaded, *data, few, out_dir=tmp_path) == record
    for other, message in (
        (whole, "model pruned there, whole asked for"),
        (prune(whole, scores, macs=0.7).model, "pruned there, pruned to other widths asked for"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            train(other, *data, few, out_dir=tmp_path)
        one_line(raised)


def test_minimum_widths() -> None:
    least = {"qk": 4, "v": 5, "ffn": 30}
    model = model_of("deit")
    with pytest.raises(ValueError, match="macs: expected 0") as raised:
        prune(model, batches(), macs=0.01, minimum=least)
    share = float(one_line(raised).split()[2]) + 0.001
    widths = widths_of(prune(model, batches(), macs=share, steps=1, minimum=least).model)
    per_head = {"qk": 3 * 4, "v": 3 * 5, "ffn": 30}
    assert all(count >= per_head[width] for (_, width), count in widths.items())
    assert sum(count == per_head[width] for (_, width), count in widths.items()) >= 5


def test_throughput_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The most multiply-accumulates with the speed asked for; here speed is their inverse."""
    timed = []

    def measured(models: Any, **_: Any) -> list[Any]:
        timed.append([count_macs(model) for model in models])
        return [FakeRow(1e9 / macs) for macs in timed[-1]]

    monkeypatch.setattr(pruning, "measure_throughput", measured)
    model = model_of("deit")
    record = prune(model, batches(), throughput=1.25, steps=1).record
    reached = record.macs_before / record.macs_after
    assert 1.25 <= reached < 1.35 and record.budget == {"throughput": 1.25}
    assert len(timed) <= pruning.SEARCHES + 2 and timed[0][0] == record.macs_before
    with pytest.raises(ValueError, match=r"throughput: expected at most \d\.\d\d, which the min"):
        prune(model, batches(), throughput=50.0, steps=1)


class FakeRow:
    error = None

    def __init__(self, img_per_s: float) -> None:
        self.img_per_s = img_per_s


@pytest.mark.slow
def test_throughput_is_measured_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "ROUNDS", 3)
    monkeypatch.setattr(pruning, "SECONDS", 0.1)
    model = model_of("deit")
    ratio = pruning._Search(model, 1.1, 32, 4).ratio(pruned_model("deit", 0.5))
    assert 0.1 < ratio < 10


def test_record_goes_to_json_and_back(tmp_path: Path) -> None:
    record = prune(model_of("swin"), batches(), macs=0.8, steps=1, command="evitlab prune x").record
    assert PruningRecord.load(record.save(tmp_path / "record.json")) == record
    assert record.model == "swin_t_p2" and record.command == "evitlab prune x"


WRONG: dict[str, tuple[Mapping[str, Any], str]] = {
    "above": ({"macs": 1.2}, r"macs: expected 0\.\d+ to 1 as a share.*the whole model\), got 1\.2"),
    "far above": ({"macs": 10**12}, r"the whole model\), got 1,000,000,000,000"),
    "below": ({"macs": 0.05}, r"or [\d,]+ \(all widths at their minimum\).*got 0\.05"),
    "zero": ({"macs": 0.0}, "macs: expected"),
    "keep too little": ({"keep": 0.01}, "keep: expected 0.125 .*for 'qk', got 0.01"),
    "keep too much": ({"keep": {"v": 1.5}}, "keep: expected .*to 1 for 'v', got 1.5"),
    "keep what": ({"keep": {"hidden": 0.5}}, "keep: expected widths of qk, v, ffn, got 'hidden'"),
    "no budget": ({}, "budget: expected one of macs, keep and throughput, got none"),
    "two budgets": ({"macs": 0.5, "keep": 0.5}, "budget: expected one .*got macs and keep"),
    "slower": ({"throughput": 0.9}, "throughput: expected more than 1.*got 0.9"),
    "no steps": ({"macs": 0.8, "steps": 0}, "steps: expected at least 1, got 0"),
    "minimum": ({"macs": 0.8, "minimum": {"qk": 0}}, "minimum: expected at least 1 .*got 0 for"),
    "minimum of": ({"macs": 0.8, "minimum": {"q": 1}}, "minimum: .*got 1 for 'q'"),
    "criterion": ({"macs": 0.8, "criterion": "x"}, "criterion: expected one of taylor"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_budgets(case: str) -> None:
    options, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as raised:
        prune(model_of("deit"), batches(), **options)
    one_line(raised)


def test_wrong_scores() -> None:
    model = model_of("deit")
    scores: ChannelImportance = channel_importance(model, None, criterion="random")
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: prune(model, iter(batches()), macs=0.8), "importance: expected batches that can"),
        (lambda: prune(model, scores, macs=0.8, steps=2), "steps: expected 1 where scores are"),
        (lambda: prune(model_of("swin"), scores, macs=0.8), "importance: expected scores of this"),
        (lambda: prune(nn.Linear(2, 2), scores, macs=0.8), "model: expected timm's Vision"),
        (lambda: prune(model, None, macs=0.8), "batches: expected a data set or"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message) as raised:
            call()
        one_line(raised)


def test_wrong_widths() -> None:
    model = model_of("efficientvit")
    name = "stages.0.blocks.0.mixer.m.attn"
    narrow(model, {name: {"qk": 4}})
    assert model.get_submodule(name).key_dim == 2 and model.channel_widths == {name: {"qk": 4}}
    keeps: list[tuple[dict[str, dict[str, Tensor]], str]] = [
        ({"x": {"qk": torch.arange(2)}}, "widths: expected one of stages.0.*got 'x'"),
        ({name: {"v": torch.arange(2)}}, "widths: expected qk of .*got 'v'"),
        ({name: {"qk": torch.tensor([1, 0])}}, "ascending channels of 0 to 3"),
        ({name: {"qk": torch.tensor([0, 4])}}, "ascending channels of 0 to 3"),
        ({name: {"qk": torch.tensor([], dtype=torch.int64)}}, "ascending channels of 0 to 3"),
        ({name: {"qk": torch.tensor([0, 1, 2])}}, r"as many channels .*got \[2, 1\]"),
    ]
    before = widths_of(model)
    for keep, message in keeps:
        with pytest.raises(ValueError, match=message) as raised:
            cut_channels(model, keep)
        one_line(raised)
    assert widths_of(model) == before
