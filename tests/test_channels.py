"""Scores of channels: the derivative they claim to be, in every family, and nothing left behind."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from randomised import images, randomise
from small_runs import one_line, shapes
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from evitlab import ChannelImportance, channel_importance, create_model, deploy
from evitlab.analysis.channels import _sums, scaled_channel
from evitlab.models.channels import EfficientViTFFN, channel_layers
from evitlab.models.efficientvit import FFN
from evitlab.models.layers import FOLD_FROM
from evitlab.records import COMPONENTS
from evitlab.training.augment import normalize

SMALL: dict[str, Any] = {"img_size": 32, "num_classes": 5}
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "deit": lambda: create_model("deit_t_p4", **SMALL, embed_dim=24, depth=(2,)),
    "swin": lambda: create_model(
        "swin_t_p2", **SMALL, embed_dim=12, depth=(2, 1, 1, 1), num_heads=(3, 3, 3, 3)
    ),
    "efficientvit": lambda: create_model(
        "efficientvit_m0_p4", **SMALL, depth=(1, 1, 1), embed_dim=(16, 24, 32),
        num_heads=(2, 2, 2), key_dim=(4, 4, 4),
    ),
}  # fmt: skip


def model_of(family: str) -> Any:
    return randomise(FAMILIES[family]()).eval()


def batches(count: int = 1, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    return [(images(size, 3, 32, 32, seed=i).float(), torch.arange(size) % 5) for i in range(count)]


def loss_of(model: Any, batch: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return F.cross_entropy(model(batch[0]), batch[1]).item()


@pytest.mark.parametrize("family", FAMILIES)
def test_score_predicts_the_change_of_the_loss(family: str) -> None:
    """Finite differences in float64: scaling a channel by 1 -+ e changes the loss by its slope."""
    model = model_of(family).double()
    x, y = batches(size=20)[0]
    batch = (x.double(), y)
    if family == "efficientvit":  # there BatchNorm folds on the way: its weights still count
        assert len(x) * 8 * 8 >= FOLD_FROM
    importance = channel_importance(model, [batch])
    assert {group.component for group in importance.channels} == set(COMPONENTS)
    step = 1e-4
    for group in importance.channels:
        largest = max(group.scores)
        assert largest > 0
        for channel in {0, len(group.scores) - 1}:
            at = model, group.name, group.component, channel
            losses = []
            for factor in (1 - step, 1 + step):
                with scaled_channel(*at, factor):
                    losses.append(loss_of(model, batch))
            slope = (losses[1] - losses[0]) / (2 * step)
            error = abs(slope**2 - group.scores[channel])
            assert error <= 1e-4 * largest + 1e-18, (group.name, group.component, channel)


@pytest.mark.parametrize("family", FAMILIES)
def test_q_and_k_score_alike(family: str) -> None:
    """The logits know only the product of a channel of Q and one of K."""
    importance = channel_importance(model_of(family).double(), batches(2))
    for group in importance.channels:
        if group.component == "q":
            keys = importance.of(group.name, "k").scores
            assert group.scores == pytest.approx(keys, rel=1e-6, abs=1e-30)


def test_layers_in_execution_order() -> None:
    found = {
        family: [(layer.block, layer.name) for layer in channel_layers(model_of(family))]
        for family in FAMILIES
    }
    assert found["deit"] == [
        (1, "blocks.0.attn"), (1, "blocks.0.mlp"), (2, "blocks.1.attn"), (2, "blocks.1.mlp")
    ]  # fmt: skip
    assert [block for block, _ in found["swin"]] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert found["efficientvit"][:6] == [
        (1, "stages.0.blocks.0.ffn0.m"),
        (1, "stages.0.blocks.0.mixer.m.attn"),
        (1, "stages.0.blocks.0.ffn1.m"),
        (2, "stages.1.downsample.res1.1.m"),
        (2, "stages.1.downsample.res2.1.m"),
        (2, "stages.1.blocks.0.ffn0.m"),
    ]
    mixed = create_model("deit_t_p4", **SMALL, embed_dim=24, depth=(2,), attention_share=0.25)
    names = [(layer.block, type(layer).__name__) for layer in channel_layers(mixed)]
    assert [block for block, _ in names] == [1, 1, 2, 2]
    assert sum(kind == "TransformerAttention" for _, kind in names) == 1


def test_worked_by_hand() -> None:
    """Two channels, with products of weight and gradient of 3 - 1 and 2 + 2 (the columns)."""
    ffn = FFN(2, 2, norm="batch", activation="relu")
    ((slot,),) = EfficientViTFFN("ffn", 1, ffn).gates("ffn")
    assert slot.parameter is ffn.pw2.conv.weight
    products: dict[Tensor, Tensor] = {
        ffn.pw2.conv.weight: torch.tensor([[3.0, 2.0], [-1.0, 2.0]])[..., None, None]
    }
    assert _sums([(slot,)], products).tolist() == [2.0, 4.0]


def test_criteria() -> None:
    model, (batch,) = model_of("deit"), batches()
    found = {
        criterion: channel_importance(model, [batch], criterion=criterion)
        for criterion in ("taylor", "abs-taylor")
    }
    model.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    products = model.blocks[1].attn.qkv.weight * model.blocks[1].attn.qkv.weight.grad
    biases = model.blocks[1].attn.qkv.bias * model.blocks[1].attn.qkv.bias.grad
    taylor = (products.sum(1) + biases).square()[48:].tolist()
    absolute = (products.abs().sum(1) + biases.abs())[48:].tolist()
    assert found["taylor"].of("blocks.1.attn", "v").scores == pytest.approx(taylor, rel=1e-3)
    assert found["abs-taylor"].of("blocks.1.attn", "v").scores == pytest.approx(absolute, rel=1e-3)

    fc1 = model.blocks[0].mlp.fc1
    sizes = (fc1.weight.square().sum(1) + fc1.bias.square()).tolist()
    magnitude = channel_importance(model, None, criterion="magnitude")
    assert magnitude.of("blocks.0.mlp", "ffn").scores == pytest.approx(sizes)
    assert (magnitude.images, magnitude.batches) == (0, 0)
    random = [channel_importance(model, None, criterion="random", seed=seed) for seed in (1, 1, 2)]
    assert random[0].channels == random[1].channels != random[2].channels


def test_scores_are_averaged_over_batches(tmp_path: Any) -> None:
    model, two = model_of("swin").double(), batches(2)
    both = channel_importance(model, two)
    each = [channel_importance(model, [batch]) for batch in two]
    assert (both.images, both.batches) == (8, 2)
    for together, first, second in zip(
        both.channels, each[0].channels, each[1].channels, strict=True
    ):
        means = [(a + b) / 2 for a, b in zip(first.scores, second.scores, strict=True)]
        assert together.scores == pytest.approx(means)
    assert ChannelImportance.load(both.save(tmp_path / "scores.json")) == both


def test_data_sets_and_uint8_are_normalised() -> None:
    data = shapes(12, classes=5)
    model = model_of("deit")
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    by_hand = [(normalize(data.images[i : i + 8], mean, std), data.labels[i : i + 8])
               for i in (0, 8)]  # fmt: skip
    expected = channel_importance(model, by_hand)
    for source in (data, [(data.images[:8], data.labels[:8]), (data.images[8:], data.labels[8:])]):
        found = channel_importance(model, source, batch_size=8)
        for ours, theirs in zip(found.channels, expected.channels, strict=True):
            assert ours.scores == pytest.approx(theirs.scores)
    assert channel_importance(model, data).environment.dataset == data.title


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_model_is_left_as_it_was(family: str, fails: bool) -> None:
    model = model_of(family).train()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 > 0)
        parameter.grad = torch.ones_like(parameter) if number % 2 else None
    list(model.children())[0].eval()
    state = copy.deepcopy(model.state_dict())
    before = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    two = batches(2)
    if fails:
        two[1] = (two[1][0], torch.full((4,), 9))
        with pytest.raises(ValueError):
            channel_importance(model, two)
    else:
        with torch.no_grad():  # the caller's grad mode does not matter, and stays
            channel_importance(model, two)
            assert not torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError):
        name = channel_layers(model)[0].name
        component = channel_layers(model)[0].components[0]
        with scaled_channel(model, name, component, 1):
            raise ZeroDivisionError
    assert [(p.requires_grad, p.grad is None) for p in model.parameters()] == before
    assert all(p.grad is None or bool((p.grad == 1).all()) for p in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_products_are_those_of_forward_and_backward() -> None:
    """Counted, not timed: `evitlab bench --preset analysis` measures the time."""
    model = create_model("deit_t_p4", img_size=32, num_classes=5, embed_dim=48, depth=(4,)).eval()
    batch = (images(32, 3, 32, 32).float(), torch.arange(32) % 5)
    with FlopCounterMode(display=False) as needed:
        F.cross_entropy(model(batch[0]), batch[1]).backward()
    with FlopCounterMode(display=False) as taken:
        channel_importance(model, [batch])
    # Fewer, as not every parameter needs its gradient; 0 would mean that nothing was counted.
    assert 0.5 * needed.get_total_flops() < taken.get_total_flops() <= needed.get_total_flops()


def wrong(**changes: Any) -> tuple[Tensor, Any]:
    (x, y), *_ = batches()
    return changes.get("x", x), changes.get("y", y)


X = batches()[0][0]
WRONG: dict[str, tuple[Any, str]] = {
    "none": (None, "batches: expected a data set or .*got none"),
    "no batch": ([], "batches: expected at least one .*got none"),
    "no labels": ([X], r"expected \(images, labels\) pairs, got float32 \[4, 3, 32, 32\]"),
    "a tensor": (X, "batches: expected a data set or .*got Tensor"),
    "labels none": ([wrong(y=None)], r"expected integer labels \[4\] in batch 1, got none"),
    "soft labels": ([wrong(y=torch.rand(4, 5))], r"integer labels .*got float32 \[4, 5\]"),
    "few labels": ([wrong(y=torch.arange(3))], r"labels \[4\] in batch 1, got int64 \[3\]"),
    "label 5": ([wrong(), wrong(y=torch.arange(4) + 2)], "labels of 0 to 4.*got 5 in batch 2"),
    "label -1": ([wrong(y=torch.arange(4) - 1)], "labels of 0 to 4.*got -1 in batch 1"),
    "no images": ([wrong(x=X[0])], r"images \[B, C, H, W\] in batch 1, got float32 \[3, 32, 32\]"),
    "nan": ([wrong(), wrong(x=X * math.nan)], "gradients of batch 2 are not finite"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_batches(case: str) -> None:
    given, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as raised:
        channel_importance(model_of("deit"), given)
    one_line(raised)


def small_timm(**options: Any) -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 12, "depth": 1, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", **{**sizes, **options})


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "another family": (
        lambda: timm.create_model("resnet18"), "expected timm's VisionTransformer .*got ResNet"
    ),
    "norms of Q and K": (lambda: small_timm(qk_norm=True), "q_norm is a LayerNorm, which mixes"),
    "another FFN": (
        lambda: small_timm(mlp_layer=timm.layers.SwiGLU), "blocks.0.mlp is a SwiGLU"
    ),
    "a norm in the FFN": (lambda: small_timm(scale_mlp_norm=True), "mlp.norm is a LayerNorm"),
    "split heads": (
        lambda: create_model("deit_t_p4", **SMALL, embed_dim=24, depth=(1,), split_heads=True),
        "blocks.0.attn has split-feature heads",
    ),
    "layer norm": (
        lambda: create_model("efficientvit_m0_p4", **SMALL, norm="layer"), "expected BatchNorm"
    ),
    "deployed": (lambda: deploy(model_of("deit")), "got DeployedTransformer"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_models_that_are_not_supported(case: str) -> None:
    build, message = MODELS[case]
    with pytest.raises(ValueError, match=message) as raised:
        channel_importance(build(), batches())
    assert "model: " in one_line(raised)


def test_wrong_names() -> None:
    model = model_of("deit")
    with pytest.raises(ValueError, match="criterion: .*'tailor'; did you mean 'taylor'"):
        channel_importance(model, batches(), criterion="tailor")
    for at, message in (
        (("blocks.0.atn", "q", 0), "name: expected one of blocks.0.attn"),
        (("blocks.0.attn", "ffn", 0), "component: expected one of q, k, v, got 'ffn'"),
        (("blocks.0.attn", "q", 24), "channel: expected 0 to 23 .*got 24"),
    ):
        with pytest.raises(ValueError, match=message), scaled_channel(model, *at):
            pass
