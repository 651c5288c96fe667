"""Attention rollout: worked by hand, and against matrices over all tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from test_attribution import efficientvit, images, swin, vit
from test_capture import state_of
from torch import Tensor, nn

from evitlab import attention_rollout, deploy
from evitlab.analysis.capture import AttentionMaps, capture_attention
from evitlab.analysis.layout import TokenLayout
from evitlab.analysis.rollout import _areas, rollout


def block(number: int, maps: Tensor, layout: TokenLayout | None) -> AttentionMaps:
    """maps [G, h, N, M]"""
    nothing = torch.zeros(0)
    windows = 1 if layout is None else len(layout.index)
    return AttentionMaps(
        number, f"block{number}", "global", windows, maps, nothing, nothing, nothing, nothing,
        layout, layout,
    )  # fmt: skip


def matrix(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows)[None, None]


PAIR = TokenLayout((1, 2), (1, 2))


def test_two_blocks_of_two_tokens_by_hand() -> None:
    """(1/2 A2 + 1/2 I)(1/2 A1 + 1/2 I), its rows' mean."""
    first, second = matrix([[0.5, 0.5], [1.0, 0.0]]), matrix([[0.2, 0.8], [0.0, 1.0]])
    # [[.6, .4], [0, 1]] @ [[.75, .25], [.5, .5]] = [[.65, .35], [.5, .5]]
    found = rollout([block(1, first, PAIR), block(2, second, PAIR)])
    torch.testing.assert_close(found, torch.tensor([[[0.575, 0.425]]]))


def test_the_class_tokens_row_by_hand() -> None:
    """Class token, then two positions; what stays with the class token is left out."""
    layout = TokenLayout((1, 2), (1, 2), prefix=1)
    maps = matrix([[0.2, 0.6, 0.2], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = rollout([block(1, maps, layout)], class_tokens=1)
    torch.testing.assert_close(found, torch.tensor([[[0.75, 0.25]]]))
    both = rollout([block(1, maps, layout), block(2, maps, layout)], class_tokens=1)
    # Row 0 of the square of [[.6, .3, .1], [0, 1, 0], [0, 0, 1]]: [.36, .48, .16]
    torch.testing.assert_close(both, torch.tensor([[[0.75, 0.25]]]))
    spread = rollout([block(1, maps, layout)])  # the grid is read out: its own tokens only
    torch.testing.assert_close(spread, torch.tensor([[[0.5, 0.5]]]))


def test_heads_are_averaged_or_the_largest_taken() -> None:
    maps = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]]])[None]
    mean = rollout([block(1, maps, PAIR)])
    torch.testing.assert_close(mean, torch.tensor([[[0.625, 0.375]]]))  # of .75 and 1/2
    largest = rollout([block(1, maps, PAIR)], heads="max")  # 1 and .5, renormalised: 2/3
    torch.testing.assert_close(largest, torch.tensor([[[7 / 12, 5 / 12]]]))


def test_tokens_that_attend_to_themselves_stay_where_they_are() -> None:
    layout = TokenLayout((2, 2), (2, 2), prefix=1)
    own = torch.eye(5)[None, None]
    assert torch.equal(rollout([block(1, own, layout)] * 3), torch.full((1, 2, 2), 0.25))
    even = torch.full((1, 1, 5, 5), 0.2)
    found = rollout([block(1, even, layout)] * 3, class_tokens=1)
    torch.testing.assert_close(found, torch.full((1, 2, 2), 0.25))


def test_a_window_leaks_to_another_only_by_a_shift() -> None:
    """Everything attends to the window's first token: each window keeps its own half."""
    still, shifted = TokenLayout((2, 4), (2, 2)), TokenLayout((2, 4), (2, 2), shift=(0, 1))
    first = torch.zeros(2, 1, 4, 4)
    first[..., 0] = 1.0
    alone = rollout([block(1, first, still)] * 2)
    assert alone[0, :, :2].sum().item() == pytest.approx(0.5)
    # A shifted window reads position 1 for those of column 2, and position 3 for column 0.
    leaked = rollout([block(1, first, shifted)])
    torch.testing.assert_close(
        leaked, torch.tensor([[[0.0625, 0.3125, 0.0625, 0.3125], [0.0625] * 4]])
    )


def test_padding_gets_nothing() -> None:
    layout = TokenLayout((1, 3), (1, 2))  # the second window's second token is none
    even = torch.full((2, 1, 2, 2), 0.5)  # as where the padding is not masked
    found = rollout([block(1, even, layout)])
    torch.testing.assert_close(found, torch.full((1, 1, 3), 1 / 3))


def test_areas_by_hand() -> None:
    halves, thirds = _areas(2, 4).float(), _areas(2, 3).float()
    assert torch.equal(halves, torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]))
    torch.testing.assert_close(thirds, torch.tensor([[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]]))
    for coarse, fine in ((4, 7), (7, 14), (1, 5), (3, 3)):
        torch.testing.assert_close(_areas(coarse, fine).sum(1), torch.ones(coarse).double())


def test_a_coarser_grid_hands_on_to_the_area_it_covers() -> None:
    fine, coarse = TokenLayout((2, 4), (2, 4)), TokenLayout((1, 2), (1, 2))
    left = matrix([[1.0, 0.0], [1.0, 0.0]])  # 3/4 of the result comes from the left
    blocks = [block(1, torch.eye(8)[None, None], fine), block(2, left, coarse)]
    torch.testing.assert_close(
        rollout(blocks), torch.tensor([[[0.1875, 0.1875, 0.0625, 0.0625]] * 2])
    )


def dense(blocks: list[AttentionMaps], start: Tensor) -> Tensor:
    """The same from matrices over all tokens, token by token: [B, prefix + rows * columns]."""
    B = len(blocks[0].by_image())
    share, grid = start.expand(B, -1).double(), None
    for part in reversed(blocks):
        layout = part.layout
        assert layout is not None
        P, (rows, columns) = layout.prefix, layout.grid
        if grid is not None and grid != layout.grid:
            coarse = share.unflatten(1, grid)
            ratio = rows // grid[0], columns // grid[1]
            coarse = coarse.repeat_interleave(ratio[0], 1).repeat_interleave(ratio[1], 2)
            share = coarse.flatten(1) / (ratio[0] * ratio[1])
        grid = layout.grid
        full = torch.zeros(B, P + rows * columns, P + rows * columns).double()
        maps = part.by_image().double().mean(2)
        for w, places in enumerate(layout.index.tolist()):
            tokens = [*range(P), *(P + place if place >= 0 else -1 for place in places)]
            real = [i for i, token in enumerate(tokens) if token >= 0]
            for i in real:
                row = maps[:, w, i, real]
                full[:, tokens[i], [tokens[j] for j in real]] = row / row.sum(1, keepdim=True)
        torch.testing.assert_close(full.sum(2), torch.ones(full.shape[:2]).double())
        share = torch.einsum("bi,bij->bj", share, (full + torch.eye(full.shape[1])) / 2)
    return share


@pytest.mark.parametrize(
    ("build", "side", "grid"),
    [
        (vit, 64, (4, 4)),
        (swin, 64, (16, 16)),  # shifted in its first stages
        (lambda: efficientvit(window_size=(3, 3, 3)), 64, (8, 8)),  # padded windows
        (lambda: efficientvit(window_size=(3, 3, 3), mask_padding=False), 64, (8, 8)),
    ],
    ids=["vit", "swin", "efficientvit", "padding not masked"],
)
def test_as_matrices_over_all_tokens_have_it(
    build: Callable[[], nn.Module], side: int, grid: tuple[int, int]
) -> None:
    model, x = build(), images(2, side)
    found = attention_rollout(model, x, batch_size=1)
    assert found.shape == (2, *grid)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(2))
    with capture_attention(model) as blocks, torch.no_grad():
        model(x)
    last = blocks[-1].layout
    assert last is not None
    start = torch.full((1, last.grid[0] * last.grid[1]), 1 / (last.grid[0] * last.grid[1]))
    if last.prefix:
        start = F.one_hot(torch.tensor([0]), last.prefix + start.shape[1])
    share = dense(blocks, start)[:, last.prefix :]
    expected = (share / share.sum(1, keepdim=True)).float().unflatten(1, grid)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("levit_128s", (14, 14)),  # attention itself shrinks the grid
        ("tiny_vit_5m_224", (28, 28)),
        ("efficientvit_m0", (14, 14)),  # 14, 7, 4: grids that are no multiples
        ("deit_tiny_distilled_patch16_224", (14, 14)),
        ("swinv2_tiny_window8_256", (64, 64)),
    ],
)
def test_every_family_adds_up_to_one(name: str, grid: tuple[int, int]) -> None:
    model = timm.create_model(name, num_classes=5).eval()
    before = state_of(model)
    found = attention_rollout(model, images(1, 256 if "256" in name else 224))
    assert found.shape == (1, *grid) and found.amin() > 0
    assert found.sum().item() == pytest.approx(1.0, abs=1e-4)
    assert state_of(model) == before


@pytest.mark.parametrize("build", [efficientvit, vit, swin])
def test_the_deployed_form_has_the_same(build: Callable[[], nn.Module]) -> None:
    model, x = build(), images()
    torch.testing.assert_close(
        attention_rollout(deploy(model), x), attention_rollout(model, x), rtol=1e-3, atol=1e-6
    )


class Scores(nn.Module):
    """A head of its own on tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tokens = model
        self.head = nn.Linear(model.num_features, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.tokens(x)[:, 0])
        return scores


def test_a_wrapped_model_is_followed_from_what_it_reads_out() -> None:
    x = images()
    for model in (vit(), vit(global_pool="avg"), swin(), vit("deit_tiny_distilled_patch16_224")):
        expected = attention_rollout(model, x)
        for wrapped in (nn.Sequential(nn.Identity(), model), nn.Sequential(deploy(model))):
            found = attention_rollout(wrapped, x)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    token = attention_rollout(vit(), x)
    assert not torch.allclose(token, attention_rollout(vit(), x, class_tokens=0))


def test_what_a_wrapper_reads_out_itself_has_to_be_said() -> None:
    inner: Any = vit(num_classes=0, global_pool="")
    model, x = Scores(inner), images()
    with pytest.raises(ValueError, match="class_tokens: expected 0 to 1, .* Scores does not say"):
        attention_rollout(model, x)
    found = attention_rollout(model, x, class_tokens=1)
    torch.testing.assert_close(found, attention_rollout(inner, x))
    with pytest.raises(ValueError, match="class_tokens: expected 0 to 1, got 2"):
        attention_rollout(model, x, class_tokens=2)
    with pytest.raises(ValueError, match="class_tokens: expected 0 to 0, got 1"):
        rollout([block(1, torch.eye(2)[None, None], PAIR)], class_tokens=1)


def test_mistakes_are_named() -> None:
    model: Any = vit()
    with pytest.raises(ValueError, match="heads: expected one of mean, max, got 'maximum'"):
        attention_rollout(model, images(), heads="maximum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images: expected at least 1, got none"):
        attention_rollout(model, images()[:0])
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        attention_rollout(model, images(), batch_size=0)
    with pytest.raises(ValueError, match="model: expected attention of a known kind"):
        attention_rollout(timm.create_model("resnet18"), images())
    with pytest.raises(ValueError, match="known grid of tokens, got another in block1"):
        rollout([block(1, torch.eye(3)[None, None], None)])
    with pytest.raises(ValueError, match="blocks: expected at least one, got none"):
        rollout([])
