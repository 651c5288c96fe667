"""How alike the heads of each attention block attend.

Shape legend: B images, w windows of an image, G = B * w, h heads, N queries, M keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from evitlab.analysis.capture import AttentionMaps, capture_attention
from evitlab.analysis.conditions import in_eval_mode
from evitlab.datasets import AnyDataset, Dataset, StreamingDataset
from evitlab.models.zoo import normalization
from evitlab.records import BlockHeads, HeadSimilarity, environment_card
from evitlab.training.augment import normalize
from evitlab.training.evaluation import checked_device

MASKED = 1e-30  # a weight up to this is a masked key's, also where the mask is Swin's -100
Images = AnyDataset | Tensor | Iterable[Any]


@torch.no_grad()
def head_similarity(
    model: nn.Module,
    images: Images,
    *,
    per: Literal["map", "query"] = "map",
    batch_size: int = 32,
    device: str | torch.device | None = None,
    name: str | None = None,
    weights: str = "as given",
) -> HeadSimilarity:
    """How alike the heads attend, block by block: each head's largest cosine to another head.

    Args:
        model: anything that `capture_attention` takes; it runs in evaluation mode, and everything
            comes back as it was.
        images: a data set, [B, 3, H, W], or batches of such, alone or first in a tuple with their
            labels. uint8 is normalised as the model expects; floats are taken as they are.
        per: "map" compares whole maps of an image, or of a window of it, [N, M] flattened;
            "query" compares them query by query and averages, so that no sharp row outweighs the
            others.
        batch_size: images per forward pass, for a data set or one tensor.
        device: None is where the model is.
        name: the model's, in the record; None takes its timm-style card's, or its class's.
        weights: where they come from, as shown.

    Returns:
        Cosines averaged over images and windows, then each head's maximum over the others.

    Raises:
        ValueError: no known attention, or no block with two heads; fewer than two images, images
            of another shape, or `per` unknown.

    Paper: Section 2.2, Fig. 4: "the maximum cosine similarity of each head and the remaining heads
    within each block". What was flattened, and which images, is not said there.
    Pitfall: see `HeadSimilarity`. Where images do not fill their windows, padded queries' rows
    count too.

    Example:
        >>> model = evitlab.create_model("efficientvit_m0_p4", img_size=32, num_classes=10).eval()
        >>> found = evitlab.head_similarity(model, torch.rand(4, 3, 32, 32))
        >>> len(found.to_frame())  # a row for each head: 6 blocks with 4 heads each
        24
    """
    if per not in ("map", "query"):
        raise ValueError(f"per: expected 'map' or 'query', got {per!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    home = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    place = home if device is None else checked_device(device)
    sums: dict[int, _Sums] = {}
    count, like = 0, None

    def each(block: AttentionMaps) -> None:
        total = sums.setdefault(block.block, _Sums(block))
        total.add(block.windows, _alike(block.maps, per))

    with in_eval_mode(model, place, home), capture_attention(model, each=each):
        for batch in batches_of(model, images, batch_size, title="heads"):
            model(batch.to(place))
            count, like = count + len(batch), batch
    if count < 2 or like is None:
        raise ValueError(f"images: expected at least 2, got {count}")
    blocks = tuple(total.block(count) for total in sums.values())
    if all(block.num_heads < 2 for block in blocks):
        raise ValueError("model: expected a block with at least two heads, got one head in each")
    card = getattr(model, "pretrained_cfg", None) or {}
    return HeadSimilarity(
        model=name or card.get("architecture") or type(model).__name__,
        weights=weights,
        images=count,
        per=per,
        blocks=blocks,
        environment=environment_card(
            device=place,
            precision=str(like.dtype).removeprefix("torch."),
            batch_size=batch_size,
            dataset=getattr(images, "title", None),
        ),
    )


def compare_heads(maps: Tensor) -> tuple[Tensor, Tensor]:
    """How alike the heads of one captured block are on these images, and how sharp.

    Args:
        maps: [G, h, N, M], as `AttentionMaps.maps`.

    Returns:
        Cosine similarity of whole maps, [h, h], and entropy, [h], 1 = uniform; means over G.
    """
    matrices, entropy = _alike(maps, "map")
    return matrices[0].mean(0), entropy.mean(0)


class _Alike(NamedTuple):
    """What is compared of one block and batch; float32."""

    matrices: Tensor  # [4, G, h, h]: similarity, correlation, centred, permuted
    entropy: Tensor  # [G, h]


def _alike(maps: Tensor, per: str) -> _Alike:
    """All that is compared, from one product of the maps less the uniform map, [G, h, N, M].

    Less the uniform map first: near-uniform maps differ in digits that their own products round
    away. A query's weights sum to 1, so a map's product with the uniform one is N / M, which is
    also what to expect of two maps once one has its keys shuffled query by query. Masked keys are
    no keys: M is then each query's own.
    """
    maps = maps.float()
    G, h, N, M = maps.shape
    even = _uniform(maps)
    weight = even.amax(-1).transpose(1, 2)  # [G, N, 1] or [1, 1, 1]
    rest = maps - even
    if per == "map":
        rest, uniform = rest.flatten(2), weight.expand(G, N, 1).sum(1)  # [G, h, N * M], [G, 1]
    else:
        rest, uniform = rest.transpose(1, 2).flatten(0, 1), weight.expand(G, N, 1).flatten(0, 1)
    products = rest @ rest.transpose(1, 2)
    squares = products.diagonal(dim1=1, dim2=2)
    lengths = (squares + uniform).sqrt()
    lengths = lengths[:, :, None] * lengths[:, None]
    centre = torch.eye(h, device=maps.device) - 1 / h
    uniform = uniform[..., None]
    rounding = 1e-12 * uniform
    compared = torch.stack(
        [
            ((products + uniform) / lengths).clamp(max=1.0),
            _cosines(products, rounding),
            _cosines(centre @ products @ centre, rounding + 1e-6 * squares.amax(1)[:, None, None]),
            uniform / lengths,
        ]
    )
    compared = compared.view(4, G, -1, h, h).mean(2)
    highest = -weight.clamp(max=0.5).log().mean(1)  # [G or 1, 1]
    entropy = torch.special.entr(maps).sum(-1).mean(-1) / highest
    return _Alike(compared, entropy)


def _uniform(maps: Tensor) -> Tensor:
    """The map that weighs all keys alike, [1, 1, 1, 1]; where some are masked, [G, 1, N, M].

    Shifted windows and padding mask keys, for all heads the same ones.
    """
    if maps.amin() > MASKED:
        return maps.new_full((1, 1, 1, 1), 1 / maps.shape[-1])
    seen = maps.amax(1, keepdim=True) > MASKED
    return seen / seen.sum(-1, keepdim=True)


def _cosines(products: Tensor, rounding: Tensor) -> Tensor:
    """From products [G, h, h]; 0 where a squared length is nothing but rounding."""
    squares = products.diagonal(dim1=1, dim2=2)
    scales = torch.where(squares > rounding[..., 0], squares.clamp(min=1e-30).rsqrt(), 0.0)
    return (products * scales[:, :, None] * scales[:, None]).clamp(-1.0, 1.0)


class _Sums:
    """A block's sums over images, in double precision on the CPU; none of its maps is kept."""

    def __init__(self, block: AttentionMaps) -> None:
        _, h, N, M = block.maps.shape
        self.about: dict[str, Any] = {
            "block": block.block, "name": block.name, "kind": block.kind, "num_heads": h,
            "windows": block.windows, "queries": N, "keys": M,
        }  # fmt: skip
        self.matrices = torch.zeros(4, h, h, dtype=torch.float64)
        self.entropy = torch.zeros(h, dtype=torch.float64)
        self.by_image: list[Tensor] = []  # similarity of each image, [B, h, h]

    def add(self, windows: int, alike: _Alike) -> None:
        images = alike.matrices.unflatten(1, (-1, windows)).mean(2)  # [4, B, h, h]
        self.matrices += images.double().sum(1).cpu()
        self.entropy += alike.entropy.unflatten(0, (-1, windows)).mean(1).double().sum(0).cpu()
        self.by_image.append(images[0].cpu())

    def block(self, count: int) -> BlockHeads:
        similarity, correlation, centred, permuted = (self.matrices / count).tolist()
        return BlockHeads(
            **self.about,
            similarity=_matrix(similarity),
            correlation=_matrix(correlation),
            centred=_matrix(centred),
            permuted=_matrix(permuted),
            entropy=_rounded((self.entropy / count).tolist()),
            image_quartiles=self._quartiles(),
        )

    def _quartiles(self) -> tuple[float, float, float] | None:
        """Of the images' similarity of each head to the head that is most like it on average."""
        h = len(self.entropy)
        if h < 2:
            return None
        others = self.matrices[0].masked_fill(torch.eye(h, dtype=torch.bool), -1.0)
        images = torch.cat(self.by_image)[:, torch.arange(h), others.argmax(1)].mean(1)
        low, middle, high = images.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        return round(low, 6), round(middle, 6), round(high, 6)


def _rounded(values: list[float]) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in values)


def _matrix(rows: list[list[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(_rounded(row) for row in rows)


def batches_of(
    model: nn.Module, images: Images, batch_size: int, *, title: str
) -> Iterator[Tensor]:
    """Float images [B, 3, H, W], as the model takes them; `title` is the progress bar's.

    Raises ValueError where images have another shape.
    """
    mean, std = normalization(model)
    total: int | None = None
    batches: Iterable[Any]
    if isinstance(images, (Dataset, StreamingDataset)):
        total = math.ceil(len(images) / batch_size)
        batches = images.batches(torch.arange(len(images)), batch_size)
    elif isinstance(images, Tensor):
        if images.ndim != 4:
            raise ValueError(f"images: expected [B, 3, H, W], got {list(images.shape)}")
        total = math.ceil(len(images) / batch_size)
        batches = images.split(batch_size) if len(images) else ()
    else:
        batches = images
    shown = tqdm(batches, total=total, desc=title, unit="batch", leave=False, delay=2)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    for batch in shown:
        pixels = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(pixels, Tensor) or pixels.ndim != 4:
            got = list(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
            raise ValueError(f"images: expected batches [B, 3, H, W], got {got}")
        yield (pixels if pixels.is_floating_point() else normalize(pixels, mean, std)).to(dtype)
