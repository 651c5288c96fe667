"""What every data set is opened through: labels, class names, and the bytes of each file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

# The names that a split goes by, best first. A set without a validation split gives its test
# split for "val", and the other way round.
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "test", "testing"),
    "test": ("test", "testing", "val", "valid", "validation"),
}
_CANONICAL = {
    alias: split
    for split in ("train", "val", "test")
    for alias in SPLITS[split]
    if split == "train" or alias.startswith(split)
}


class Reader(Protocol):
    """index -> (bytes of the file, its name for error messages).

    Threads may call it at once, and it can be pickled, so that worker processes can read too.
    """

    def __call__(self, index: int, /) -> tuple[bytes, str]: ...

    def for_random_access(self) -> Reader:
        """A reader of the same images that is fast in any order."""
        ...


@dataclass(frozen=True)
class Source:
    """Labelled images, still encoded.

    Attributes:
        title: as shown.
        split: the split that was really found: "train", "val", "test" or "all".
        labels: int64 [N].
        class_names: one per class.
        read: index -> bytes of the file.
        files: names of the images; None: their numbers stand for them.
        labelled: False for images without class folders, whose labels are all 0.
    """

    title: str
    split: str
    labels: np.ndarray
    class_names: tuple[str, ...]
    read: Reader = field(repr=False)
    files: Sequence[str] | None = field(default=None, repr=False)
    labelled: bool = True

    def take(self, indices: np.ndarray) -> Source:
        """The same source, restricted to some images."""
        return replace(
            self,
            labels=self.labels[indices],
            read=TakenReader(self.read, indices),
            files=self.names(indices),
        )

    def names(self, indices: Iterable[int]) -> tuple[str, ...]:
        """What to call images, by their index."""
        return tuple(self.files[index] if self.files else str(index) for index in indices)

    def for_random_access(self) -> Source:
        """The same source, fast in any order."""
        return replace(self, read=self.read.for_random_access())


@dataclass(frozen=True)
class TakenReader:
    """Some of a reader's images, in the order of `indices`."""

    read: Reader
    indices: np.ndarray

    def __call__(self, position: int, /) -> tuple[bytes, str]:
        return self.read(int(self.indices[position]))

    def for_random_access(self) -> Reader:
        return TakenReader(self.read.for_random_access(), self.indices)


def canonical_split(alias: str) -> str | None:
    """ "train", "val" or "test" for the names that these go by, else None."""
    return _CANONICAL.get(alias.lower())


def stratified(labels: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """`count` indices, ascending, with the classes in proportion.

    The images are shuffled within their class and every (N / count)-th is taken, so each class
    gets its share to within one image, also where there are fewer images than classes.

    Args:
        labels: int64 [N].
        count: how many, at most N.
        seed: of the shuffle.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    positions = (2 * np.arange(count) + 1) * len(labels) // max(1, 2 * count)
    return np.sort(by_class[positions].astype(np.int64))


def split_unsplit(source: Source, split: str) -> Source:
    """80 % for "train", the other 20 % for "val" and "test", always the same, by class.

    The only image of a class is for "train". "all" is everything.
    """
    if split == "all":
        return source
    total = len(source.labels)
    held_out = stratified(source.labels, total // 5)
    images = np.bincount(source.labels, minlength=len(source.class_names))
    held_out = held_out[images[source.labels[held_out]] > 1]
    chosen = np.setdiff1d(np.arange(total), held_out) if split == "train" else held_out
    return replace(source.take(chosen), split=split)


def unsplit_indices(count: int, split: str) -> np.ndarray:
    """Which of `count` images without classes are for a split, ascending: 80 % for "train", the
    other 20 % for "val" and "test", always the same; "all" is everything."""
    if split == "all":
        return np.arange(count)
    order = np.random.default_rng(0).permutation(count)
    return np.flatnonzero((order % 5 == 4) == (split != "train"))
