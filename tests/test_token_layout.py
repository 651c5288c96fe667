"""Tokens stand where they stood; heads are turned off and on again; probes see feature maps."""

from __future__ import annotations

import pytest
import torch
from randomised import randomise
from test_capture import cases, images, ours, timm_model
from torch import Tensor, nn

from evitlab.analysis.ablation import ablate_heads
from evitlab.analysis.capture import HeadOutputs, capture_attention
from evitlab.analysis.layout import TokenLayout, global_layout, grid_of
from evitlab.analysis.probe import watch_layer
from evitlab.models.deploy import deploy


def test_windows_by_hand() -> None:
    layout = TokenLayout(grid=(2, 4), window=(2, 2))
    assert layout.windows == (1, 2)
    assert layout.index.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert layout.find(1, 2) == (1, 2)


def test_a_shift_wraps_around() -> None:
    layout = TokenLayout(grid=(2, 4), window=(2, 2), shift=(0, 1))
    assert layout.index.tolist() == [[1, 2, 5, 6], [3, 0, 7, 4]]
    assert layout.find(0, 0) == (1, 1)


def test_padding_is_no_position() -> None:
    layout = TokenLayout(grid=(3, 3), window=(2, 2))
    assert layout.index.tolist() == [[0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]]


@pytest.mark.parametrize(
    "layout",
    [
        TokenLayout((6, 4), (3, 2)),
        TokenLayout((6, 4), (4, 3)),
        TokenLayout((8, 8), (4, 4), shift=(2, 2)),
        TokenLayout((7, 5), (4, 4), shift=(2, 1)),
        TokenLayout((3, 5), (3, 5), prefix=2),
    ],
    ids=str,
)
def test_each_position_is_found_where_the_index_has_it(layout: TokenLayout) -> None:
    rows, columns = layout.grid
    for row in range(rows):
        for column in range(columns):
            window, token = layout.find(row, column)
            assert layout.index[window, token - layout.prefix] == row * columns + column
    places = torch.arange(rows * columns).view(rows, columns)
    values = torch.cat([torch.full((len(layout.index), layout.prefix), -9), layout.index], 1)
    assert torch.equal(layout.on_grid(values), places)
    with pytest.raises(ValueError, match=rf"got \({rows}, 0\)"):
        layout.find(rows, 0)


@pytest.mark.parametrize(
    ("tokens", "img_size", "grid"),
    [(196, (224, 224), (14, 14)), (8, (32, 64), (2, 4)), (197, (224, 224), None),
     (35, (80, 112), (5, 7)), (1, (32, 32), (1, 1)), (49, (32, 64), None)],
)  # fmt: skip
def test_grids(tokens: int, img_size: tuple[int, int], grid: tuple[int, int] | None) -> None:
    assert grid_of(tokens, img_size) == grid


def test_the_class_token_stands_before_the_grid() -> None:
    found = global_layout(197, (224, 224), None)
    assert found == TokenLayout((14, 14), (14, 14), prefix=1)
    assert global_layout(197, (224, 224), 0) is None
    assert global_layout(197, (), 1) is None


@cases
@torch.no_grad()
def test_every_block_has_its_layout(
    build: object, side: int, count: int, kind: str, windows: int
) -> None:
    assert callable(build)
    with capture_attention(model := build()) as blocks:
        model(images(side, 1))
    for block in blocks:
        for layout, tokens in ((block.layout, -1), (block.query_layout, -2)):
            assert layout is not None, block.name
            assert layout.index.shape == (block.windows, block.maps.shape[tokens] - layout.prefix)
            assert sorted(set(layout.index.flatten().tolist()) - {-1}) == list(
                range(layout.grid[0] * layout.grid[1])
            )


@torch.no_grad()
def test_a_change_shows_at_its_own_place() -> None:
    """The keys that change with one patch of the image stand at that patch, also when shifted."""
    model, x = timm_model("swin_tiny_patch4_window7_224", img_size=112), images(112, 1)
    other = x.clone()
    other[:, :, 40:44, 60:64] += 1.0  # token (10, 15) of 28 x 28
    with capture_attention(model) as blocks:
        model(x)
        before = blocks[0]
        model(other)
        after = blocks[0]
    layout = before.layout
    assert layout is not None
    changed = after.keys - before.keys  # [w, h, M, d]
    where = layout.on_grid(changed.abs().sum((1, 3)))
    assert where.nonzero().tolist() == [[10, 15]]


FAMILIES = {
    "ours": lambda: randomise(ours(window_size=(3, 3, 3))),
    "ours, deployed": lambda: deploy(randomise(ours(window_size=(3, 3, 3)))),
    "vit": lambda: timm_model("vit_tiny_patch16_224", img_size=96),
    "swin": lambda: timm_model("swin_tiny_patch4_window7_224", img_size=112),
}
families = pytest.mark.parametrize("family", FAMILIES)


def side_of(family: str) -> int:
    return 112 if family == "swin" else 96


@families
@torch.no_grad()
def test_a_head_turned_off_gives_zeros(family: str) -> None:
    model, x = FAMILIES[family](), images(side_of(family))
    plain = model(x)
    with ablate_heads(model, {2: [1, 3]}):
        off = model(x)
        with capture_attention(model) as blocks:
            torch.testing.assert_close(model(x), off, rtol=1e-4, atol=1e-5)
    outputs = blocks[1].outputs
    assert not outputs[:, [0, 2]].any() and outputs[:, 1].any()
    assert not torch.equal(off, plain)
    torch.testing.assert_close(model(x), plain, rtol=0, atol=0)  # on again


@torch.no_grad()
def test_a_cascade_loses_what_the_head_passes_on() -> None:
    """Head 2 reads head 1's output: turned off, its own map changes; the other way round not."""
    model, x = randomise(ours()), images(96)
    with capture_attention(model) as blocks:
        model(x)
        before = blocks[0].maps
        with ablate_heads(model, {1: [1]}):
            model(x)
            first = blocks[0].maps
        with ablate_heads(model, {1: [2]}):
            model(x)
            second = blocks[0].maps
    assert torch.equal(before[:, 0], first[:, 0]) and not torch.equal(before[:, 1], first[:, 1])
    assert torch.equal(before[:, :2], second[:, :2])


@families
def test_an_edit_that_gives_all_back_changes_nothing(family: str) -> None:
    model, x = FAMILIES[family](), images(side_of(family))
    seen: list[tuple[int, int, int]] = []

    def edit(given: HeadOutputs) -> Tensor:
        seen.extend((given.block, head, given.windows) for head in given.heads)
        return given.values

    with torch.no_grad(), capture_attention(model) as blocks:
        plain = model(x)
    with torch.no_grad(), capture_attention(model, edit=edit):
        assert torch.equal(model(x), plain)
    expected = [(b.block, head, b.windows) for b in blocks for head in range(1, b.num_heads + 1)]
    assert seen == expected


def test_wrong_edits_and_heads() -> None:
    model, x = ours(), images(96)
    with pytest.raises(ValueError, match="off: expected blocks 1 to 6, got 7"):
        with ablate_heads(model, {7: [1]}):
            pass
    with pytest.raises(ValueError, match="off: expected heads 1 to 4 of block 2, got 5"):
        with ablate_heads(model, {2: [5]}):
            model(x)
    with pytest.raises(ValueError, match="edit: expected heads' outputs"):
        with capture_attention(model, edit=lambda given: given.values[:1]):
            model(x)
    model(x)


LAYERS = {"ours": ("stages.2", (192, 2, 2)), "vit": ("blocks.11.norm1", (192, 6, 6)),
          "swin": ("layers.3", (768, 4, 4))}  # fmt: skip


@pytest.mark.parametrize("family", LAYERS)
def test_a_probe_sees_a_feature_map(family: str) -> None:
    model, x = FAMILIES[family](), images(side_of(family))
    name, shape = LAYERS[family]
    plain, seen = model(x), []
    with watch_layer(model, name) as probe:
        handle = probe.register_forward_hook(lambda _m, _i, output: seen.append(output.shape))
        assert torch.equal(model(x), plain)
        handle.remove()
        with pytest.raises(ValueError, match="layer: expected a feature map or tokens"):
            with watch_layer(model, "head"):
                model(x)
    assert seen == [(2, *shape)]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_probe_of_no_layer() -> None:
    with pytest.raises(ValueError, match="got 'stages.9'; did you mean 'stages"):
        with watch_layer(ours(), "stages.9"):
            pass


def test_a_probe_takes_nothing_but_maps() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(ValueError, match=r"from '1', got \[1, 3\]"):
        with watch_layer(model, "1"):
            model(torch.zeros(1, 3, 2, 2))
