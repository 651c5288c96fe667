"""Similarity between heads: worked by hand, against a plain loop, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evitlab import head_similarity, load_model, save_weights
from evitlab.analysis.capture import capture_attention
from evitlab.analysis.heads import _alike
from evitlab.datasets import Dataset, open_dataset
from evitlab.models.zoo import create_model, normalization
from evitlab.records import BlockHeads, HeadSimilarity


def vit(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    size: dict[str, Any] = {"img_size": 48, "depth": 2, "num_classes": 5}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", **{**size, **changes})
    return model.eval()


def sharpened(model: nn.Module) -> nn.Module:
    """Random weights attend almost evenly; larger ones give the maps a shape."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("qkv.weight"):
                parameter.mul_(8.0)
    return model


def images(side: int = 48, count: int = 4) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def off_diagonal(matrix: Any) -> list[float]:
    return [value for i, row in enumerate(matrix) for j, value in enumerate(row) if i != j]


@pytest.mark.parametrize("per", ["map", "query"])
def test_heads_worked_by_hand(per: str) -> None:
    """Each of 4 queries attends to itself; to itself again; to the next one; to all alike."""
    own, even = torch.eye(4), torch.full((4, 4), 0.25)
    result = _alike(torch.stack([own, own, own.roll(1, 1), even])[None], per)
    similarity, correlation, centred, permuted = result.matrices[:, 0].double()
    half = 0.25 / math.sqrt(1.0 * 0.25)  # of a sharp row and an even one
    torch.testing.assert_close(
        similarity,
        torch.tensor(
            [[1, 1, 0, half], [1, 1, 0, half], [0, 0, 1, half], [half, half, half, 1]]
        ).double(),
    )
    third = -1 / 3  # (0 - 1/4) / (1 - 1/4)
    torch.testing.assert_close(
        correlation,
        torch.tensor([[1, 1, third, 0], [1, 1, third, 0], [third, third, 1, 0], [0] * 4]).double(),
    )
    assert permuted[0, 2].item() == pytest.approx(0.25)  # 1 of 4 shuffled keys is the right one
    assert permuted[0, 3].item() == pytest.approx(half)
    assert permuted[3, 3].item() == pytest.approx(1.0)
    torch.testing.assert_close(result.entropy[0], torch.tensor([0.0, 0.0, 0.0, 1.0]))
    maps = torch.stack([own, own, own.roll(1, 1), even])
    rest = (maps - maps.mean(0)).flatten(1) if per == "map" else (maps - maps.mean(0))[:, 0]
    expected = F.cosine_similarity(rest[:, None], rest[None], dim=-1).double()
    torch.testing.assert_close(centred, expected, rtol=1e-5, atol=1e-6)


def test_two_opposite_heads_are_centred_at_minus_one() -> None:
    own = torch.eye(3)
    _, _, centred, _ = _alike(torch.stack([own, own.roll(1, 1)])[None], "map").matrices[:, 0]
    torch.testing.assert_close(centred, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))


def test_equal_heads_leave_nothing_once_centred() -> None:
    maps = torch.rand(5, 7, 7).softmax(-1)[:, None].expand(5, 3, 7, 7)
    similarity, correlation, centred, _ = _alike(maps, "map").matrices
    torch.testing.assert_close(similarity, torch.ones(5, 3, 3))
    torch.testing.assert_close(correlation, torch.ones(5, 3, 3))
    assert torch.equal(centred, torch.zeros(5, 3, 3))


def test_masked_keys_are_no_keys() -> None:
    """A window of two images side by side: heads that are even over what they see have nothing in
    common but the mask."""
    seen = torch.block_diag(torch.ones(3, 3), torch.ones(5, 5))
    even = seen / seen.sum(-1, keepdim=True)
    result = _alike(even.expand(2, 3, 8, 8), "map")
    similarity, correlation, _, permuted = result.matrices
    torch.testing.assert_close(similarity, torch.ones(2, 3, 3))
    torch.testing.assert_close(permuted, torch.ones(2, 3, 3))
    assert torch.equal(correlation, torch.zeros(2, 3, 3))
    torch.testing.assert_close(result.entropy, torch.ones(2, 3))


def test_shuffled_keys_come_out_as_expected() -> None:
    torch.manual_seed(0)
    maps = torch.randn(1, 2, 60, 60).mul(2).softmax(-1)
    expected = _alike(maps, "map").matrices[3, 0, 0, 1].item()
    found = []
    for _ in range(200):
        order = torch.rand(60, 60).argsort(-1)
        pair = torch.stack([maps[0, 0], maps[0, 1].gather(-1, order)])[None]
        found.append(_alike(pair, "map").matrices[0, 0, 0, 1].item())
    assert sum(found) / 200 == pytest.approx(expected, rel=0.01)


def test_near_uniform_maps_keep_their_correlation() -> None:
    """A deviation of a thousandth, which single precision would lose in 1 - cosine."""
    torch.manual_seed(0)
    deviation = torch.randn(2, 50, 50, dtype=torch.float64)
    deviation -= deviation.mean(-1, keepdim=True)
    maps = (1 + 1e-3 * deviation) / 50
    expected = F.cosine_similarity(deviation[0].flatten(), deviation[1].flatten(), dim=0)
    found = _alike(maps.float()[None], "map").matrices[1, 0, 0, 1]
    assert found.item() == pytest.approx(expected.item(), abs=1e-3)


@pytest.mark.parametrize("per", ["map", "query"])
@pytest.mark.parametrize("which", ["vit", "windows", "cascade"])
@torch.no_grad()
def test_every_block_as_a_plain_loop_has_it(which: str, per: str) -> None:
    torch.manual_seed(0)
    model, side = sharpened(vit()), 48
    if which == "windows":
        model = timm.create_model("swin_tiny_patch4_window7_224", img_size=112).eval()
        model, side = sharpened(model), 112
    if which == "cascade":
        model = create_model("efficientvit_m0", img_size=96, window_size=(3, 3, 3)).eval()
        side = 96
    x = images(side, 3)
    with capture_attention(model) as blocks:
        model(x)
    record = head_similarity(model, x, batch_size=2, per=per)  # type: ignore[arg-type]
    assert record.images == 3 and len(record.blocks) == len(blocks)
    for ours, block in zip(record.blocks, blocks, strict=True):
        maps = block.maps.double()
        flat = maps.flatten(2) if per == "map" else maps
        h = block.num_heads
        for i in range(h):
            for j in range(h):
                cosine = F.cosine_similarity(flat[:, i], flat[:, j], dim=-1).mean().item()
                assert ours.similarity[i][j] == pytest.approx(cosine, abs=2e-6), block.name
        assert (ours.name, ours.kind, ours.windows) == (block.name, block.kind, block.windows)
        assert (ours.queries, ours.keys) == block.maps.shape[2:]
        greatest = [max(row[:i] + row[i + 1 :]) for i, row in enumerate(ours.similarity)]
        assert ours.max_per_head == pytest.approx(greatest)
        assert ours.max_similarity == pytest.approx(sum(greatest) / h)


@torch.no_grad()
def test_a_model_with_equal_heads_has_similarity_one() -> None:
    model = sharpened(vit())
    for block in model.blocks:  # type: ignore[union-attr]
        qkv = block.attn.qkv
        for tensor in (qkv.weight, qkv.bias):
            parts = tensor.unflatten(0, (3, 3, -1))  # Q, K, V by head
            parts[:2] = parts[:2, :1].clone()
    record = head_similarity(model, images())
    for block in record.blocks:
        assert block.max_similarity == pytest.approx(1.0, abs=1e-5)
        assert block.max_correlation == pytest.approx(1.0, abs=1e-5)
        assert block.max_centred == 0.0
        assert block.max_permuted is not None and block.max_permuted < 0.99


def test_batches_of_any_kind_give_the_same() -> None:
    model, x = vit(), images()
    expected = head_similarity(model, x).blocks
    for given in (
        x.split(3),
        [(part, torch.zeros(len(part))) for part in x.split(1)],
        iter(x.split(2)),
    ):
        for a, b in zip(head_similarity(model, given).blocks, expected, strict=True):
            assert off_diagonal(a.similarity) == pytest.approx(off_diagonal(b.similarity), abs=1e-5)
            assert a.image_quartiles == pytest.approx(b.image_quartiles, abs=1e-5)


def test_a_data_set_is_normalised_as_the_model_expects() -> None:
    data = open_dataset("embedded", "val", img_size=48, limit=6)
    model = vit()
    assert isinstance(data, Dataset)
    record = head_similarity(model, data, name="mine", weights="random")
    same = head_similarity(model, data.images)
    mean, std = (torch.tensor(part)[:, None, None] for part in normalization(model))
    by_hand = head_similarity(model, (data.images / 255 - mean) / std)
    for other in (same, by_hand):
        for a, b in zip(record.blocks, other.blocks, strict=True):
            assert off_diagonal(a.similarity) == pytest.approx(off_diagonal(b.similarity), abs=1e-5)
    assert (record.model, record.weights, record.images) == ("mine", "random", 6)
    assert record.environment.dataset == data.title


def test_images_differ_and_the_quartiles_show_it() -> None:
    block = head_similarity(sharpened(vit()), images(count=9)).blocks[0]
    low, middle, high = block.image_quartiles or (0.0, 0.0, 0.0)
    assert 0 < low < middle < high <= 1
    assert block.max_similarity is not None and low < block.max_similarity < high


def test_a_block_with_one_head_has_no_similarity() -> None:
    model = create_model("efficientvit_m0", img_size=64, num_heads=(1, 4, 4)).eval()
    record = head_similarity(model, images(64))
    assert record.blocks[0].max_similarity is None and record.blocks[0].image_quartiles is None
    assert record.blocks[0].max_permuted is None and record.blocks[1].max_similarity is not None
    frame = record.to_frame()
    assert frame["max_similarity"].isna().tolist() == [True] + [False] * 20
    assert record.by_block()["max_similarity"].isna().tolist() == [True] + [False] * 5


def test_the_model_is_as_it_was() -> None:
    model = timm.create_model("levit_128s", num_classes=5).train()
    list(model.modules())[4].eval()
    cached = [vars(m) for m in model.modules() if "attention_bias_cache" in vars(m)]
    for attributes in cached:
        attributes["attention_bias_cache"] = {"mine": torch.zeros(1)}
    before = [module.training for module in model.modules()]
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(ArithmeticError):
        head_similarity(model, (_raise() if i else images(224, 1) for i in range(2)))
    assert [module.training for module in model.modules()] == before
    assert all(torch.equal(statistics[name], b) for name, b in model.named_buffers())
    assert cached and all(list(a["attention_bias_cache"]) == ["mine"] for a in cached)


def _raise() -> Tensor:
    raise ArithmeticError("stop")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (images(count=1), r"images: expected at least 2, got 1"),
        (images(count=0), r"images: expected at least 2, got 0"),
        ([], r"images: expected at least 2, got 0"),
        (images()[0], r"images: expected \[B, 3, H, W\], got \[3, 48, 48\]"),
        ([images()[0]], r"images: expected batches \[B, 3, H, W\], got \[3, 48, 48\]"),
        (["cat.jpg"], r"images: expected batches \[B, 3, H, W\], got str"),
    ],
)
def test_wrong_images_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head_similarity(vit(), given)


def test_wrong_models_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two heads, got one head in each"):
        head_similarity(vit(num_heads=1), images())
    with pytest.raises(ValueError, match="model: expected attention"):
        head_similarity(nn.Linear(2, 2), images())
    with pytest.raises(ValueError, match="per: expected 'map' or 'query', got 'head'"):
        head_similarity(vit(), images(), per="head")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        head_similarity(vit(), images(), batch_size=0)


def test_record_goes_through_json(tmp_path: Path) -> None:
    record = head_similarity(vit(), images())
    assert HeadSimilarity.load(record.save(tmp_path / "heads.json")) == record
    assert len(record.to_frame()) == 6 and len(record.pairs()) == 18
    assert set(record.to_frame()["nearest"]) <= {1, 2, 3}


def test_split_heads_come_back_from_their_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("swin_t_p2", img_size=32, num_classes=5, embed_dim=12, split_heads=True)
    again = load_model(save_weights(model, tmp_path / "split.safetensors"))
    for a, b in zip(
        head_similarity(model, images(32)).blocks, head_similarity(again, images(32)).blocks,
        strict=True,
    ):  # fmt: skip
        assert a.num_heads in (3, 6, 12, 24) and a == b


def test_a_record_of_wrong_shape_is_refused() -> None:
    record = head_similarity(vit(), images())
    block = record.blocks[0]
    wrong = BlockHeads(**{**block.__dict__, "centred": ((1.0,),)})
    with pytest.raises(ValueError, match="centred: expected 3 x 3 in blocks.0.attn"):
        HeadSimilarity(**{**record.__dict__, "blocks": (wrong,)})
