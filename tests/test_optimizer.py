"""What trains, and how fast: rates layer by layer as timm's, and frozen parts that do not move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small_runs import one_line, plain_net, recipe, shapes, tiny_vit
from timm.optim import create_optimizer_v2
from torch import nn

from evitlab import create_model, train
from evitlab.training.checkpoint import load_checkpoint
from evitlab.training.optimizer import (
    build_optimizer,
    check_trained,
    frozen,
    set_learning_rate,
    train_mode,
)

BASELINES: dict[str, dict[str, Any]] = {
    "deit_t_p4": {"embed_dim": 24, "depth": (2,)},
    "swin_t_p2": {"embed_dim": 24, "depth": (1, 1, 2, 1)},
}


def rates(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple[float, float]]:
    """For each parameter that trains: learning rate, weight decay."""
    found = {
        id(weight): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    named = ((name, found.get(id(weight))) for name, weight in model.named_parameters())
    return {name: values for name, values in named if values is not None}


def test_layer_decay_by_hand() -> None:
    """Four layers, the stem and a block a stage, below the classifier: 1/16, 1/8, 1/4, 1/2, 1."""
    model = tiny_vit()
    optimizer = build_optimizer(model, recipe(layer_decay=0.5, weight_decay=0.1))
    set_learning_rate(optimizer, 16.0)
    found = rates(optimizer, model)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, (rate, decay) in found.items():
        stage = int(name[len("stages.")]) + 1 if name.startswith("stages.") else 0
        assert rate == (16.0 if name.startswith("head.") else 2.0**stage), name
        weight = dict(model.named_parameters())[name]
        assert decay == (0.0 if weight.ndim == 1 or "attention_biases" in name else 0.1), name


def test_a_subsampling_learns_with_the_block_behind_it() -> None:
    model = tiny_vit(depth=(1, 2, 1))
    optimizer = build_optimizer(model, recipe(layer_decay=0.5))
    set_learning_rate(optimizer, 1.0)
    found = {name: rate for name, (rate, _) in rates(optimizer, model).items()}
    by_layer = {
        name: {rate for key, rate in found.items() if key.startswith(name)}
        for name in ("stages.1.downsample.", "stages.1.blocks.0.", "stages.1.blocks.1.")
    }
    assert list(by_layer.values()) == [{1 / 8}, {1 / 8}, {1 / 4}]


@pytest.mark.parametrize("decay", [1.0, 0.75])
def test_rates_and_weight_decay_are_timms(decay: float) -> None:
    """timm's own ViT through timm's own factory, parameter by parameter."""
    model = timm.create_model("vit_tiny_patch16_224", depth=3, embed_dim=12, num_heads=3)
    ours = build_optimizer(model, recipe(lr=2e-3, layer_decay=decay, weight_decay=0.05))
    set_learning_rate(ours, 2e-3)
    theirs = create_optimizer_v2(
        model, "adamw", lr=2e-3, weight_decay=0.05, layer_decay=decay if decay < 1 else None
    )
    for group in theirs.param_groups:  # as timm's schedulers do
        group["lr"] = 2e-3 * group.get("lr_scale", 1.0)
    assert rates(ours, model) == rates(theirs, model)
    assert len({rate for rate, _ in rates(ours, model).values()}) == (5 if decay < 1 else 1)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_name_their_layers(name: str) -> None:
    model = create_model(name, img_size=32, num_classes=3, attention_share=0.4, **BASELINES[name])
    optimizer = build_optimizer(model, recipe(layer_decay=0.5))
    set_learning_rate(optimizer, 1.0)
    found = rates(optimizer, model)
    assert found["head.weight" if name == "deit_t_p4" else "head.fc.weight"][0] == 1.0
    blocks = sum(BASELINES[name]["depth"])
    assert sorted({rate for rate, _ in found.values()}) == [
        0.5**above for above in range(blocks + 1, -1, -1)
    ]


def test_a_bias_of_several_axes_does_not_decay_with_layers_either() -> None:
    """Split heads keep their biases as [heads, channels]."""
    model = create_model("deit_t_p4", img_size=32, split_heads=True, embed_dim=24, depth=(1,))
    decays = [
        {name: decay for name, (_, decay) in rates(build_optimizer(model, r), model).items()}
        for r in (recipe(layer_decay=0.5), recipe(layer_decay=1.0))
    ]
    assert decays[0] == decays[1] and decays[0]["blocks.0.attn.qkv.bias"] == 0.0


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (plain_net, {"layer_decay": 0.5}, "layer_decay: expected 1.0, as the model does not say"),
        (plain_net, {"freeze": "backbone"}, "freeze: expected 'none', as the model names no class"),
        (lambda: tiny_vit(num_classes=0), {"freeze": "backbone"}, "freeze: expected 'none'"),
        (lambda: plain_net().requires_grad_(False), {}, "model: expected parameters that train"),
    ],
    ids=["no layers", "no classifier", "classifier left out", "nothing trains"],
)
def test_refused(model: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        check_trained(model(), recipe(**changes))
    one_line(raised)


def test_a_mistake_costs_no_earlier_run(tmp_path: Path) -> None:
    train(plain_net(), shapes(32), shapes(6, "val"), recipe(), out_dir=tmp_path)
    with pytest.raises(ValueError, match="layer_decay: expected 1.0"):
        train(
            plain_net(), shapes(32), shapes(6, "val"), recipe(layer_decay=0.5), out_dir=tmp_path,
            resume=False,
        )  # fmt: skip
    assert (tmp_path / "record.json").exists() and (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("distilled", [False, True])
def test_a_frozen_backbone_stays_bit_for_bit(tmp_path: Path, distilled: bool) -> None:
    """Weights and running statistics; the linear layers of the classifiers alone move."""
    model = tiny_vit(distilled=distilled, drop_path_rate=0.5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    frozen_recipe = recipe(freeze="backbone", ema_decay=0.5, clip="agc", weight_decay=0.1)
    train(model, shapes(32), shapes(6, "val"), frozen_recipe, out_dir=tmp_path)
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    heads = ("head", "head_dist") if distilled else ("head",)
    linears = {f"{head}.linear.{part}" for head in heads for part in ("weight", "bias")}
    assert moved == linears
    state = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert len(state["optimizer"]["state"]) == len(linears)
    assert all(weight.requires_grad for weight in model.parameters())  # as it was given


def test_a_frozen_backbone_gives_the_features_of_evaluation() -> None:
    model = tiny_vit(drop_path_rate=0.5)
    x = torch.randn(4, 3, 32, 32)
    train_mode(model, "backbone")
    with torch.no_grad():
        seen = model.forward_features(x)
        assert torch.equal(seen, model.eval().forward_features(x))
    train_mode(model, "backbone")
    assert model.training and model.head.linear.training
    assert not model.head.bn.training and not model.stages.training
    train_mode(model, "none")
    assert all(module.training for module in model.modules())


def test_what_was_frozen_before_stays_so() -> None:
    model = tiny_vit()
    model.patch_embed.requires_grad_(False)
    before = [weight.requires_grad for weight in model.parameters()]
    with pytest.raises(KeyError), frozen(model, "backbone"):
        assert [n for n, w in model.named_parameters() if w.requires_grad] == [
            "head.linear.weight", "head.linear.bias",
        ]  # fmt: skip
        raise KeyError
    assert [weight.requires_grad for weight in model.parameters()] == before
