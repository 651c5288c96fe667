"""Bytes and multiply-accumulates of single operators, worked by hand. float32: 4 bytes each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from evitlab.analysis.traffic import bare_name, call_traffic, tensor_bytes


class Recorder(TorchDispatchMode):
    """(operator, bytes, MACs) of every call, views included."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        traffic = call_traffic(func, args, kwargs or {}, result)
        self.calls.append((bare_name(func._schema.name), traffic.bytes, traffic.macs))
        return result


def calls_of(run: Callable[[], object]) -> list[tuple[str, int, int]]:
    recorder = Recorder()
    with torch.no_grad(), recorder:
        run()
    return recorder.calls


def cost(run: Callable[[], object]) -> tuple[int, int]:
    """Bytes and MACs of all calls together."""
    calls = calls_of(run)
    return sum(call[1] for call in calls), sum(call[2] for call in calls)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape)


a, b, row = zeros(2, 3), zeros(2, 3), zeros(3)
image = zeros(2, 4, 6, 6)  # 288 elements

BY_HAND: dict[str, tuple[Callable[[], object], int, int]] = {
    # two inputs of 6 elements read, 6 written
    "add": (lambda: a + b, 4 * (6 + 6 + 6), 0),
    "broadcast add reads the row once": (lambda: a + row, 4 * (6 + 3 + 6), 0),
    "an expanded row has 3 elements": (lambda: row.expand(2, 3) + a, 4 * (3 + 6 + 6), 0),
    "the same tensor twice is read once": (lambda: a * a, 4 * (6 + 6), 0),
    "in place reads and writes": (lambda: zeros(2, 3).add_(b), 4 * (6 + 6 + 6) + 4 * 6, 0),
    "relu": (lambda: a.relu(), 4 * (6 + 6), 0),
    "out= is written only": (lambda: torch.add(a, b, out=zeros(2, 3)), 4 * 18 + 4 * 6, 0),
    "where: one byte for each condition": (
        lambda: torch.where(torch.zeros(2, 3, dtype=torch.bool), a, b),
        4 * (6 + 6 + 6) + 6 + 6,  # and the mask that was drawn
        0,
    ),
    "copy_ reads the source, writes the target": (
        lambda: torch.empty(2, 3).copy_(row),
        4 * (3 + 6),
        0,
    ),
    "fill_ only writes": (lambda: torch.empty(2, 3).fill_(1.0), 4 * 6, 0),
    "zeros_like only writes": (lambda: torch.zeros_like(a), 4 * 6, 0),
    "empty does nothing": (lambda: torch.empty(9, 9), 0, 0),
    "views move nothing": (
        lambda: a.t().reshape(3, 2).unsqueeze(0).expand(5, 3, 2)[..., 0].permute(1, 0).detach(),
        0,
        0,
    ),
    "split and chunk are views": (lambda: (image.split(2, 1), image.chunk(2)), 0, 0),
    "contiguous where it is already": (lambda: a.contiguous(), 0, 0),
    "contiguous of a transpose copies": (lambda: a.t().contiguous(), 4 * (6 + 6), 0),
    "reshape that must copy": (lambda: a.t().reshape(6), 4 * (6 + 6), 0),
    "expanded, then copied": (lambda: row.expand(2, 3).contiguous(), 4 * (3 + 6), 0),
    "to another type": (lambda: a.half(), 4 * 6 + 2 * 6, 0),
    "to the same type": (lambda: a.float(), 0, 0),
    "cat": (lambda: torch.cat([a, b, a]), 4 * (6 + 6 + 18), 0),  # `a` fits the cache: once
    "pad": (lambda: F.pad(a, (1, 1)), 4 * (6 + 10), 0),
    "softmax": (lambda: a.softmax(-1), 4 * (6 + 6), 0),
    "mean": (lambda: image.mean((2, 3)), 4 * (288 + 8), 0),
    "embedding takes 4 rows of 3; int64 indices": (
        lambda: F.embedding(torch.zeros(4, dtype=torch.int64), zeros(100, 3)),
        4 * 12 + 8 * 4 + 4 * 12 + 8 * 4 + 4 * 300,  # and both arguments were filled with zeros
        0,
    ),
    # 2 x 3 by 3 x 5: 30 MACs
    "mm": (lambda: a @ zeros(3, 5), 4 * (6 + 15 + 10) + 4 * 15, 30),
    "linear with bias": (
        lambda: F.linear(a, b, zeros(2)),
        4 * (6 + 6 + 2 + 4) + 4 * 2,
        2 * 3 * 2,
    ),
    "bmm": (lambda: torch.bmm(zeros(7, 2, 3), zeros(7, 3, 5)), 8 * (42 + 105) + 4 * 70, 7 * 30),
    "baddbmm reads its summand": (
        lambda: torch.baddbmm(zeros(2, 5), zeros(7, 2, 3), zeros(7, 3, 5)),
        8 * (10 + 42 + 105) + 4 * 70,
        7 * 30,
    ),
    "baddbmm scaled by 0 does not": (
        lambda: torch.baddbmm(zeros(2, 5), zeros(7, 2, 3), zeros(7, 3, 5), beta=0),
        8 * (42 + 105) + 4 * 10 + 4 * 70,
        7 * 30,
    ),
    "matrix by vector": (lambda: a @ row, 4 * (6 + 3 + 2), 6),
}

# operator alone, its arguments made outside
image_weight, image_bias = zeros(8, 4, 3, 3), zeros(8)
depthwise, pointwise, transposed = zeros(4, 1, 3, 3), zeros(5, 4, 1, 1), zeros(4, 5, 2, 2)
q, k, v = zeros(2, 3, 10, 4), zeros(2, 3, 7, 4), zeros(2, 3, 7, 4)
bias = zeros(10, 7)
norm, gain, shift = torch.nn.BatchNorm2d(4).eval(), zeros(6), zeros(6)
WITH_WEIGHTS: dict[str, tuple[Callable[[], object], int, int]] = {
    # 2 images, 8 channels, 6 x 6 positions, each 4 * 3 * 3 MACs
    "convolution": (
        lambda: F.conv2d(image, image_weight, image_bias, padding=1),
        4 * (288 + 288 + 8 + 576),
        2 * 8 * 36 * 36,
    ),
    "strided": (
        lambda: F.conv2d(image, image_weight, stride=2, padding=1),
        4 * (288 + 288 + 2 * 8 * 9),
        2 * 8 * 9 * 36,
    ),
    "depthwise": (
        lambda: F.conv2d(image, depthwise, padding=1, groups=4),
        4 * (288 + 36 + 288),
        2 * 4 * 36 * 9,
    ),
    "pointwise": (lambda: F.conv2d(image, pointwise), 4 * (288 + 20 + 360), 2 * 36 * 20),
    # each of the 2 * 4 * 36 inputs meets 5 * 2 * 2 weights
    "transposed": (
        lambda: F.conv_transpose2d(image, transposed, stride=2),
        4 * (288 + 80 + 2 * 5 * 144),
        288 * 20,
    ),
    "batch norm in evaluation": (lambda: norm(image), 4 * (288 + 4 * 4 + 288), 0),
    # 72 means and 72 deviations are kept
    "layer norm over the last axis": (
        lambda: F.layer_norm(image, (6,), gain, shift),
        4 * (288 + 6 + 6 + 288 + 48 + 48),
        0,
    ),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_traffic_by_hand(case: str) -> None:
    run, bytes_, macs = BY_HAND[case]
    assert cost(run) == (bytes_, macs)


@pytest.mark.parametrize("case", WITH_WEIGHTS)
def test_traffic_of_layers_by_hand(case: str) -> None:
    run, bytes_, macs = WITH_WEIGHTS[case]
    assert cost(run) == (bytes_, macs)


def test_fused_attention_never_writes_its_map() -> None:
    """QKᵀ and AV: 2 * 3 * 10 * 7 * (4 + 4) MACs; Q, K, V, bias in, output and log-sums out."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        calls = calls_of(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=bias))
    (name, bytes_, macs), *rest = [call for call in calls if call[1]]
    assert name == "scaled_dot_product_flash_attention_for_cpu" and not rest
    assert macs == 2 * 3 * 10 * 7 * 8
    log_sums = 2 * 3 * 10
    assert bytes_ == 4 * (q.numel() + k.numel() + v.numel() + 70 + q.numel() + log_sums)


def test_unfused_attention_has_as_many_macs_and_moves_the_map() -> None:
    with sdpa_kernel(SDPBackend.MATH):
        bytes_, macs = cost(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=bias))
    assert macs == 2 * 3 * 10 * 7 * 8
    attention_map = 4 * 2 * 3 * 10 * 7
    assert bytes_ > 4 * (q.numel() + k.numel() + v.numel() + q.numel()) + 4 * attention_map


def test_the_fast_path_of_torch_s_own_attention_module() -> None:
    """[2, 5, 8]: four 8 x 8 projections of each token, then QKᵀ and AV."""
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    tokens = zeros(2, 5, 8)
    macs = 2 * 5 * 4 * 64 + 2 * 5 * 5 * 8 * 2
    calls = calls_of(lambda: attention(tokens, tokens, tokens, need_weights=False))
    assert [call[0] for call in calls if call[2]] == ["native_multi_head_attention"]
    assert sum(call[2] for call in calls) == macs
    attention.train()  # separate operators there
    _, plain = cost(lambda: attention(tokens, tokens, tokens, need_weights=False))
    assert plain == macs


def test_strided_slices_count_their_own_elements() -> None:
    assert tensor_bytes(zeros(4, 6)[::2, :3]) == 4 * 2 * 3
    assert tensor_bytes(zeros(1, 6).expand(4, 6)) == 4 * 6
    assert tensor_bytes(zeros(0, 3)) == 0
    assert tensor_bytes(torch.zeros((), dtype=torch.float64)) == 8


@pytest.mark.parametrize(
    ("name", "bare"),
    [("aten::add_", "add"), ("aten::_softmax", "softmax"), ("mkldnn::_linear", "linear")],
)
def test_bare_names(name: str, bare: str) -> None:
    assert bare_name(name) == bare
