"""Classes of a data set beside those of a model: matched by name, never by number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from evitlab.datasets.memory import Dataset
from evitlab.datasets.streaming import StreamingDataset

_LISTED = 5


def match_classes(
    data: Dataset | StreamingDataset, class_names: Iterable[str]
) -> Dataset | StreamingDataset:
    """The same images, labelled by a model's class numbers.

    Args:
        data: its classes may be fewer than the model's, and in another order.
        class_names: the model's, one per output.

    Returns:
        `data` with `class_names`; unlabelled images keep their labels of 0.

    Raises:
        ValueError: images of classes that the model does not have, or two classes of one name.
    """
    wanted = tuple(class_names)
    if data.class_names == wanted:
        return data
    if not data.labelled:
        return _relabelled(data, torch.zeros_like(data.labels), wanted)
    present = data.labels.unique().tolist()
    unknown = [name for name in (data.class_names[k] for k in present) if name not in wanted]
    if unknown:
        found = {data.class_names[k] for k in present}
        absent = [name for name in wanted if name not in found]
        without = f"; it has no images of {listed(absent)}" if absent else ""
        raise ValueError(
            f"data: expected only the {len(wanted)} classes of the weights "
            f"({listed(wanted)}), got {len(unknown)} of other names ({listed(unknown)}) in "
            f"{data.title}{without}"
        )
    for where, names in (("the weights", wanted), (data.title, data.class_names)):
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"data: expected classes of different names, as those of the weights are in "
                f"another order; got {sorted(twice)[0]!r} twice in {where}"
            )
    numbers = {name: number for number, name in enumerate(wanted)}
    # -1 stands for names without images, which may be unknown.
    table = torch.tensor([numbers.get(name, -1) for name in data.class_names])
    return _relabelled(data, table[data.labels], wanted)


def without_images(data: Dataset | StreamingDataset) -> list[str]:
    """The classes that no image is of."""
    counts = torch.bincount(data.labels, minlength=data.num_classes).tolist()
    return [name for name, count in zip(data.class_names, counts, strict=True) if not count]


def listed(names: Iterable[str]) -> str:
    """The first names of many, for one line."""
    few = list(names)
    return ", ".join(few[:_LISTED]) + ", …" * (len(few) > _LISTED)


def _relabelled(
    data: Dataset | StreamingDataset, labels: torch.Tensor, class_names: tuple[str, ...]
) -> Dataset | StreamingDataset:
    if isinstance(data, Dataset):
        return replace(data, labels=labels, class_names=class_names)
    source = replace(data.source, labels=labels.numpy(), class_names=class_names)
    return replace(data, source=source)
