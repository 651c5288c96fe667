"""Where encoded images and their labels lie: the named sets, image folders, tars, parquet files.

Nothing here decodes an image. A `Source` lists labels and hands out the bytes of one file.
"""

from __future__ import annotations

import bisect
import difflib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# The names that a split goes by, best first. Sets without a validation split use their test split
# for it, and the other way round.
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "test", "testing"),
    "test": ("test", "testing", "val", "valid", "validation"),
}
_ALIASES = frozenset(alias for aliases in SPLITS.values() for alias in aliases)
_LABEL_COLUMNS = ("label", "fine_label", "labels", "target", "class")


@dataclass(frozen=True)
class NamedSet:
    """One data set of the Hugging Face Hub.

    Attributes:
        title: as shown in records and figures.
        repo: id on the Hub.
        num_classes: how many classes it has.
        label: the label column.
        config: folder of its files in the repository, where the set has several versions.
        revision: git revision of the repository.
        train_images: size of the whole training split, where partial copies are in use.
        lossless: the original files are PNG, so a JPEG copy is worth a remark.
    """

    title: str
    repo: str
    num_classes: int
    label: str = "label"
    config: str = ""
    revision: str = "main"
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
    "flowers102": NamedSet("Flowers-102", "nelorth/oxford-flowers", 102),
    "pets": NamedSet("Oxford-IIIT Pet", "timm/oxford-iiit-pet", 37),
    "cars": NamedSet("Stanford Cars", "tanganke/stanford_cars", 196),
    "imagenet": NamedSet("ImageNet-1k", "ILSVRC/imagenet-1k", 1000),
}


@dataclass(frozen=True)
class Source:
    """Labelled images, still encoded.

    Attributes:
        title: as shown.
        split: the split that was really read ("train", "val", "test" or "all").
        labels: int64 [N].
        class_names: one per class.
        read: index -> (bytes of the file, its name for error messages).
    """

    title: str
    split: str
    labels: np.ndarray
    class_names: tuple[str, ...]
    read: Callable[[int], tuple[bytes, str]] = field(repr=False)


def data_home() -> Path:
    """The folder that holds data sets: `EVITLAB_DATA`, by default `~/.cache/evitlab`."""
    return Path(os.environ.get("EVITLAB_DATA") or "~/.cache/evitlab").expanduser()


def stratified(labels: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """`count` indices, in ascending order, with the classes in proportion.

    The images are shuffled within their class and every (N / count)-th is taken, so each class
    gets its share to within one image, also where there are fewer images than classes.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    positions = (2 * np.arange(count) + 1) * len(labels) // (2 * count) if count else []
    return np.sort(by_class[positions].astype(np.int64))


def find_source(name_or_path: str | os.PathLike[str], split: str) -> Source:
    """The images of a named set or of a path.

    Raises:
        ValueError: neither a known name nor a path; no image in it; the split does not exist; or
            labels outside the classes.
        FileNotFoundError: a named set that is neither at hand nor to be fetched.
    """
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, all; got {split!r}")
    name = os.fspath(name_or_path)
    if name in NAMED_SETS:
        source = _open_named(name, split)
    else:
        path = Path(name).expanduser()
        if not path.exists():
            known = ("embedded", *NAMED_SETS)
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ValueError(
                f"name_or_path: {name!r} is neither an existing path nor a data set; did you mean "
                f"{close[0]!r}? (known: {', '.join(known)})"
            )
        source = _open_path(path, split)
    labels, classes = source.labels, len(source.class_names)
    if len(labels) and not (0 <= labels.min() and labels.max() < classes):
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise ValueError(
            f"{name} ({source.split}): label {wrong} is outside 0..{classes - 1} "
            f"({classes} classes)"
        )
    return source


# Parquet


def _split_files(folder: Path, split: str, config: str = "") -> tuple[str, list[Path]]:
    """(name of the split found, its parquet files), the list empty if there are none."""
    files = sorted(folder.rglob("*.parquet")) if folder.is_dir() else []
    files = [file for file in files if ".cache" not in file.relative_to(folder).parts]
    if config and (chosen := [file for file in files if config in file.parts]):
        files = chosen
    for alias in SPLITS[split]:
        pattern = re.compile(rf"{alias}\d*(?:[-_.].*)?")
        found = [
            file for file in files if pattern.fullmatch(file.stem) or file.parent.name == alias
        ]
        if found:
            return _canonical(alias), found
    return split, []


def _canonical(alias: str) -> str:
    return next(split for split, aliases in SPLITS.items() if alias in aliases[:3])


def _missing_shards(files: Sequence[Path]) -> int:
    """How many files of a `-00000-of-00013` series are not there."""
    totals = [re.search(r"-of-(\d+)", file.stem) for file in files]
    return max((int(match[1]) for match in totals if match), default=0) - len(files)


def _open_named(name: str, split: str) -> Source:
    spec = NAMED_SETS[name]
    if split == "all":
        raise ValueError(f"split: {name} is read split by split (train, val or test), not 'all'")
    folder = data_home() / name
    found, files = _split_files(folder, split, spec.config)
    if not files or _missing_shards(files) > 0:
        _fetch(name, split)
        found, files = _split_files(folder, split, spec.config)
    source = _open_parquet(files, folder, found, label=spec.label, title=spec.title)
    names = source.class_names
    if len(names) < spec.num_classes:
        names = tuple(str(label) for label in range(spec.num_classes))
    return Source(_describe(spec, source), found, source.labels, names, source.read)


def _describe(spec: NamedSet, source: Source) -> str:
    """The title, with what sets this copy apart from the original."""
    from evitlab.decoding import jpeg_quality

    remarks = []
    if spec.lossless and len(source.labels):
        quality = jpeg_quality(source.read(0)[0])
        if quality is not None:
            remarks.append(f"JPEG q{quality}")
    count = len(source.labels)
    if source.split == "train" and spec.train_images and count < spec.train_images:
        remarks.append(f"{count // spec.num_classes} per class")
    return f"{spec.title} ({', '.join(remarks)})" if remarks else spec.title


def _fetch(name: str, split: str) -> None:
    """Download one split of a named set from the Hugging Face Hub into the data folder."""
    from huggingface_hub import snapshot_download

    spec, folder = NAMED_SETS[name], data_home() / name
    aliases = SPLITS[split]
    prefix = f"*{spec.config}/*" if spec.config else "*"
    patterns = [f"{prefix}{alias}{end}" for alias in aliases for end in ("-*.parquet", "/*.parquet")]
    reason = "the repository has no such split"
    try:
        snapshot_download(
            spec.repo,
            repo_type="dataset",
            revision=spec.revision,
            allow_patterns=patterns,
            local_dir=folder,
        )
    except Exception as error:  # whatever the network or the Hub answers, the way out is the same
        reason = str(error).strip().split("\n")[0] or type(error).__name__
    files = _split_files(folder, split, spec.config)[1]
    if not files or _missing_shards(files) > 0:
        raise FileNotFoundError(
            f"{name}: no parquet files of split {split!r} in {folder}, and they could not be "
            f"fetched from huggingface.co/datasets/{spec.repo} ({reason}). Put them there as "
            f"{folder / (aliases[0] + '-*.parquet')}, or set EVITLAB_DATA to the folder that holds "
            f"{name}/"
        )


def _open_parquet(
    files: Sequence[Path], folder: Path, split: str, *, label: str | None, title: str
) -> Source:
    schema = pq.read_schema(files[0])
    image_column = _image_column(schema, files[0])
    label_column = _label_column(schema, label, files[0])
    images: list[pa.Array] = []
    labels: list[np.ndarray] = []
    origins: list[str] = []
    for file in files:
        table = pq.read_table(file, columns=[image_column, label_column])
        for batch in table.to_batches():
            column = batch.column(image_column)
            is_struct = pa.types.is_struct(column.type)
            images.append(column.field("bytes") if is_struct else column)
            origins.append(f"{file.name}, row {sum(map(len, images[:-1]))}")
        labels.append(table.column(label_column).to_numpy().astype(np.int64))
    starts = np.cumsum([0, *map(len, images)]).tolist()
    all_labels = np.concatenate(labels)

    def read(index: int) -> tuple[bytes, str]:
        chunk = bisect.bisect_right(starts, index) - 1
        value = images[chunk][index - starts[chunk]].as_py()
        return value or b"", f"{title}, {split} row {index}"

    names = _class_names(schema, label_column, folder)
    if not names:
        names = tuple(str(number) for number in range(int(all_labels.max(initial=-1)) + 1))
    return Source(title, split, all_labels, names, read)


def _image_column(schema: pa.Schema, file: Path) -> str:
    for column in schema:
        if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
            return column.name
    for column in schema:
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            return column.name
    raise ValueError(
        f"{file}: expected a column of image bytes (struct with 'bytes', or binary), "
        f"got columns {', '.join(schema.names)}"
    )


def _label_column(schema: pa.Schema, wanted: str | None, file: Path) -> str:
    for name in (wanted, *_LABEL_COLUMNS):
        if name in schema.names and pa.types.is_integer(schema.field(name).type):
            return name
    raise ValueError(
        f"{file}: expected an integer label column ({', '.join(_LABEL_COLUMNS)}), "
        f"got columns {', '.join(schema.names)}"
    )


def _class_names(schema: pa.Schema, label_column: str, folder: Path) -> tuple[str, ...]:
    """From `classes.json` beside the files, else from what the Hub writes into the schema."""
    listing = folder / "classes.json"
    if listing.is_file():
        entries = json.loads(listing.read_text(encoding="utf-8"))
        return tuple(e["name"] for e in sorted(entries, key=lambda entry: entry["label"]))
    metadata = (schema.metadata or {}).get(b"huggingface")
    if not metadata:
        return ()
    feature = json.loads(metadata)["info"]["features"].get(label_column, {})
    return tuple(feature.get("names") or ())


# Folders and tars


def _open_path(path: Path, split: str) -> Source:
    if path.is_file() and path.suffix == ".parquet":
        return _open_parquet_path(path, split)
    if path.is_file():
        if not tarfile.is_tarfile(path):
            raise ValueError(f"{path}: expected a folder, a tar or a parquet file")
        return _open_tar(path, split)
    if next(path.rglob("*.parquet"), None):
        found, files = _split_files(path, "train" if split == "all" else split)
        if files:
            return _open_parquet(files, path, found, label=None, title=path.name)
    listing = []
    for folder, _, names in os.walk(path, followlinks=True):
        relative = PurePosixPath(Path(folder).relative_to(path).as_posix())
        listing += [(relative / name).as_posix() for name in names if _is_image(name)]
    return _open_listing(
        path, sorted(listing), split, lambda relative: (path / relative).read_bytes()
    )


def _open_parquet_path(path: Path, split: str) -> Source:
    raise NotImplementedError


def _open_tar(path: Path, split: str) -> Source:
    raise NotImplementedError


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _open_listing(
    root: Path, listing: Iterable[str], split: str, load: Callable[[str], bytes]
) -> Source:
    raise NotImplementedError
