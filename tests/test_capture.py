"""Captured attention is what the model computed, and nothing of the watching stays behind."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import config as timm_config
from torch import Tensor, nn

from evitlab.analysis.capture import AttentionMaps, capture_attention
from evitlab.models.deploy import deploy
from evitlab.models.zoo import create_model


def timm_model(name: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=False, **changes)
    return model.eval()


def ours(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return create_model("efficientvit_m0", img_size=96, **changes).eval()


# Name, how it is built, pixels, blocks, kind and windows of the first block.
CASES: list[tuple[str, Callable[[], nn.Module], int, int, str, int]] = [
    ("ours", ours, 96, 6, "cascade", 1),
    ("ours, windows", lambda: ours(window_size=(3, 3, 3)), 96, 6, "cascade", 4),
    ("ours, padded", lambda: ours(window_size=(4, 4, 4)), 96, 6, "cascade", 4),
    ("ours, no cascade", lambda: ours(cascade=False), 96, 6, "window", 1),
    ("ours, deployed", lambda: deploy(ours(window_size=(3, 3, 3))), 96, 6, "cascade", 4),
    ("vit", lambda: timm_model("vit_tiny_patch16_224", img_size=48), 48, 12, "global", 1),
    ("deit", lambda: timm_model("deit_tiny_distilled_patch16_224"), 224, 12, "global", 1),
    ("deit3", lambda: timm_model("deit3_small_patch16_224", img_size=48), 48, 12, "global", 1),
    ("beit", lambda: timm_model("beit_base_patch16_224", img_size=48), 48, 12, "global", 1),
    ("eva02", lambda: timm_model("eva02_tiny_patch14_224", img_size=56), 56, 12, "global", 1),
    ("swin", lambda: timm_model("swin_tiny_patch4_window7_224", img_size=112), 112, 12,
     "window", 16),
    ("swinv2", lambda: timm_model("swinv2_tiny_window8_256", img_size=128), 128, 12,
     "window", 16),
    ("levit", lambda: timm_model("levit_128s"), 224, 11, "global", 1),
    ("levit, convolutions", lambda: timm_model("levit_conv_128s"), 224, 11, "global", 1),
    ("tiny_vit", lambda: timm_model("tiny_vit_5m_224"), 224, 10, "window", 16),
    ("efficientvit msra", lambda: timm_model("efficientvit_m0"), 224, 6, "cascade", 4),
]  # fmt: skip
FEW = [CASES[i] for i in (1, 5, 10)]  # a cascade in windows, a ViT, a Swin
cases = pytest.mark.parametrize(
    ("build", "side", "count", "kind", "windows"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
few = pytest.mark.parametrize(
    ("build", "side"), [case[1:3] for case in FEW], ids=[case[0] for case in FEW]
)


def images(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@cases
@torch.no_grad()
def test_maps_are_those_the_model_used(
    build: Callable[[], nn.Module], side: int, count: int, kind: str, windows: int
) -> None:
    model, x = build(), images(side)
    plain = model(x)
    with capture_attention(model) as blocks:
        watched = model(x)
    torch.testing.assert_close(watched, plain, rtol=1e-5, atol=1e-6)
    assert [block.block for block in blocks] == list(range(1, count + 1))
    modules = dict(model.named_modules())
    for block in blocks:
        assert block.name in modules
        G, h, N, M = block.maps.shape
        assert G == 2 * block.windows and h == block.num_heads
        assert block.by_image().shape == (2, block.windows, h, N, M)
        torch.testing.assert_close(block.maps.sum(-1), torch.ones(G, h, N), msg=block.name)
        torch.testing.assert_close(block.maps @ block.values, block.outputs, msg=block.name)
        assert block.queries.shape[:3] == (G, h, N)
        assert block.keys.shape == (G, h, M, block.queries.shape[3])
    assert blocks[0].kind == kind and blocks[0].windows == windows


@torch.no_grad()
def test_unfused_outputs_are_bitwise_the_same() -> None:
    for build in (ours, lambda: timm_model("swinv2_tiny_window8_256", img_size=128)):
        model, x = build(), images(128)
        with capture_attention(model):
            watched = model(x)
        assert torch.equal(watched, model(x))


@torch.no_grad()
def test_maps_follow_from_queries_and_keys() -> None:
    """A ViT has no bias: softmax(Q K) is the whole map, and timm's Q carry the scale."""
    model = timm_model("vit_tiny_patch16_224", img_size=48)
    with capture_attention(model) as blocks:
        model(images(48))
    for block in blocks:
        maps = (block.queries @ block.keys.transpose(-2, -1)).softmax(-1)
        torch.testing.assert_close(maps, block.maps)


@few
@torch.no_grad()
def test_windows_stand_image_by_image(build: Callable[[], nn.Module], side: int) -> None:
    model, x = build(), images(side, 3)
    with capture_attention(model) as blocks:
        model(x)
        together = [block.by_image() for block in blocks]
        model(x[1:2])
        alone = [block.by_image() for block in blocks]
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[1:2], one, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_windows_stand_row_by_row() -> None:
    """A change in the last rows of an image shows in the first block's last windows only."""
    model, x = timm_model("swin_tiny_patch4_window7_224", img_size=112), images(112, 1)
    other = x.clone()
    other[:, :, 84:, 84:] += 1.0  # the last of 4 x 4 windows of 7 x 7 tokens of 4 x 4 pixels
    with capture_attention(model) as blocks:
        model(x)
        before = blocks[0].by_image()[0]
        model(other)
        after = blocks[0].by_image()[0]
    changed = [i for i in range(16) if not torch.equal(before[i], after[i])]
    assert changed == [15]


@torch.no_grad()
def test_a_new_pass_replaces_the_one_before() -> None:
    model = timm_model("vit_tiny_patch16_224", img_size=48, depth=2)
    with capture_attention(model) as blocks:
        model(images(48))
        model(images(48, 5))
        assert [len(block.maps) for block in blocks] == [5, 5]
        model.forward_features(images(48, 3))  # type: ignore[operator]
        assert [len(block.maps) for block in blocks] == [3, 3]
    assert len(blocks) == 2  # readable afterwards


@few
@torch.no_grad()
def test_streaming_keeps_no_block(build: Callable[[], nn.Module], side: int) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def each(block: AttentionMaps) -> None:
        nonlocal most
        alive.append(weakref.ref(block.maps))
        most = max(most, sum(ref() is not None for ref in alive))

    model = build()
    with capture_attention(model, each=each) as blocks:
        model(images(side))
    assert blocks == [] and len(alive) >= 6
    assert most == 1, f"{most} blocks' maps at once"


def test_gradients_reach_the_maps() -> None:
    model = timm_model("vit_tiny_patch16_224", img_size=48, depth=1)
    with capture_attention(model) as blocks:
        (gradient,) = torch.autograd.grad(model(images(48)).sum(), blocks[0].maps)
    assert gradient.abs().sum() > 0


@torch.no_grad()
def test_maps_are_taken_before_dropout() -> None:
    model = timm_model("vit_tiny_patch16_224", img_size=48, depth=1, attn_drop_rate=0.5).train()
    with capture_attention(model) as blocks:
        model(images(48))
    block = blocks[0]
    torch.testing.assert_close(block.maps.sum(-1), torch.ones(block.maps.shape[:3]))
    assert not torch.allclose(block.maps @ block.values, block.outputs)


def state_of(model: nn.Module) -> list[object]:
    state: list[object] = [timm_config.use_fused_attn(), timm_config.use_fused_attn(True)]
    for module in model.modules():
        hooks = [len(value or ()) for key, value in vars(module).items() if "hooks" in key]
        state.append((hooks, module.training, getattr(module, "fused_attn", None)))
    return state


@few
@pytest.mark.parametrize("ending", ["well", "model raises", "caller raises", "each raises"])
def test_nothing_is_left_behind(build: Callable[[], nn.Module], side: int, ending: str) -> None:
    model = build()
    list(model.modules())[3].train()  # modes are mixed: each has to come back
    before = state_of(model)

    def fail(_block: object) -> None:
        raise ArithmeticError("stop")

    def watch() -> None:
        with capture_attention(model, each=fail if ending == "each raises" else None):
            assert state_of(model) != before
            model(torch.randn(1, 4, side, side) if ending == "model raises" else images(side))
            if ending == "caller raises":
                raise ArithmeticError("stop")

    if ending == "well":
        watch()
    else:
        with pytest.raises((ArithmeticError, RuntimeError, ValueError)):
            watch()
    assert state_of(model) == before
    assert torch.overrides._len_torch_function_stack() == 0
    model.eval()
    with torch.no_grad():  # and it still runs
        model(images(side))


@torch.no_grad()
def test_a_pass_that_raised_inside_attention_leaves_no_trace() -> None:
    model = timm_model("vit_tiny_patch16_224", img_size=48, depth=2)
    attention = model.get_submodule("blocks.1.attn.proj")

    def fail(*_: object) -> None:
        raise ArithmeticError("stop")

    with capture_attention(model) as blocks:
        handle = attention.register_forward_pre_hook(fail)
        with pytest.raises(ArithmeticError):
            model(images(48))
        handle.remove()
        model(images(48))
    assert [block.name for block in blocks] == ["blocks.0.attn", "blocks.1.attn"]


@pytest.mark.parametrize("name", ["resnet18", "mixer_s32_224", "cait_xxs24_224"])
def test_a_model_without_known_attention_is_refused(name: str) -> None:
    model = timm_model(name)
    with pytest.raises(ValueError, match="model: expected attention.*supported: .*swinv2"):
        with capture_attention(model):
            pass
