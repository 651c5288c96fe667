"""A model under study: what it computes on one picture, captured once and then only read.

Shape legend: w windows, h heads, N queries, M keys, K classes, H x W pixels.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evitlab.analysis.ablation import ablate_heads
from evitlab.analysis.attribution import attribute
from evitlab.analysis.capture import AttentionMaps, attention_modules, capture_attention
from evitlab.analysis.conditions import in_eval_mode
from evitlab.analysis.explaining import as_the_model_takes
from evitlab.analysis.heads import MASKED, compare_heads
from evitlab.analysis.layout import TokenLayout
from evitlab.analysis.rollout import attention_rollout
from evitlab.analysis.subjects import class_names_of, img_size_of, open_model
from evitlab.explorer.pictures import Picture
from evitlab.models.deployed_transformer import within
from evitlab.models.zoo import model_name

_KEPT = 12  # results that stay in memory: maps of a picture (with some heads off), heat-maps
_STEPS = 32  # of integrated gradients: seconds, not the minute that completeness may take
Off = frozenset[tuple[int, int]]  # (block, head), both counted from 1
Floats = NDArray[np.floating[Any]]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Block:
    """One attention block on one picture."""

    number: int
    name: str
    kind: str
    maps: Tensor  # [w, h, N, M]
    keys: TokenLayout
    queries: TokenLayout
    size: tuple[int, int]  # H, W
    mask: NDArray[np.bool_] | None  # [H, W], the object

    @property
    def num_heads(self) -> int:
        return self.maps.shape[1]

    @cached_property
    def compared(self) -> tuple[Floats, Floats]:
        """Similarity of the heads to each other [h, h], and the entropy of each [h]."""
        similarity, entropy = compare_heads(self.maps)
        return similarity.numpy(), entropy.numpy()

    @cached_property
    def distance(self) -> Floats:
        """[h]: mean distance from query to key, weighted by attention; 1 = the image's diagonal."""
        queries, keys = (_in_windows(_centres(x, self.size), x) for x in (self.queries, self.keys))
        gaps = torch.cdist(queries, keys)[:, None] / math.hypot(*self.size)
        # Of what goes to patches: a class token is nowhere, and neither is padding.
        return self._mean_over_queries(gaps, of=(self.keys.index >= 0)[:, None, None].float())

    @cached_property
    def on_object(self) -> Floats | None:
        """[h]: share of the attention that falls on the object; None where it is not known."""
        if self.mask is None:
            return None
        cover = torch.from_numpy(self.mask).float()[None, None]
        cover = torch.nn.functional.adaptive_avg_pool2d(cover, self.keys.grid).flatten()[:, None]
        on = _in_windows(cover, self.keys)[:, None, None, :, 0]
        return self._mean_over_queries(on, of=torch.ones(()))

    def _mean_over_queries(self, values: Tensor, *, of: Tensor) -> Floats:
        """[h]: values [w, 1, N or 1, n] weighted by the attention of the patches' queries, as a
        share of all attention or of what falls on some keys (`of`, 0 or 1, the same shape)."""
        maps = self.maps[:, :, self.queries.prefix :]  # [w, h, N, M]
        real = (self.queries.index >= 0)[:, None]  # [w, 1, N]
        patches = maps[..., self.keys.prefix :]
        total = maps.sum(-1) if of.ndim == 0 else (patches * of).sum(-1)
        if of.ndim:
            patches = patches * of
        means = (patches * values).sum(-1) / total.clamp(min=MASKED)
        result: Floats = ((means * real).sum((0, 2)) / real.sum()).numpy()
        return result

    def seen_from(self, query: tuple[int, int] | None) -> tuple[Floats, Floats | None]:
        """Each head's weights for one query, 1 = uniform over the keys that it sees.

        Args:
            query: (row, column) of the queries' grid; None: the class token.

        Returns:
            [h, rows, columns] of the keys' grid, NaN where the query sees nothing; and what each
            head puts on the class token, [h], None where there is none.
        """
        window, token = (0, 0) if query is None else self.queries.find(*query)
        row = self.maps[window, :, token]  # [h, M]
        visible = (row > MASKED).any(0)
        visible[self.keys.prefix :] &= self.keys.index[window] >= 0
        relative = torch.where(visible, row * visible.sum(), torch.nan)
        everywhere = row.new_full((len(row), len(self.keys.index), row.shape[1]), torch.nan)
        everywhere[:, window] = relative
        on_class = relative[:, 0].numpy() if self.keys.prefix else None
        return self.keys.on_grid(everywhere).numpy(), on_class


@dataclass(frozen=True, eq=False)
class Look:
    """One picture through one model, with some heads off."""

    pixels: NDArray[np.uint8]  # [H, W, 3], as the model sees them
    mask: NDArray[np.bool_] | None  # [H, W]
    blocks: tuple[Block, ...]
    probabilities: Floats  # [K]


class Subject:
    """A model in evaluation mode with what is needed to look at pictures through it.

    Args:
        model: a module, or a name that `open_model` knows.
        name: how it is called on screen; None takes its own.
        weights: of a name, as `open_model` takes them.

    Raises:
        ValueError: no attention that can be captured, no such model, or weights that do not fit.
        FileNotFoundError: no such file, or weights that cannot be fetched.
    """

    def __init__(
        self, model: nn.Module | str, *, name: str | None = None, weights: str | None = None
    ) -> None:
        if isinstance(model, nn.Module):
            if weights is not None:
                raise ValueError("weights: expected none beside a model that has its own")
            self.model, self.weights = model, "weights as given"
        elif isinstance(model, str):
            self.model, self.weights = open_model(model, weights=weights)
        else:
            raise ValueError(
                f"model: expected a module or a name, got {type(model).__name__}"
            )
        attention_modules(self.model)  # its error lists what is supported
        self.name = name or (model if isinstance(model, str) else model_name(self.model))
        self.size = img_size_of(self.model)
        self.class_names = class_names_of(self.model)
        self.has_class_token = getattr(within(self.model), "cls_token", None) is not None
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()

    def look(self, picture: Picture, off: Off = frozenset()) -> Look:
        """Run the model and keep what its attention did.

        Raises:
            ValueError: the picture cannot be read, or where tokens stand is not known.
        """
        return self._once((picture, "look", off), lambda: self._look(picture, off))

    def heat(self, picture: Picture, method: str, off: Off = frozenset()) -> Floats:
        """Which pixels count, [rows, columns] of 0 to 1: a rollout or an attribution of the
        predicted class (integrated gradients without their signs)."""
        return self._once((picture, method, off), lambda: self._heat(picture, method, off))

    def importance(self, picture: Picture, off: Off = frozenset()) -> Floats:
        """[blocks, most heads]: how much probability the predicted class loses with one more head
        off; NaN where there is no such head."""

        def compute() -> Floats:
            with ablate_heads(self.model, by_block(off)):
                found = attribute(self.model, self._tensor(picture), method="head_ablation")[0]
            result: Floats = found.cpu().numpy()
            return result

        return self._once((picture, "importance", off), compute)

    def class_name(self, number: int) -> str:
        known = 0 <= number < len(self.class_names)
        return self.class_names[number] if known else f"class {number}"

    def label(self, picture: Picture) -> str | None:
        """The true class in words."""
        known = picture.label
        return known if known is None or isinstance(known, str) else self.class_name(known)

    def _once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The result of an earlier call, or a new one; the oldest are forgotten."""
        if key not in self._kept:
            self._kept[key] = compute()
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        result: T = self._kept[key]
        return result

    def _tensor(self, picture: Picture) -> Tensor:
        """uint8 [1, 3, H, W]"""
        return torch.from_numpy(picture.fitted(self.size).copy()).permute(2, 0, 1)[None]

    @torch.no_grad()
    def _look(self, picture: Picture, off: Off) -> Look:
        pixels = self._tensor(picture)
        mask = picture.fitted_mask(self.size)
        blocks: list[Block] = []

        def each(found: AttentionMaps) -> None:
            if found.layout is None or found.query_layout is None:
                raise ValueError(f"model: expected tokens on a grid in {found.name}, found none")
            maps = found.by_image()[0].float().cpu()
            blocks.append(
                Block(
                    number=found.block, name=found.name, kind=found.kind, maps=maps,
                    keys=found.layout, queries=found.query_layout, size=self.size, mask=mask,
                )
            )  # fmt: skip

        with in_eval_mode(self.model), ablate_heads(self.model, by_block(off)):
            with capture_attention(self.model, each=each):
                logits = self.model(as_the_model_takes(self.model, pixels))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
            got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"model: expected logits [1, classes] from it, got {got}")
        probabilities = logits.float().softmax(-1)[0].cpu().numpy()
        return Look(pixels[0].permute(1, 2, 0).numpy(), mask, tuple(blocks), probabilities)

    def _heat(self, picture: Picture, method: str, off: Off) -> Floats:
        image, model = self._tensor(picture), self.model
        with ablate_heads(model, by_block(off)):
            if method == "rollout":
                found = attention_rollout(model, image)[0]
            elif method == "grad_cam":
                found = attribute(model, image, method="grad_cam")[0]
            else:
                signed = attribute(model, image, method="integrated_gradients", steps=_STEPS)[0]
                found = signed.abs()
                found = found / found.quantile(0.99).clamp(min=1e-12)  # few stand out far
        found = found.detach().float().cpu()
        result: Floats = (found / found.max().clamp(min=1e-12)).clamp(0, 1).numpy()
        return result


def by_block(off: Off) -> dict[int, list[int]]:
    """{block: heads}, as `ablate_heads` takes them."""
    return {block: sorted(h for b, h in off if b == block) for block, _ in sorted(off)}


def _centres(layout: TokenLayout, size: tuple[int, int]) -> Tensor:
    """[rows * columns, 2]: where tokens stand, in pixels of an image of a size."""
    counted = zip(layout.grid, size, strict=True)
    rows, columns = ((torch.arange(count) + 0.5) / count * side for count, side in counted)
    return torch.cartesian_prod(rows, columns).view(-1, 2)


def _in_windows(values: Tensor, layout: TokenLayout) -> Tensor:
    """Values of the grid's positions [rows * columns, c] -> [w, n, c]; padding has 0."""
    padded = torch.cat([values, values.new_zeros(1, values.shape[1])])
    return padded[layout.index]
