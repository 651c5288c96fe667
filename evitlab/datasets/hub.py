"""The named data sets: where each lies on the Hugging Face Hub, and on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from evitlab.datasets.decoding import jpeg_quality
from evitlab.datasets.parquet import open_parquet, split_files
from evitlab.datasets.sources import Source

_HUB_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class NamedSet:
    """One data set of the Hugging Face Hub.

    Attributes:
        title: as shown in records and figures.
        repo: id on the Hub.
        num_classes: how many classes it has.
        label: the label column, where there are several.
        config: folder of its files in the repository, where the set has several versions.
        revision: git revision of the repository.
        unlabelled: splits that come without labels.
        train_images: size of the whole training split, where partial copies are in use.
        lossless: the original files are PNG, so a JPEG copy is worth a remark.
    """

    title: str
    repo: str
    num_classes: int
    label: str | None = None
    config: str = ""
    revision: str = "main"
    unlabelled: tuple[str, ...] = ()
    train_images: int | None = None
    lossless: bool = False


NAMED_SETS = {
    "cifar10": NamedSet("CIFAR-10", "uoft-cs/cifar10", 10, lossless=True),
    "cifar100": NamedSet("CIFAR-100", "uoft-cs/cifar100", 100, "fine_label", lossless=True),
    "tiny_imagenet": NamedSet("Tiny-ImageNet", "zh-plus/tiny-imagenet", 200, train_images=100_000),
    "imagenette": NamedSet(
        "Imagenette", "frgfm/imagenette", 10, config="full_size", revision="refs/convert/parquet"
    ),
    "mini_imagenet": NamedSet("mini-ImageNet", "timm/mini-imagenet", 100),
    "flowers102": NamedSet("Flowers-102", "Donghyun99/Oxford-Flower-102", 102),
    "pets": NamedSet("Oxford-IIIT Pet", "timm/oxford-iiit-pet", 37),
    "cars": NamedSet("Stanford Cars", "tanganke/stanford_cars", 196),
    "imagenet": NamedSet("ImageNet-1k", "ILSVRC/imagenet-1k", 1000, unlabelled=("test",)),
}


def data_home() -> Path:
    """The folder that holds data sets: `EVITLAB_DATA`, by default `~/.cache/evitlab`."""
    return Path(os.environ.get("EVITLAB_DATA") or "~/.cache/evitlab").expanduser()


def is_at_hand(name: str) -> bool:
    """Whether the training and an evaluation split of a named set lie in `data_home()`."""
    return all(_local_files(name, split)[1] for split in ("train", "test"))


def can_fetch(name: str) -> bool:
    """Whether the Hub answers for a named set within a few seconds."""
    try:
        return bool(_remote_files(name))
    except Exception:  # no network, no permission, no such repository: each time the answer is no
        return False


def _remote_files(name: str) -> list[str]:
    """Paths of all files of a named set on the Hub."""
    from huggingface_hub import HfApi

    spec = NAMED_SETS[name]
    # Unlike the listing calls, this one does not retry for half a minute when offline.
    info = HfApi().dataset_info(spec.repo, revision=spec.revision, timeout=_HUB_TIMEOUT_S)
    return [sibling.rfilename for sibling in info.siblings or ()]


def open_named(name: str, split: str) -> Source:
    """Open one split of a named set, fetching it if it is not at hand.

    Raises:
        ValueError: `split` is "all".
        FileNotFoundError: it is neither at hand nor can it be fetched; says where to put files.
    """
    spec, folder = NAMED_SETS[name], data_home() / name
    if split == "all":
        raise ValueError(f"split: {name} is read split by split (train, val or test), not 'all'")
    found, files = _local_files(name, split)
    if not files:
        _fetch(name, split)
        found, files = _local_files(name, split)
    source = open_parquet(
        files, folder, found, title=spec.title, label=spec.label, num_classes=spec.num_classes
    )
    return replace(source, title=_title(spec, source))


def _local_files(name: str, split: str) -> tuple[str, list[Path]]:
    spec = NAMED_SETS[name]
    return split_files(data_home() / name, split, config=spec.config, ignore=spec.unlabelled)


def _title(spec: NamedSet, source: Source) -> str:
    """The title, with what sets this copy apart from the original."""
    remarks = []
    count = len(source.labels)
    if spec.lossless and count and (quality := jpeg_quality(source.read(0)[0])) is not None:
        remarks.append(f"JPEG q{quality}")
    if source.split == "train" and spec.train_images and count < spec.train_images:
        remarks.append(f"{count // spec.num_classes} per class")
    return f"{spec.title} ({', '.join(remarks)})" if remarks else spec.title


def _fetch(name: str, split: str) -> None:
    """Download one split of a named set into the data folder."""
    from huggingface_hub import snapshot_download

    spec, folder = NAMED_SETS[name], data_home() / name
    reason = f"the repository has no {split} split in parquet files"
    try:
        remote = [folder / path for path in _remote_files(name) if path.endswith(".parquet")]
        # Chosen by the function that will look for the files afterwards.
        _, wanted = split_files(
            folder, split, config=spec.config, ignore=spec.unlabelled, files=remote
        )
        if wanted:
            snapshot_download(
                spec.repo,
                repo_type="dataset",
                revision=spec.revision,
                allow_patterns=[path.relative_to(folder).as_posix() for path in wanted],
                local_dir=folder,
            )
            return
    except Exception as error:  # whatever the network or the Hub answers, the way out is the same
        reason = str(error).strip().split("\n")[0] or type(error).__name__
    raise FileNotFoundError(
        f"{name}: no complete {split} split in {folder}, and it cannot be fetched from "
        f"https://huggingface.co/datasets/{spec.repo} ({reason}). Put its parquet files there, "
        f"named {split}-*.parquet, or point EVITLAB_DATA to the folder that holds {name}/"
    )
