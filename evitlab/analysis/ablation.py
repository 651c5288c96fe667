"""What a model does with some of its heads turned off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from evitlab.analysis.capture import (
    AttentionMaps,
    HeadOutputs,
    attention_modules,
    capture_attention,
)


@contextmanager
def ablate_heads(model: nn.Module, off: Mapping[int, Iterable[int]]) -> Iterator[None]:
    """Within the context some heads' outputs are zero; the model is as before afterwards.

    Args:
        model: anything that `capture_attention` takes, in the mode it is in.
        off: for each block which heads, both counted from 1.

    Raises:
        ValueError: no such block; in the forward pass, no such head.

    Pitfall: a zero is not what the head gives on average, so the drop holds the loss of that
    average too. In a cascade the next head's input loses the output as well.

    Example:
        >>> model = evitlab.load_model("efficientvit_m0_cifar10")  # recorded weights
        >>> images = torch.rand(2, 3, 32, 32)
        >>> with torch.no_grad(), evitlab.ablate_heads(model, {1: [1, 2]}):
        ...     without = model(images)
        >>> torch.allclose(without, model(images))
        False
    """
    chosen = {block: frozenset(heads) for block, heads in off.items()}
    count = len(attention_modules(model))
    for block in chosen:
        if not 1 <= block <= count:
            raise ValueError(f"off: expected blocks 1 to {count}, got {block}")

    def edit(given: HeadOutputs) -> Tensor:
        heads = chosen.get(given.block, frozenset())
        if heads.isdisjoint(given.heads):
            return given.values
        kept = [float(head not in heads) for head in given.heads]
        return given.values * given.values.new_tensor(kept)[:, None, None]

    def check(block: AttentionMaps) -> None:
        for head in chosen.get(block.block, ()):
            if not 1 <= head <= block.num_heads:
                raise ValueError(
                    f"off: expected heads 1 to {block.num_heads} of block {block.block}, got {head}"
                )

    with capture_attention(model, each=check, edit=edit):
        yield
