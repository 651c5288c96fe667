"""DeiT and Swin subnetworks: timm's own where they are the original, and what each option does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small_runs import one_line
from timm.layers import Mlp
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from evitlab import count_macs, create_model, load_model, save_weights
from evitlab.models.baselines import BASELINES, MixedBlock, SplitQKV
from evitlab.studies.attention_share import SHARES

ORIGINALS = {"deit_t": "deit_tiny_patch16_224", "swin_t": "swin_tiny_patch4_window7_224"}
WIDTHS = {"deit_t_p4": 12, "swin_t_p2": 6}
BLOCKS = {"deit_t_p4": [12], "swin_t_p2": [2, 2, 6, 2]}


def small(name: str, **overrides: Any) -> Any:
    """A subnetwork for 32 pixels and 5 classes, narrow, evaluating."""
    torch.manual_seed(0)
    options = {"img_size": 32, "num_classes": 5, "embed_dim": WIDTHS[name], **overrides}
    return create_model(name, **options).eval()


def attentions(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, (Attention, WindowAttention))]


def pictures(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_original_is_timms(name: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(ORIGINALS[name]).eval()
    ours = create_model(name, weights=theirs.state_dict()).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x)), name
    assert count_macs(ours) == count_macs(theirs)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", WIDTHS)
def test_layers_are_attention_in_the_share_asked_for(name: str, share: float) -> None:
    model = small(name, attention_share=share)
    assert len(attentions(model)) == round(24 * share)
    assert sum(isinstance(m, Mlp) for m in model.modules()) == 24 - round(24 * share)
    logits = model(pictures())
    assert logits.shape == (2, 5) and logits.isfinite().all()
    logits.square().sum().backward()
    for key, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), key


@pytest.mark.parametrize("name", WIDTHS)
def test_blocks_of_the_usual_kind_are_timms(name: str) -> None:
    """Each block that keeps attention, then FFN, is untouched; the others are our own."""
    model = small(name, attention_share=0.2)
    found = [m for m in model.modules() if isinstance(m, (Block, SwinTransformerBlock, MixedBlock))]
    kinds = [not isinstance(block, MixedBlock) for block in found]
    assert kinds == [first for first, _ in model.config.layers]
    # Five of twelve, one in each fifth of the depth.
    assert [i for i, kept in enumerate(kinds) if kept] == [1, 3, 6, 8, 10]


@pytest.mark.parametrize("name", WIDTHS)
def test_more_attention_than_blocks_goes_into_second_places(name: str) -> None:
    layers = small(name, attention_share=1.0).config.layers
    assert layers == ((True, True),) * 12
    layers = small(name, attention_share=0.8).config.layers
    assert all(first for first, _ in layers)
    assert sum(second for _, second in layers) == 7


def test_swins_windows_shift_in_every_other_layer() -> None:
    model = small("swin_t_p2", attention_share=1.0)
    shifts = [
        [layer.shift_size for block in stage.blocks for layer in (block.layer1, block.layer2)]
        for stage in model.layers
    ]
    assert shifts[0] == [(0, 0), (2, 2), (2, 2), (0, 0)]  # as in blocks 0 and 1, then their FFNs'
    assert shifts[2] == [(0, 0)] * 12  # one window is the whole map


@pytest.mark.parametrize("name", WIDTHS)
def test_a_split_head_sees_its_own_channels_alone(name: str) -> None:
    """Its Q, K and V do not change with other heads' channels, and the rest is timm's."""
    attention = attentions(small(name, split_heads=True))[0]
    split: SplitQKV = attention.qkv
    heads, dim = split.weight.shape[:2]
    x = torch.randn(7, heads * dim, requires_grad=True)
    out = split(x).unflatten(-1, (3, heads, dim))
    for head in range(heads):
        (gradient,) = torch.autograd.grad(out[:, :, head].sum(), x, retain_graph=True)
        seen = gradient.unflatten(-1, (heads, dim)).abs().sum((0, 2))
        assert seen[head] > 0
        assert seen.sum() == seen[head], f"head {head} sees another's channels"


def test_split_heads_are_a_block_diagonal_projection() -> None:
    torch.manual_seed(0)
    split = SplitQKV(6, 2)
    nn.init.normal_(split.bias)
    whole = nn.Linear(6, 18)
    with torch.no_grad():
        whole.weight.zero_()
        for head in range(2):
            rows = whole.weight.unflatten(0, (3, 2, 3))[:, head]  # [3 of Q, K, V; d, C]
            block = split.weight[head].T.unflatten(0, (3, 3))
            rows[:, :, 3 * head : 3 * head + 3] = block
        whole.bias.copy_(split.bias.unflatten(1, (3, 3)).transpose(0, 1).flatten())
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(split(x), whole(x))


@pytest.mark.parametrize("name", WIDTHS)
def test_saved_and_rebuilt(name: str, tmp_path: Path) -> None:
    model = small(name, attention_share=0.6, split_heads=True)
    save_weights(model, tmp_path / "model.safetensors", class_names=tuple("abcde"))
    again = load_model(tmp_path / "model.safetensors")
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again(pictures()), model(pictures()))


def test_swin_takes_widths_that_leave_a_rest() -> None:
    assert small("swin_t_p2", embed_dim=10)(pictures()).shape == (2, 5)  # heads of 3 channels


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        ("deit_t_p4", {"embed_dim": 20}, "embed_dim: expected a multiple of the 3 heads, got 20"),
        ("swin_t_p2", {"embed_dim": 20, "split_heads": True}, "multiple of the 3 heads, got 20"),
        ("swin_t_p2", {"embed_dim": 2}, "embed_dim: expected a multiple of the 3 heads, got 2"),
        ("deit_t_p4", {"attention_share": 1.2}, "attention_share: expected 0 to 1, got 1.2"),
        ("deit_t_p4", {"attention_share": 0, "class_token": True}, "class_token: expected False"),
        ("deit_t_p4", {"depth": (6, 6)}, "depth: expected a tuple of 1 integers"),
        ("swin_t_p2", {"num_heads": (3, 6, 12, 0)}, "num_heads: expected a tuple of 4 integers"),
        ("deit_t_p4", {"embed_dim": 0}, "embed_dim: expected a positive integer, got 0"),
        ("deit_t_p4", {"mlp_ratio": 0.0}, "mlp_ratio: expected more than 0, got 0.0"),
        ("deit_t_p4", {"drop_path_rate": 1.0}, "drop_path_rate: expected 0 to below 1, got 1.0"),
        ("deit_t_p4", {"atention_share": 0.2}, "did you mean 'attention_share'?"),
        ("swin_t_p2", {"img_size": (32, 1)}, "img_size: expected a tuple of 2 integers of at"),
    ],
)
def test_wrong_values_are_named(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        small(name, **overrides)
    assert message in one_line(raised)


def test_every_baseline_keeps_at_least_64_tokens() -> None:
    for name, config in BASELINES.items():
        side = 224 if name in ORIGINALS else 32
        assert (side // config.patch_size) ** 2 >= 64, name
