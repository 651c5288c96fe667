"""Attention rollout: where the information that a model reads out comes from, by its attention.

Each block mixes tokens by its attention, and by the residual connection keeps them: half and half.
Multiplied from the last block to the first, that says what share of the result each position of
the first block's grid has. Only the row that is read out is followed, so that windows stay
windows and no matrix over all tokens is needed.

Shape legend: B images, w windows of an image, G = B * w, h heads, N queries, M keys; `rows` and
`columns` of a block's grid of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from evitlab.analysis.capture import AttentionMaps, capture_attention
from evitlab.analysis.conditions import in_eval_mode
from evitlab.analysis.explaining import class_tokens_read
from evitlab.analysis.heads import Images, batches_of
from evitlab.analysis.layout import TokenLayout
from evitlab.wording import check_choice

Heads = Literal["mean", "max"]


@torch.no_grad()
def attention_rollout(
    model: nn.Module,
    images: Images,
    *,
    heads: Heads = "mean",
    class_tokens: int | None = None,
    batch_size: int = 8,
) -> Tensor:
    """What share each position of the first block's grid has in what the model reads out.

    Args:
        model: anything that `capture_attention` takes; it runs in evaluation mode and is as before
            afterwards.
        images: a data set, [B, 3, H, W], or batches of such. uint8 is normalised as the model
            expects; floats are taken as they are.
        heads: their "mean", or their largest weight, renormalised.
        class_tokens: so many first tokens are read out; 0: the mean of the last grid's; None: as
            the model says.
        batch_size: images per forward pass.

    Returns:
        [B, rows, columns], each image's shares adding up to 1. Followed from the class token where
        the model reads one out, from the mean of the last block's grid otherwise.

    Raises:
        ValueError: no known attention, no images, an attention whose tokens' places are not known,
            an unknown name, or a model with class tokens that does not say whether it reads them.

    Paper: Abnar and Zuidema 2020, Section 3: 0.5 A + 0.5 I. Windows, shifts, and grids that shrink
    from stage to stage are not in it: a token of a coarser grid is the mean of the area it covers.
    Pitfall: what happens between attention blocks is not seen: convolutions and token merging carry
    information too, in EfficientViT most of it. And values are taken to be alike: a token may get
    much attention and pass nothing on.
    """
    check_choice("heads", heads, get_args(Heads))
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    steps: list[_Step] = []

    def each(block: AttentionMaps) -> None:
        steps.append(_step(block, heads))

    place = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    read = class_tokens_read(model) if class_tokens is None else class_tokens
    found = []
    with in_eval_mode(model), capture_attention(model, each=each):
        for batch in batches_of(model, images, batch_size, title="rollout"):
            steps.clear()
            model(batch.to(place))
            if read is None and steps[-1].queries.prefix:
                raise ValueError(
                    f"class_tokens: expected 0 to {steps[-1].queries.prefix}, got None, but "
                    f"{type(model).__name__} does not say how many it reads out"
                )
            found.append(_rolled(steps, read or 0))
    if not found:
        raise ValueError("images: expected at least 1, got none")
    return torch.cat(found)


def rollout(
    blocks: Sequence[AttentionMaps], *, heads: Heads = "mean", class_tokens: int = 0
) -> Tensor:
    """The same from what `capture_attention` yielded for one forward pass.

    Args:
        class_tokens: so many first tokens are read out; 0: the mean of the last grid's.

    Raises:
        ValueError: no blocks, one whose tokens' places are not known, or fewer class tokens.
    """
    check_choice("heads", heads, get_args(Heads))
    if not blocks:
        raise ValueError("blocks: expected at least one, got none")
    return _rolled([_step(block, heads) for block in blocks], class_tokens)


class _Step(NamedTuple):
    """A block as one mixing of its tokens."""

    attention: Tensor  # [B, w, N, M], of real queries and keys each row sums to 1
    queries: TokenLayout
    keys: TokenLayout


def _step(block: AttentionMaps, heads: Heads) -> _Step:
    if block.layout is None or block.query_layout is None:
        raise ValueError(
            f"model: expected attention over a known grid of tokens, got another in {block.name}"
        )
    maps = block.by_image().float()  # [B, w, h, N, M]
    attention = maps.mean(2) if heads == "mean" else maps.amax(2)
    seen = _real(block.layout).to(attention.device)  # [w, M]
    attention = attention * seen[:, None]
    attention = attention / attention.sum(-1, keepdim=True).clamp(min=1e-30)
    return _Step(attention, block.query_layout, block.layout)


def _real(layout: TokenLayout) -> Tensor:
    """bool [w, M]: which tokens are no padding."""
    index = layout.index
    return torch.cat([torch.ones(len(index), layout.prefix, dtype=torch.bool), index >= 0], 1)


def _rolled(steps: Sequence[_Step], class_tokens: int) -> Tensor:
    """[B, rows, columns], from the last block to the first."""
    last = steps[-1]
    B = len(last.attention)
    grid, tokens = last.queries.grid, last.queries.prefix
    if not 0 <= class_tokens <= tokens:
        raise ValueError(f"class_tokens: expected 0 to {tokens}, got {class_tokens}")
    share = last.attention.new_zeros(B, tokens + grid[0] * grid[1])
    if class_tokens:
        share[:, :class_tokens] = 1 / class_tokens
    else:
        share[:, tokens:] = 1 / (grid[0] * grid[1])
    for step in reversed(steps):
        share = _regrid(share, step.queries.prefix, grid, step.queries.grid)
        mixed = _mixed(share, step)
        # LeViT's attention that shrinks the grid has no residual connection around it.
        share = (share + mixed) / 2 if step.queries == step.keys else mixed
        grid = step.keys.grid
    on_grid = share[:, steps[0].keys.prefix :]
    on_grid = on_grid / on_grid.sum(1, keepdim=True)  # without what stays with the class token
    return on_grid.unflatten(1, grid)


def _mixed(share: Tensor, step: _Step) -> Tensor:
    """Shares [B, prefix + positions] of the queries' grid, handed on to the keys'."""
    rows, columns = step.keys.grid
    given = torch.einsum("bwn,bwnm->bwm", _by_window(share, step.queries), step.attention)
    mixed = share.new_zeros(len(share), step.keys.prefix + rows * columns + 1)  # the last: padding
    mixed.index_add_(1, _places(step.keys).flatten().to(share.device), given.flatten(1))
    return mixed[:, :-1]


def _by_window(share: Tensor, layout: TokenLayout) -> Tensor:
    """[B, w, N]; padding has none."""
    padded = torch.cat([share, share.new_zeros(len(share), 1)], 1)
    return padded[:, _places(layout).to(share.device)]


def _places(layout: TokenLayout) -> Tensor:
    """int64 [w, M]: each token's position in [prefix + grid]; the one behind the last: padding."""
    index = layout.index
    last = layout.prefix + layout.grid[0] * layout.grid[1]
    on_grid = torch.where(index < 0, last, index + layout.prefix)
    return torch.cat([torch.arange(layout.prefix).expand(len(index), -1), on_grid], 1)


def _regrid(share: Tensor, prefix: int, coarse: tuple[int, int], fine: tuple[int, int]) -> Tensor:
    """Shares of a grid, handed on to the grid of the stage before: each to the area it covers."""
    if coarse == fine:
        return share
    on_grid = share[:, prefix:].unflatten(1, coarse)
    down, across = (_areas(*sides).to(share) for sides in zip(coarse, fine, strict=True))
    return torch.cat([share[:, :prefix], (down.T @ on_grid @ across).flatten(1)], 1)


@lru_cache(maxsize=64)
def _areas(coarse: int, fine: int) -> Tensor:
    """[coarse, fine]: the share of each fine cell in the mean over a coarse one; rows sum to 1."""
    edges = torch.arange(coarse + 1, dtype=torch.float64) * fine / coarse
    cells = torch.arange(fine, dtype=torch.float64)
    upper = torch.minimum(edges[1:, None], cells + 1)
    lower = torch.maximum(edges[:-1, None], cells)
    return (upper - lower).clamp(min=0) * coarse / fine
