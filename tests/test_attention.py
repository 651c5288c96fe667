"""Cascaded group attention against its equations, and what each ablation switch changes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from randomised import images, random_model
from torch import Tensor, nn

from evitlab import count_macs, count_params, create_model
from evitlab.models.config import STEM_STRIDES, EfficientViTConfig

NAME = "efficientvit_m1_p4"  # 2, 3 and 3 heads, with kernels of 7, 5 and 3
SMALL: dict[str, Any] = dict(img_size=32, num_classes=10, depth=(1, 1, 1))

ABLATIONS: list[dict[str, Any]] = [
    {},
    dict(ffns=(0, 1)),
    dict(ffns=(2, 2)),
    dict(ffns=(3, 3)),
    dict(cascade=False),
    dict(split=False, cascade=False),
    dict(ffn_ratio=4),
    dict(token_interaction=False),
    dict(norm="layer"),
    dict(activation="hardswish"),
    dict(key_dim=(4, 8, 24)),
    dict(value_ratio=0.4),
    dict(value_ratio=1.2),
    dict(img_size=48, patch_size=8, window_size=(3, 3, 7), kernels=(3, 3, 7)),  # maps of 6, 3, 2
]


def attention_by_loops(attention: Any, x: Tensor, *, split: bool, cascade: bool) -> Tensor:
    """Eqs. 2-3 for one window x [B, C, rows, columns], token by token."""
    rows, columns = x.shape[2:]
    tokens = [(r, c) for r in range(rows) for c in range(columns)]
    heads = len(attention.qkvs)
    width = x.shape[1] // heads
    outputs: list[Tensor] = []
    for j in range(heads):
        feature = x[:, j * width : (j + 1) * width].clone() if split else x
        if cascade and j > 0:
            shared = min(width, outputs[-1].shape[1])
            feature[:, :shared] += outputs[-1][:, :shared]
        qkv = attention.qkvs[j](feature)
        d = attention.dws[j].conv.in_channels
        q, k, v = attention.dws[j](qkv[:, :d]), qkv[:, d : 2 * d], qkv[:, 2 * d :]
        out = torch.zeros_like(v)
        for r, c in tokens:
            scores = [
                (q[:, :, r, c] * k[:, :, s, t]).sum(1) / math.sqrt(d)
                + attention.attention_biases[j, abs(r - s) * columns + abs(c - t)]
                for s, t in tokens
            ]
            weights = torch.stack(scores).exp()
            weights = weights / weights.sum(0)
            for weight, (s, t) in zip(weights, tokens, strict=True):
                out[:, :, r, c] += weight[:, None] * v[:, :, s, t]
        outputs.append(out)
    return attention.proj(torch.cat(outputs, 1))


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        dict(cascade=False),
        dict(split=False, cascade=False),
        dict(key_dim=(4, 4, 4)),
        dict(value_ratio=0.4),
        dict(value_ratio=1.2),
        dict(value_ratio=1.2, cascade=False),
        dict(norm="layer"),
    ],
    ids=str,
)
def test_attention_is_its_equations(overrides: dict[str, Any]) -> None:
    """In windows of 2 x 3 tokens, so that rows and columns cannot be mixed up."""
    options = {**SMALL, "img_size": (8, 12), "num_heads": (4, 3, 3), "kernels": (7, 5, 3, 3)}
    model = random_model(NAME, **{**options, **overrides}).double()
    attention = model.stages[0].blocks[0].mixer.m
    x, flags = images(2, 128, 2, 3), model.config
    expected = attention_by_loops(attention.attn, x, split=flags.split, cascade=flags.cascade)
    torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-12)


def head_maps(model: Any, x: Tensor) -> list[Tensor]:
    """Attention maps of the first block's heads, in order, each [B, N, N]."""
    attention, maps = model.stages[0].blocks[0].mixer.m, []
    handle = attention.attn.softmax.register_forward_hook(lambda _m, _x, out: maps.append(out))
    with handle:
        attention(x)
    return maps


@pytest.mark.parametrize("cascade", [True, False])
def test_each_head_feeds_those_after_it(cascade: bool) -> None:
    model = random_model("efficientvit_m0_p4", **SMALL, cascade=cascade).double()
    x = images(1, 64, 8, 8)
    before = head_maps(model, x)
    assert [tuple(m.shape) for m in before] == [(1, 64, 64)] * 4
    for changed in range(4):
        other = x.clone()
        other[:, 16 * changed : 16 * (changed + 1)] += images(16, 8, 8, seed=1)
        after = head_maps(model, other)
        for head in range(4):
            reached = head == changed or (cascade and head > changed)
            same = torch.equal(before[head], after[head])
            assert same != reached, f"split {changed + 1} and the map of head {head + 1}"


def test_attention_maps_are_distributions() -> None:
    model = random_model("efficientvit_m0_p4", **SMALL, window_size=(5, 5, 5)).double()
    for masked in head_maps(model, images(2, 64, 8, 8)):  # four windows an image, three padded
        assert masked.shape == (8, 25, 25)
        torch.testing.assert_close(masked.sum(-1), torch.ones(8, 25, dtype=torch.float64))


def padded_pair() -> tuple[Any, Tensor]:
    """A model with windows of 4 and a map [2, 128, 6, 7]: windows 4x4, 4x3, 2x4 and 2x3."""
    model = random_model(NAME, **SMALL, window_size=(4, 4, 4)).double()
    return model, images(2, 128, 6, 7)


def test_real_tokens_of_a_padded_window_are_a_smaller_window() -> None:
    model, x = padded_pair()
    y = model.stages[0].blocks[0].mixer.m(x)
    assert y.shape == x.shape
    weights = model.stages[0].blocks[0].mixer.m.state_dict()
    for top, left in ((0, 0), (0, 4), (4, 0), (4, 4)):
        window = x[:, :, top : top + 4, left : left + 4]
        rows, columns = window.shape[2:]
        table = weights["attn.attention_biases"].view(-1, 4, 4)[:, :rows, :columns].flatten(1)
        alone = random_model(NAME, **{**SMALL, "img_size": (4 * rows, 4 * columns)}).double()
        small = alone.stages[0].blocks[0].mixer.m
        assert small.window == (rows, columns)
        small.load_state_dict({**weights, "attn.attention_biases": table})
        real = y[:, :, top : top + 4, left : left + 4]
        torch.testing.assert_close(real, small(window), rtol=1e-10, atol=1e-10)


def test_padding_cannot_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = padded_pair()
    attention = model.stages[0].blocks[0].mixer.m
    pad, poisoned = torch.nn.functional.pad, []

    def poison(x: Tensor, sides: tuple[int, ...], *_: Any, **__: Any) -> Tensor:
        poisoned.append(sides)
        return pad(x, sides, value=9.0)

    masked = attention(x)
    attention.mask_padding = False
    unmasked = attention(x)
    difference = (masked - unmasked).abs()
    assert difference[:, :, :4, :4].max() < 1e-12 and difference[:, :, 4:].max() > 1e-3
    monkeypatch.setattr(torch.nn.functional, "pad", poison)
    assert not torch.allclose(attention(x), unmasked)
    attention.mask_padding = True
    torch.testing.assert_close(attention(x), masked, rtol=1e-12, atol=1e-12)
    assert poisoned == [(0, 1, 0, 2)] * 2, "padding no longer goes through F.pad: poison it there"


def test_masking_changes_nothing_where_nothing_is_padded() -> None:
    masked, unmasked = (random_model(NAME, **SMALL, mask_padding=m) for m in (True, False))
    x = images(2, 3, 32, 32).float()
    torch.testing.assert_close(masked(x), unmasked(x))
    x = images(2, 3, 40, 32).float()
    assert not torch.allclose(masked(x), unmasked(x))


def test_windows_do_not_see_each_other() -> None:
    model = random_model(NAME, **SMALL, window_size=(4, 4, 4)).double()
    attention = model.stages[0].blocks[0].mixer.m
    x = images(1, 128, 8, 8)
    other = x.clone()
    other[:, :, 1, 6] += 1  # the window at the top right
    changed = (attention(x) != attention(other)).any(1)[0]
    assert changed[:4, 4:].all() and not changed[4:].any() and not changed[:, :4].any()


class Cost:
    """Parameters and MACs added up by hand, one convolution or matrix product at a time."""

    def __init__(self) -> None:
        self.params = self.macs = 0

    def conv(
        self, inside: int, out: int, side: int, kernel: int = 1, groups: int = 1, norm: bool = True
    ) -> None:
        """`side`: of the map that comes out. A norm has a weight and a bias, else there is one."""
        weights = inside // groups * out * kernel**2
        self.params += weights + (2 * out if norm else out)
        self.macs += weights * side**2


def cost_by_hand(config: EfficientViTConfig) -> Cost:
    """For square images on whose maps whole windows fit."""
    cost, side = Cost(), config.img_size[0]
    widths = [config.in_chans, *(config.embed_dim[0] // f for f in (8, 4, 2, 1))]
    for i, stride in enumerate(STEM_STRIDES[config.patch_size]):
        side //= stride
        cost.conv(widths[i], widths[i + 1], side, kernel=3)

    def feed_forward(dim: int) -> None:
        if config.token_interaction:
            cost.conv(dim, dim, side, kernel=3, groups=dim)
        hidden = round(dim * config.ffn_ratio)
        cost.conv(dim, hidden, side)
        cost.conv(hidden, dim, side)

    for stage, dim in enumerate(config.embed_dim):
        if stage > 0:
            previous = config.embed_dim[stage - 1]
            feed_forward(previous)
            cost.conv(previous, 4 * previous, side)
            side = math.ceil(side / 2)
            cost.conv(4 * previous, 4 * previous, side, kernel=3, groups=4 * previous)
            cost.conv(4 * previous, previous, 1, norm=False)  # squeeze and
            cost.conv(previous, 4 * previous, 1, norm=False)  # excite
            cost.conv(4 * previous, dim, side)
            feed_forward(dim)
        heads, key = config.num_heads[stage], config.key_dim[stage]
        window = min(side, config.window_size[stage])
        value = round(config.value_ratio * dim / heads)
        for _ in range(config.depth[stage]):
            for _ in range(sum(config.ffns)):
                feed_forward(dim)
            for head in range(heads):
                cost.conv(dim // heads if config.split else dim, 2 * key + value, side)
                cost.conv(key, key, side, kernel=config.kernels[head], groups=key)
                cost.macs += side**2 * window**2 * (key + value)  # QK and the sum of V
                cost.params += window**2  # the bias table
            cost.conv(heads * value, dim, side)
    classifier = config.embed_dim[2] * config.num_classes
    cost.params += 2 * config.embed_dim[2] + classifier + config.num_classes
    cost.macs += classifier
    return cost


@pytest.mark.parametrize("overrides", ABLATIONS, ids=str)
def test_every_ablation_runs_and_costs_what_it_should(overrides: dict[str, Any]) -> None:
    model = random_model(NAME, **{**SMALL, **overrides})
    by_hand = cost_by_hand(model.config)
    assert count_params(model) == by_hand.params
    assert count_macs(model) == by_hand.macs
    x = images(4, 3, *model.config.img_size).float()
    for mode in (True, False):
        logits = model.train(mode)(x)
        assert logits.shape == (4, 10) and logits.isfinite().all()
    logits.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({}, "dw0 ffn0 mixer dw1 ffn1"),
        (dict(ffns=(0, 1)), "mixer dw0 ffn0"),
        (dict(ffns=(2, 1)), "dw0 ffn0 dw1 ffn1 mixer dw2 ffn2"),
        (dict(ffns=(2, 2)), "dw0 ffn0 dw1 ffn1 mixer dw2 ffn2 dw3 ffn3"),
        (dict(token_interaction=False), "ffn0 mixer ffn1"),
        (dict(ffns=(0, 0)), "mixer"),
    ],
    ids=str,
)
def test_order_of_a_blocks_parts(overrides: dict[str, Any], parts: str) -> None:
    model: Any = create_model(NAME, **SMALL, **overrides)
    for stage in model.stages:
        assert " ".join(name for name, _ in stage.blocks[0].named_children()) == parts


def test_without_the_cascade_the_weights_are_the_same_and_the_logits_are_not() -> None:
    cascaded, parallel = (random_model(NAME, **SMALL, cascade=c) for c in (True, False))
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (cascaded, parallel)]
    assert shapes[0] == shapes[1]
    x = images(2, 3, 32, 32).float()
    assert not torch.allclose(cascaded(x), parallel(x), rtol=1e-3)


def test_without_the_split_each_head_sees_all_channels() -> None:
    model = random_model("efficientvit_m0_p4", **SMALL, split=False, cascade=False).double()
    x = images(1, 64, 8, 8)
    before = head_maps(model, x)
    x[:, 63] += images(8, 8, seed=1)  # one channel, in the last head's split if there were one
    assert not any(torch.equal(a, b) for a, b in zip(before, head_maps(model, x), strict=True))


def test_layer_norm_leaves_no_batch_norm() -> None:
    model = random_model(NAME, **SMALL, norm="layer").double().train()
    kinds = nn.modules.batchnorm._BatchNorm
    assert not [name for name, m in model.named_modules() if isinstance(m, kinds)]
    x = images(3, 3, 32, 32)
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-10, atol=1e-10)


def test_hardswish_replaces_every_relu() -> None:
    model = random_model(NAME, **SMALL, activation="hardswish")
    relus = [name for name, m in model.named_modules() if isinstance(m, nn.ReLU)]
    assert all(".patchmerge.se." in name for name in relus), relus  # squeeze-excite keeps its own
    plain = create_model(NAME, **SMALL, weights=model.state_dict()).eval()
    x = images(2, 3, 32, 32).float()
    assert not torch.allclose(model(x), plain(x), rtol=1e-3)
