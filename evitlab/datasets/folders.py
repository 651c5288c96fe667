"""Image folders, and tars of them, as sources.

Layouts: `root/<class>/<file>`, or `root/<split>/<class>/<file>` with splits named as in
`sources.SPLITS`. Classes are numbered in the order of their sorted names; where there is a training
split, its classes are the set's, and another split with one more is refused. Without split folders,
a fixed fifth of each class is held out, see `sources.split_unsplit`. With them, folders beside
them (unlabelled images, say) are ignored. Hidden files and folders always are. Files without any
folder open as "all" only, as unlabelled images.
"""

from __future__ import annotations

import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from evitlab.datasets.sources import SPLITS, Reader, Source, canonical_split, split_unsplit
from evitlab.wording import on_one_line

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# No image of as many pixels as are accepted is larger.
MAX_FILE_BYTES = 2**30
# A compressed tar has no random access, so its files are kept in memory, up to this total.
_MAX_UNPACKED_BYTES = 8 * 2**30


def open_folder(root: Path, split: str) -> Source:
    """List an image folder; nothing is opened.

    Raises:
        ValueError: no image in it, images outside class folders, or no such split.
    """
    listing = list_images(root)
    return _open_listing(root, listing.files, split, listing.reader)


def open_tar(path: Path, split: str) -> Source:
    """List a tar of an image folder; nothing is extracted.

    Folders that wrap everything are ignored, and so is whatever is no plain file: links, devices.

    Raises:
        ValueError: see `open_folder`; or no tar, or a compressed one whose images take more than
            8 GiB.
    """
    listing = list_images(path)
    prefix = _wrapping_folder(listing.files)
    inner = [name[len(prefix) :] for name in listing.files]

    def reader(kept: Sequence[str]) -> Reader:
        return listing.reader([prefix + name for name in kept])

    return _open_listing(path, inner, split, reader)


@dataclass(frozen=True)
class Listing:
    """The image files below a folder or in a tar.

    Attributes:
        files: their paths inside it, with forward slashes, sorted; hidden ones left out.
        reader: some of these paths, in any order -> a reader of them.
    """

    files: Sequence[str]
    reader: Callable[[Sequence[str]], Reader]


def read_image_file(path: Path) -> bytes:
    """The bytes of a file; none where it is no image: a pipe, a device or a broken link, from which
    reading may never end, or a file larger than `MAX_FILE_BYTES`."""
    if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        return b""
    return path.read_bytes()


def list_images(path: Path) -> Listing:
    """List the images of a folder, with all its subfolders, or of a tar; nothing is extracted.

    Raises:
        ValueError: neither, or a compressed tar whose images take more than 8 GiB.
    """
    return _list_folder(path) if path.is_dir() else _list_tar(path)


def walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`, through links too, but into no folder again from below it."""
    above = {os.fspath(root): {os.path.realpath(root)}}  # of each folder to come, and itself
    for folder, subfolders, names in os.walk(root, followlinks=True):
        known = above.pop(folder)
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in subfolders}
        subfolders[:] = [name for name in subfolders if real[name] not in known]
        yield folder, subfolders, names
        above |= {os.path.join(folder, name): known | {real[name]} for name in subfolders}


def _list_folder(root: Path) -> Listing:
    files: list[str] = []
    for folder, subfolders, names in walk(root):
        subfolders[:] = [name for name in subfolders if not _is_hidden(name)]
        relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
        files += [(relative / name).as_posix() for name in names if _is_image(name)]
    return Listing(sorted(files), lambda kept: _FolderReader(root, kept))


def _list_tar(path: Path) -> Listing:
    if not path.is_file():  # the bytes of a device or of a pipe may have no end
        raise ValueError(f"{path}: expected a folder or a file, got neither")
    compressed = _is_compressed(path)
    try:
        with tarfile.open(path, "r:*" if compressed else "r:") as tar:
            members = {_plain_name(member): member for member in tar if _is_image_member(member)}
            unpacked = _unpack(tar, path, members) if compressed else {}
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = on_one_line(error)
        raise ValueError(
            f"{path}: neither a folder, a parquet file nor a tar ({reason})"
        ) from error

    def reader(kept: Sequence[str]) -> _TarReader:
        places = [(members[name].offset_data, members[name].size) for name in kept]
        contents = [unpacked[name] for name in kept] if compressed else None
        return _TarReader(path, kept, places, contents)

    return Listing(sorted(members), reader)


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is what version control, macOS and editors leave behind."""
    return name == "__MACOSX" or (name.startswith(".") and name != "..")


def _is_image(path: str) -> bool:
    hidden = any(_is_hidden(part) for part in path.split("/"))
    return path.lower().endswith(IMAGE_SUFFIXES) and not hidden


def _plain_name(member: tarfile.TarInfo) -> str:
    return PurePosixPath(member.name.lstrip("/")).as_posix()


def _is_image_member(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse() and _is_image(_plain_name(member))


def _unpack(
    tar: tarfile.TarFile, path: Path, members: dict[str, tarfile.TarInfo]
) -> dict[str, bytes]:
    total = sum(member.size for member in members.values())
    if total > _MAX_UNPACKED_BYTES:
        raise ValueError(
            f"{path}: the images of a compressed tar are kept in memory and may take "
            f"{_MAX_UNPACKED_BYTES / 2**30:.0f} GiB at most, got {total / 2**30:.0f}; "
            "use an uncompressed tar"
        )
    streams = {name: tar.extractfile(member) for name, member in members.items()}
    return {name: stream.read() for name, stream in streams.items() if stream is not None}


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        magic = file.read(6)
    return magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"))


def _wrapping_folder(files: Sequence[str]) -> str:
    """The leading folders that all files share and that are neither a split nor a class."""
    split_files = [PurePosixPath(name).parts for name in files]
    depth = 0
    while split_files and all(len(parts) > depth + 2 for parts in split_files):
        heads = {parts[depth] for parts in split_files}
        if len(heads) > 1 or canonical_split(next(iter(heads))):
            break
        depth += 1
    return "".join(part + "/" for part in split_files[0][:depth]) if split_files else ""


def _open_listing(
    root: Path,
    files: Sequence[str],
    split: str,
    reader: Callable[[Sequence[str]], Reader],
) -> Source:
    if not files:
        raise ValueError(f"{root}: no images found; accepted are {', '.join(IMAGE_SUFFIXES)}")
    parts = [PurePosixPath(name).parts for name in files]
    if split == "all" and _is_flat(files):
        labels, names = np.zeros(len(files), np.int64), (root.name,)
        return Source(root.name, "all", labels, names, reader(files), files, labelled=False)
    splits = sorted({part[0] for part in parts if len(part) > 2 and canonical_split(part[0])})
    if splits:  # folders beside them are no classes; a split without classes has no labels
        files = [
            name
            for name, part in zip(files, parts, strict=True)
            if len(part) == 1 or part[0] in splits
        ]
        parts = [PurePosixPath(name).parts for name in files]
    level = 1 if splits else 0
    stray = [name for name, part in zip(files, parts, strict=True) if len(part) < level + 2]
    if stray:
        raise ValueError(
            f"{root}: expected <class>/<file> or <split>/<class>/<file>, got {stray[0]!r} outside "
            "a class folder"
        )
    wanted = next((alias for alias in SPLITS.get(split, ()) if alias in splits), None)
    if splits and wanted is None and split != "all":
        raise ValueError(f"split: {root} has {', '.join(splits)}, got {split!r}; {_advice(split)}")
    class_names = _class_names(root, parts, wanted) if wanted else _names_at(level, parts)
    numbers = {name: number for number, name in enumerate(class_names)}
    if not splits:
        labels = np.array([numbers[part[0]] for part in parts], np.int64)
        source = Source(root.name, "all", labels, class_names, reader(files), files)
        return split_unsplit(source, split)
    kept = [index for index, part in enumerate(parts) if wanted in (None, part[0])]
    labels = np.array([numbers[parts[index][1]] for index in kept], np.int64)
    found = (canonical_split(wanted) if wanted else None) or "all"
    files = [files[index] for index in kept]
    return Source(root.name, found, labels, class_names, reader(files), files)


def holds_photographs(path: Path) -> bool:
    """Whether a folder holds images, and all of them directly: they have no classes."""
    if not path.is_dir():
        return False
    files = (file.relative_to(path).as_posix() for file in path.rglob("*"))
    return _is_flat([name for name in files if _is_image(name)])


def _is_flat(files: Sequence[str]) -> bool:
    return bool(files) and not any("/" in name for name in files)


def _names_at(level: int, parts: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The classes, numbered over all splits: one that a split lacks does not shift the others."""
    return tuple(sorted({part[level] for part in parts}))


def _class_names(root: Path, parts: Sequence[tuple[str, ...]], wanted: str) -> tuple[str, ...]:
    """The classes of a set with split folders: the training split's, where there is one.

    Raises ValueError where the wanted split has a class more, which no model could have learned.
    """
    training = [part for part in parts if canonical_split(part[0]) == "train"]
    class_names = _names_at(1, training or parts)
    extra = [
        name
        for name in _names_at(1, [part for part in parts if part[0] == wanted])
        if name not in class_names
    ]
    if extra:
        raise ValueError(
            f"{root}: {wanted}/ has {', '.join(map(repr, extra[:3]))}{', …' * (len(extra) > 3)}, "
            f"which {training[0][0]}/ lacks; give each class training images, or remove it there"
        )
    return class_names


def _advice(split: str) -> str:
    if split == "train":
        return "training needs a folder train/<class> beside it"
    return "pass its train folder itself to have a fifth of each class held out"


@dataclass(frozen=True)
class _FolderReader:
    root: Path
    files: Sequence[str]

    def __call__(self, index: int, /) -> tuple[bytes, str]:
        path = self.root / self.files[index]
        return read_image_file(path), str(path)

    def for_random_access(self) -> Reader:
        return self


@dataclass(frozen=True)
class _TarReader:
    path: Path
    names: Sequence[str]
    places: Sequence[tuple[int, int]]
    contents: Sequence[bytes] | None

    def __call__(self, index: int, /) -> tuple[bytes, str]:
        where = f"{self.path}:{self.names[index]}"
        if self.contents is not None:
            return self.contents[index], where
        offset, size = self.places[index]
        # Opened anew each time: a handle shared by threads or forked workers shares its position.
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size), where

    def for_random_access(self) -> Reader:
        return self
