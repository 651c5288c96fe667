"""Parquet files in the Hugging Face Hub layout as sources.

Images are a struct column {bytes, path}, labels an integer column; both are found by type and
name. Images are read one row group at a time, since a large set does not fit into memory.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import pickle
import re
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from evitlab.datasets.sources import SPLITS, Reader, Source, canonical_split, split_unsplit
from evitlab.wording import on_one_line

_LABEL_COLUMNS = ("label", "fine_label", "labels", "target", "class")
_MOST_CLASSES = 10**6  # that numbers stand for
_BYTES_IN_MEMORY = 512 * 2**20


def split_files(
    folder: Path,
    split: str,
    *,
    config: str = "",
    ignore: Sequence[str] = (),
    files: Sequence[Path] | None = None,
) -> tuple[str, list[Path]]:
    """The parquet files of a split, in order.

    A split is recognised by the start of the file name (`train-00000-of-00002.parquet`,
    `train150-...`) or by its folder (`train/0000.parquet`), anywhere below `folder`.

    Args:
        folder: where to look.
        split: "train", "val" or "test".
        config: folder that is preferred where a set comes in several versions.
        ignore: names of splits that are of no use, such as a test split without labels.
        files: the files to choose from; None stands for those on disk.

    Returns:
        The split that was found ("val" may be answered by the test split) and its files, none if
        there are none or some of a numbered series are missing.
    """
    files = list(folder.rglob("*.parquet")) if files is None else files
    files = [path for path in files if not _is_hidden(path, folder)]
    files = [path for path in files if config in path.parts] or files
    for alias in SPLITS[split]:
        if alias in ignore:
            continue
        found = sorted(
            path for path in files if alias in (_split_name(path.stem), path.parent.name)
        )
        if found and len(found) >= _series_length(found):
            return canonical_split(alias) or split, found
    return split, []


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _split_name(stem: str) -> str | None:
    """`train` for the stem of `train150-00000-of-00001.parquet`."""
    word = re.match(r"[a-z]*", stem)
    assert word is not None
    return word[0] if canonical_split(word[0]) else None


def _series_length(files: Sequence[Path]) -> int:
    matches = [re.search(r"-of-(\d+)", path.stem) for path in files]
    return max((int(match[1]) for match in matches if match), default=0)


def open_parquet_path(path: Path, split: str) -> Source:
    """A single parquet file, or a folder of them.

    A file whose name says a split stands for all files beside it; any other is split in 80 % and
    20 %, see `sources.split_unsplit`.

    Raises:
        ValueError: no such split, or no image or label column.
    """
    if path.is_file() and not _split_name(path.stem):
        whole = open_parquet([path], path.parent, "all", title=path.stem)
        return split_unsplit(whole, split)
    folder = path.parent if path.is_file() else path
    if split == "all":
        raise ValueError(f"split: {folder} is read split by split (train, val or test), not 'all'")
    found, files = split_files(folder, split)
    if not files:
        raise ValueError(f"split: no complete series of parquet files for {split!r} in {folder}")
    return open_parquet(files, folder, found, title=folder.name)


def open_parquet(
    files: Sequence[Path],
    folder: Path,
    split: str,
    *,
    title: str,
    label: str | None = None,
    num_classes: int | None = None,
) -> Source:
    """Read the labels and class names of some parquet files; images follow on demand.

    Args:
        files: in order.
        folder: where `classes.json` or `batches.meta` with class names may lie.
        split: as which the source presents itself.
        title: as which the source presents itself.
        label: the label column, where there are several.
        num_classes: where no names are to be found, so many numbers stand for them; None counts
            up to the highest label.

    Raises:
        ValueError: a file is not parquet, or has no image or no label column.
    """
    columns: list[pa.ChunkedArray] = []
    found: set[tuple[str, str]] = set()
    for path in files:
        try:
            file = pq.ParquetFile(path)
            schema = file.schema_arrow
            image_column = _image_column(schema, path)
            label_column = _label_column(schema, label, path)
            columns.append(file.read([label_column])[label_column])
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error
        if columns[-1].null_count:
            raise ValueError(f"{path}: column {label_column!r} has rows without a label")
        found.add((image_column, label_column))
        if len(found) > 1:
            raise ValueError(f"{path}: expected the columns of {files[0].name}, got others")
    schema = pq.read_schema(files[0])
    labels = np.concatenate([column.to_numpy().astype(np.int64) for column in columns])
    names = _class_names(schema, label_column, folder)
    if not names:
        count = num_classes or int(labels.max(initial=-1)) + 1
        if count > _MOST_CLASSES:
            raise ValueError(
                f"{files[0]}: column {label_column!r}: expected labels below {_MOST_CLASSES:,} "
                f"without class names, got {count - 1}"
            )
        names = tuple(str(number) for number in range(count))
    reader = ParquetReader(files, image_column, f"{title} ({split})")
    if reader.rows != len(labels):
        raise ValueError(
            f"{files[0]}: column {label_column!r} holds {len(labels)} labels of {reader.rows} rows"
        )
    return Source(title, split, labels, names, reader)


def _image_column(schema: pa.Schema, path: Path) -> str:
    for column in schema:
        is_struct = pa.types.is_struct(column.type)
        if is_struct and column.type.get_field_index("bytes") >= 0:
            return column.name
    for column in schema:
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            return column.name
    raise ValueError(
        f"{path}: expected a column of image bytes (binary, or a struct with 'bytes'), "
        f"got columns {', '.join(schema.names)}"
    )


def _label_column(schema: pa.Schema, wanted: str | None, path: Path) -> str:
    candidates = (wanted,) if wanted else _LABEL_COLUMNS
    for name in candidates:
        if name in schema.names and pa.types.is_integer(schema.field(name).type):
            return name
    raise ValueError(
        f"{path}: expected an integer label column ({', '.join(_LABEL_COLUMNS)}), "
        f"got columns {', '.join(schema.names)}"
    )


def _class_names(schema: pa.Schema, label_column: str, folder: Path) -> tuple[str, ...]:
    """From `classes.json`, which has readable names, the Hub's schema, or `batches.meta`."""
    listing, pickled = folder / "classes.json", folder / "batches.meta"
    place = listing
    try:
        if listing.is_file():
            entries = json.loads(listing.read_text(encoding="utf-8"))
            return _names(e["name"] for e in sorted(entries, key=lambda entry: entry["label"]))
        place = Path("the schema's metadata")
        metadata = (schema.metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(metadata).get("info", {}).get("features", {})
        if names := features.get(label_column, {}).get("names"):
            return _names(names)
        place = pickled
        if pickled.is_file():
            with pickled.open("rb") as file:
                return _names(_PlainUnpickler(file).load()["label_names"])
    # Files from anywhere: a list where an object is expected, pickles of rubbish, endless nesting.
    except Exception as error:
        if isinstance(error, OSError) and error.filename:
            raise
        raise ValueError(f"{folder}: {place.name} holds no class names ({error})") from error
    return ()


def _names(values: Iterable[Any]) -> tuple[str, ...]:
    names = tuple(values) if not isinstance(values, str) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("expected a list of names")
    return names


def _unreadable(place: object, error: Exception) -> ValueError:
    reason = on_one_line(error)
    return ValueError(f"{place}: a parquet file cannot be read ({reason})")


class _PlainUnpickler(pickle.Unpickler):
    """Builds dicts, lists, strings and numbers; refuses whatever would run code."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise ValueError(f"batches.meta: refused to load {module_name}.{global_name} from a pickle")


class ParquetReader:
    """index -> image bytes; keeps the last few row groups, for reading in order.

    Reading in random order would decompress a row group per image: see `for_random_access`.
    """

    def __init__(self, files: Sequence[Path], column: str, title: str) -> None:
        self.files = list(files)
        self.column = column
        self.title = title
        self._open()

    def _open(self) -> None:
        self._parquet = [pq.ParquetFile(path) for path in self.files]
        self._groups = [
            (number, group)
            for number, file in enumerate(self._parquet)
            for group in range(file.num_row_groups)
        ]
        sizes = [self._parquet[n].metadata.row_group(g).num_rows for n, g in self._groups]
        self._starts = np.cumsum([0, *sizes]).tolist()
        self._loaded: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def rows(self) -> int:
        """As the files' footers declare them."""
        return self._starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "column": self.column, "title": self.title}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __call__(self, index: int, /) -> tuple[bytes, str]:
        position = bisect.bisect_right(self._starts, index) - 1
        value = self._group(position)[index - self._starts[position]].as_py()
        return value or b"", f"{self.title}, row {index}"

    def _group(self, position: int) -> pa.ChunkedArray:
        with self._lock:
            if position not in self._loaded:
                number, group = self._groups[position]
                try:
                    table = self._parquet[number].read_row_group(group, columns=[self.column])
                    images = _image_bytes(table[self.column])
                    declared = self._starts[position + 1] - self._starts[position]
                    if len(images) != declared:  # a damaged file's, which Arrow reads all the same
                        raise ValueError(f"declares {declared} rows, holds {len(images)}")
                except (ValueError, pa.ArrowException, OSError) as error:
                    raise _unreadable(self.files[number], error) from error
                self._loaded[position] = images
                used = sum(column.nbytes for column in self._loaded.values())
                while used > _BYTES_IN_MEMORY and len(self._loaded) > 1:
                    used -= self._loaded.popitem(last=False)[1].nbytes
            return self._loaded[position]

    def for_random_access(self) -> Reader:
        """Copy the images, once, into an uncompressed Arrow file beside the parquet files.

        Without write access there, the copy goes to `~/.cache/evitlab/<name of the folder>`.

        Raises:
            OSError: the disk is too small for the copy.
        """
        folder = self.files[0].parent
        if not os.access(folder, os.W_OK):
            folder = Path("~/.cache/evitlab").expanduser() / folder.name
        target = folder / ".arrow" / f"{self.files[0].stem}-{self._fingerprint()}.arrow"
        if not target.is_file():
            self._copy(target)
        return MappedReader(target, self.title)

    def _fingerprint(self) -> str:
        """Changes with the files, so that a copy of older ones is never taken for theirs."""
        stats = [(str(path.resolve()), path.stat()) for path in self.files]
        listing = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        return hashlib.sha256(repr((listing, self.column)).encode()).hexdigest()[:12]

    def _copy(self, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        needed = sum(path.stat().st_size for path in self.files)
        free = shutil.disk_usage(target.parent).free
        if needed > free:
            raise OSError(
                f"{target.parent}: streaming needs a copy of {needed / 2**30:.1f} GiB here, "
                f"{free / 2**30:.1f} GiB are free"
            )
        schema = pa.schema([("bytes", pa.binary())])
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            partial = Path(scratch) / target.name
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for position in tqdm(range(len(self._groups)), desc=f"{self.title}: copy", delay=2):
                    for chunk in self._group(position).chunks:
                        writer.write_batch(pa.record_batch([chunk.cast(pa.binary())], schema))
            os.replace(partial, target)


class MappedReader:
    """index -> image bytes from a memory-mapped Arrow file, in any order."""

    def __init__(self, path: Path, title: str) -> None:
        self.path = path
        self.title = title
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._column = table["bytes"]
        self._starts = np.cumsum([0, *map(len, self._column.chunks)]).tolist()

    def __reduce__(self) -> tuple[type[MappedReader], tuple[Path, str]]:
        return MappedReader, (self.path, self.title)

    def __call__(self, index: int, /) -> tuple[bytes, str]:
        position = bisect.bisect_right(self._starts, index) - 1
        value = self._column.chunk(position)[index - self._starts[position]].as_py()
        return value or b"", f"{self.title}, row {index}"

    def for_random_access(self) -> Reader:
        return self


def _image_bytes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_struct(column.type):
        return column
    # `field` of a chunk keeps no validity of the struct; a null struct then reads as empty bytes.
    return pa.chunked_array([chunk.field("bytes") for chunk in column.chunks])
