"""What makes a training step quick changes none of its numbers."""

import itertools
from typing import Any

import pytest
import torch
from small_runs import tiny_vit
from timm.utils.agc import adaptive_clip_grad
from torch import nn

from evitlab.training import heap
from evitlab.training.optimizer import clip_adaptively


def test_adaptive_clipping_is_timms_to_the_bit():
    torch.manual_seed(0)
    shapes = [(8, 3, 3, 3), (6, 4), (5,), (7, 1, 1, 1)]
    ours: list[Any] = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    ours.append(nn.Parameter(torch.zeros(4, 2)))  # a new weight: no norm yet
    ours.append(nn.Parameter(torch.ones(3)))  # has no gradient
    for weight, size in zip(ours[:-1], itertools.cycle((1e-3, 10.0)), strict=False):
        weight.grad = size * torch.randn_like(weight)
    ours[0].grad[0] = 0  # a row without a gradient
    theirs: list[Any] = [nn.Parameter(weight.detach().clone()) for weight in ours]
    for copy, weight in zip(theirs, ours, strict=True):
        copy.grad = None if weight.grad is None else weight.grad.clone()
    before = [weight.grad.clone() for weight in ours[:-1]]
    clip_adaptively(ours, 0.02)
    adaptive_clip_grad(theirs, 0.02)
    for weight, copy in zip(ours[:-1], theirs[:-1], strict=True):
        assert torch.equal(weight.grad, copy.grad)
    assert ours[-1].grad is None
    assert any(not torch.equal(w.grad, b) for w, b in zip(ours, before, strict=False))
    clip_adaptively(ours[-1:], 0.02)  # nothing to clip


class Calls:
    """Stands for the C library."""

    def __init__(self) -> None:
        self.settings: dict[int, int] = {}
        self.trimmed = 0

    def mallopt(self, name: int, value: int) -> int:
        self.settings[name] = value
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.trimmed += 1
        return 1


@pytest.fixture
def library(monkeypatch):
    calls = Calls()
    monkeypatch.setattr(heap, "_glibc", lambda: calls)
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_the_heap_shrinks_again_afterwards_also_after_an_error(library):
    with pytest.raises(RuntimeError), heap.freed_memory_kept() as kept:
        assert kept
        assert library.settings == heap._KEEP and not library.trimmed
        raise RuntimeError
    assert library.settings == heap._USUAL and library.trimmed == 1


def test_what_the_user_set_stays(library, monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    with heap.freed_memory_kept() as kept:
        assert not kept
    assert not library.settings


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap.platform, "libc_ver", lambda: ("", ""))
    with heap.freed_memory_kept() as kept:
        assert not kept


def test_gradients_stay_channels_last():
    """Else BatchNorm's backward pass, many times slower, runs in the other layout."""
    model = tiny_vit().train().to(memory_format=torch.channels_last)
    seen: list[Any] = []
    hooks = [
        module.register_full_backward_hook(lambda module, into, out: seen.append(out[0]))  # type: ignore[index]
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    model(images).square().sum().backward()
    assert len(seen) == len(hooks) > 20
    assert all(grad.is_contiguous(memory_format=torch.channels_last) for grad in seen)
