"""The counts and the trace of a model are what ran, and leave nothing behind."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from randomised import random_model
from torch import Tensor, nn

from evitlab import count_macs, count_params, create_model, trace_block
from evitlab.records import BlockNode, BlockTrace

TINY: dict[str, Any] = dict(img_size=32, num_classes=10, depth=(1, 1, 1))
NAME = "efficientvit_m1_p4"


class Sized(nn.Sequential):
    """Layers that say which images they take."""

    def __init__(self, *layers: nn.Module, size: tuple[int, ...]) -> None:
        super().__init__(*layers)
        self.pretrained_cfg = {"input_size": size}


class SelfAttention(nn.Module):
    """Images as tokens: [B, 4, H, W] -> 2 heads of width 2 over H * W tokens."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        q = k = v = x.flatten(2).unflatten(1, (2, 2)).transpose(2, 3)  # [B, 2, N, 2]
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v)
        return (q @ k.transpose(2, 3)).softmax(-1) @ v


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("a forward pass that fails")


@pytest.mark.parametrize(
    ("layers", "size", "macs"),
    [
        # 4 x 4 positions, 8 channels out, kernels of 3 * 3 * 3
        ([nn.Conv2d(3, 8, 3, stride=2, padding=1)], (3, 8, 8), 16 * 8 * 27),
        # one kernel of 3 x 3 for each of 6 channels
        ([nn.Conv2d(6, 6, 3, padding=1, groups=6)], (6, 5, 7), 35 * 6 * 9),
        # in 2 groups each of 8 outputs sees 2 of 4 inputs
        ([nn.Conv2d(4, 8, 1, groups=2, bias=False)], (4, 3, 3), 9 * 8 * 2),
        ([nn.Flatten(), nn.Linear(48, 10)], (3, 4, 4), 480),
        ([nn.Flatten(), nn.Linear(48, 10), nn.ReLU(), nn.Linear(10, 5)], (3, 4, 4), 530),
        # 2 heads, 15 tokens: 15 * 15 products of width 2, and as many again for V
        ([SelfAttention(fused=False)], (4, 3, 5), 2 * 2 * 225 * 2),
        ([SelfAttention(fused=True)], (4, 3, 5), 2 * 2 * 225 * 2),
        ([nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2)], (3, 4, 4), 0),
    ],
    ids=["conv", "depthwise", "grouped", "linear", "mlp", "attention", "fused attention", "none"],
)
def test_macs_by_hand(layers: list[nn.Module], size: tuple[int, ...], macs: int) -> None:
    assert count_macs(Sized(*layers, size=size)) == macs


def test_macs_at_another_size() -> None:
    conv = nn.Conv2d(3, 2, 1)
    assert count_macs(conv) == 224 * 224 * 6  # no size of its own
    assert count_macs(conv, 10) == count_macs(conv, (5, 20)) == 600
    model: Any = create_model(NAME, **TINY)
    pooled = [m.weight for name, m in model.named_modules() if name.endswith((".fc1", ".fc2"))]
    once = sum(weight.numel() for weight in (*pooled, model.head.linear.weight))
    assert count_macs(model, (64, 32)) - once == 2 * (count_macs(model) - once)


def test_params_by_hand() -> None:
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8, bias=False)
    assert count_params(nn.Sequential(*layers)) == (8 * 27 + 8) + 16 + 72


@pytest.mark.parametrize("fused", [True, False])
def test_macs_do_not_depend_on_fused_attention(fused: bool) -> None:
    """A ViT of two blocks: width 192, 3 heads, 196 patches of 16 x 16 and a class token."""
    model: Any = timm.create_model("deit_tiny_patch16_224", depth=2)
    for block in model.blocks:
        assert hasattr(block.attn, "fused_attn")
        block.attn.fused_attn = fused
    width, tokens = 192, 197
    linear = tokens * width * width * (3 + 1 + 4 + 4)
    products = 2 * tokens * tokens * width
    by_hand = 2 * (linear + products) + 196 * 768 * width + width * 1000
    assert count_macs(model) == by_hand


def state(model: nn.Module) -> dict[str, Any]:
    """All that a count or a trace could leave behind."""
    modules = dict(model.named_modules())
    return {
        "modes": {name: module.training for name, module in modules.items()},
        "hooks": {
            (name, key): len(value)
            for name, module in modules.items()
            for key, value in vars(module).items()
            if "hooks" in key and value
        },
        "attributes": {name: set(vars(module)) for name, module in modules.items()},
        "tensors": {k: (v._version, v.device, v.sum().item()) for k, v in state_of(model).items()},
        "gradients": {name: p.grad is None for name, p in model.named_parameters()},
        "random": torch.get_rng_state().tolist(),
        "grad mode": torch.is_grad_enabled(),
        "attention kernels": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
    }


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    before = state(model)
    yield
    after = state(model)
    for key in before:
        assert after[key] == before[key], f"{key} left changed"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("look", [count_macs, trace_block])
def test_nothing_is_left_behind(look: Any, training: bool) -> None:
    model = random_model(NAME, **TINY).train(training)
    model.stages[1].eval()  # a mode of its own, as when a part is frozen
    with untouched(model):
        look(model)


@pytest.mark.parametrize("look", [count_macs, trace_block])
def test_nothing_is_left_behind_by_a_failure(look: Any) -> None:
    model = random_model(NAME, **TINY)
    model.stages[2].blocks[0].ffn1.m = Fails()
    with untouched(model), pytest.raises(RuntimeError, match="a forward pass that fails"):
        look(model)


@pytest.mark.parametrize("look", [count_macs, trace_block])
def test_precision_is_the_models(look: Any) -> None:
    model = random_model(NAME, **TINY)
    assert look(model) == look(model.bfloat16())


TRACED: list[tuple[str, dict[str, Any], int | tuple[int, int]]] = [
    ("efficientvit_m0", {}, 0),  # 224 px: four windows in the first stage
    (NAME, TINY, (40, 24)),  # padded windows
    (NAME, TINY, 128),  # a map of 1,024 positions, where norms are folded on the way
    (NAME, {**TINY, "split": False, "cascade": False}, 0),
    (NAME, {**TINY, "ffns": (0, 1), "norm": "layer"}, 0),
    (NAME, {**TINY, "ffns": (2, 2), "token_interaction": False}, 0),
    (NAME, {**TINY, "value_ratio": 0.6, "key_dim": (4, 8, 24), "num_classes": 0}, 0),
]
ROW = ("stem", "stage", "subsample", "norm", "pool", "classifier")


def parts(trace: BlockTrace) -> tuple[list[BlockNode], list[BlockNode], list[BlockNode]]:
    """Nodes of the model's row, of the block's column and of its attention."""
    row = [node for node in trace.nodes if node.kind in ROW]
    rest = [node for node in trace.nodes if node.kind not in ROW]
    ends = [i for i, node in enumerate(rest) if node.kind == "add" and node.head is None]
    return row, rest[: ends[-1] + 1], rest[ends[-1] + 1 :]


@pytest.mark.parametrize(("name", "options", "size"), TRACED, ids=str)
def test_trace_adds_up(name: str, options: dict[str, Any], size: Any) -> None:
    model = random_model(name, **options)
    trace = trace_block(model, "stages.0.blocks.0", img_size=size)
    row, column, attention = parts(trace)
    assert sum(node.macs for node in row) == count_macs(model, size or None)
    assert sum(node.params for node in row) == count_params(model)
    for before, after in itertools.pairwise(row):
        assert before.out_shape == after.in_shape, (before.name, after.name)
    first = next(node for node in row if node.kind == "stage")  # one block
    assert sum(node.macs for node in column) == first.macs
    assert sum(node.params for node in column) == first.params
    whole = next(node for node in column if node.kind == "attention")
    assert sum(node.macs for node in attention) == whole.macs
    assert sum(node.params for node in attention) == whole.params
    modules = dict(model.named_modules())
    for node in trace.nodes:
        if "." in node.name:
            assert node.name in modules
        assert all(side > 0 for side in (*node.in_shape, *node.out_shape)), node


def test_trace_of_the_sandwich() -> None:
    trace = trace_block(random_model("efficientvit_m0"), "stages.1.blocks.1")
    row, column, attention = parts(trace)
    assert (trace.model, trace.block) == ("efficientvit_m0", "stages.1.blocks.1")
    assert [(node.kind, node.out_shape) for node in row] == [
        ("stem", (64, 14, 14)),
        ("stage", (64, 14, 14)),
        ("subsample", (128, 7, 7)),
        ("stage", (128, 7, 7)),
        ("subsample", (192, 4, 4)),
        ("stage", (192, 4, 4)),
        ("pool", (192,)),
        ("classifier", (1000,)),
    ]
    names = [node.name.removeprefix("stages.1.blocks.1.") for node in column]
    expected = [(f"{part}.m", part) for part in ("dw0", "ffn0", "mixer", "dw1", "ffn1")]
    assert names == [name for both in expected for name in both]
    assert all(node.out_shape == (128, 7, 7) for node in column)
    heads = [[node.kind for node in attention if node.head == j] for j in range(4)]
    assert heads == [["qkv", "dwconv", "head"], *[["add", "qkv", "dwconv", "head"]] * 3]
    around = [node.kind for node in attention if node.head is None]
    assert around == ["split", "concat", "act", "proj"]
    by_kind = {node.kind: node for node in attention}
    assert by_kind["split"].in_shape == (128, 7, 7) and by_kind["split"].out_shape == (32, 7, 7)
    assert by_kind["qkv"].macs == 49 * 32 * (16 + 16 + 32)
    assert by_kind["dwconv"].macs == 49 * 16 * 25
    assert by_kind["head"].macs == 49 * 49 * (16 + 32) and by_kind["head"].params == 49
    assert by_kind["proj"].macs == 49 * 128 * 128


def kinds_in_attention(**options: Any) -> list[tuple[str, int | None]]:
    model = random_model("efficientvit_m0_p4", **TINY, **options)
    return [(node.kind, node.head) for node in parts(trace_block(model))[2]]


def test_trace_shows_the_cascade_only_where_it_ran() -> None:
    assert [head for kind, head in kinds_in_attention() if kind == "add"] == [1, 2, 3]
    without = kinds_in_attention(cascade=False)
    assert "add" not in dict(without) and "split" in dict(without)


def test_trace_shows_the_split_only_where_it_ran() -> None:
    kinds = [kind for kind, _ in kinds_in_attention(split=False, cascade=False)]
    assert "split" not in kinds and "add" not in kinds and kinds.count("head") == 4


def test_cascade_that_adds_nothing_is_not_shown() -> None:
    """The trace is of what ran: a head whose values are all zero feeds nothing into the next."""
    model = random_model("efficientvit_m0_p4", **TINY)
    norm = model.stages[0].blocks[0].mixer.m.attn.qkvs[0].bn
    with torch.no_grad():
        norm.weight[32:], norm.bias[32:] = 0, 0  # V follows 16 channels each of Q and K
    adds = [node.head for node in parts(trace_block(model))[2] if node.kind == "add"]
    assert adds == [2, 3]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("stages.0.blocks.1", "expected one of stages.0.blocks.0, .*got 'stages.0.blocks.1'"),
        ("stages.3.blocks.0", "got 'stages.3.blocks.0'"),
        ("", "got ''"),
    ],
)
def test_unknown_block(block: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"block: .*{message}"):
        trace_block(create_model(NAME, **TINY), block)


def test_other_models_are_not_traced() -> None:
    with pytest.raises(ValueError, match="model: expected an EfficientViT, got Linear"):
        trace_block(nn.Linear(1, 1))


def test_trace_runs_at_the_size_asked_for() -> None:
    model = random_model(NAME, **TINY)
    shapes = {size: trace_block(model, img_size=size).nodes[0].out_shape[1:] for size in (0, 64)}
    assert shapes == {0: (8, 8), 64: (16, 16)}
    assert trace_block(model, img_size=(64, 32)).nodes[0].out_shape[1:] == (16, 8)
