"""What the fuzzer calls: bytes in, a reader's ValueError or OSError at most out.

    python tests/fuzz_targets.py FOLDER OPTION... (libFuzzer's, such as -max_total_time=60)

All targets are forked from one process, since importing torch takes longer than fuzzing does.
"""

from __future__ import annotations

import inspect
import io
import json
import mmap
import os
import struct
import sys
import tarfile
import types
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hostile import REFUSALS, Room, Watch
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from safetensors.torch import save
from some_records import RECORDS, one_of

from evitlab import schema
from evitlab.datasets import classes, coco, coco_entries, decoding, folders, parquet, sources, voc
from evitlab.models import card, weights
from evitlab.records import base

# Where new branches are looked for: our readers, and what is written in Python below them.
INSTRUMENTED = (
    BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, PpmImagePlugin,
    TiffImagePlugin, WebPImagePlugin, base, card, classes, coco, coco_entries, decoding, folders,
    parquet, schema, sources, tarfile, torch._weights_only_unpickler, voc, weights,
)  # fmt: skip
WORDS = (
    "null", "true", "NaN", "1e999", "-1", "0", "99999999999999999999", "[]", "{}", ",", ":", "\\\"",
    "\\\"id\\\":", "\\\"bbox\\\":", "\\\"file_name\\\":", "../", "F32", "BF16", "U8", "\\x00",
    "ustar", "GNU.sparse.size", "<object>", "</object>", "&amp;", "<!ENTITY", "PAR1", "II*\\x00",
)  # fmt: skip
COUNTS = ("accepted", "refused", "executed", "outside")


def image(data: bytes, folder: Path) -> None:
    decoding.image_size(data)
    decoding.fit_image(decoding.decode_image(data), (16, 16))


def tar(data: bytes, folder: Path) -> None:
    _read_all(folders.open_tar(_file(folder / "x.tar", data), "all"))


def parquet_file(data: bytes, folder: Path) -> None:
    _read_all(parquet.open_parquet_path(_file(folder / "x.parquet", data), "all"))


def safetensors(data: bytes, folder: Path) -> None:
    path = _file(folder / "x.safetensors", data)
    weights.read_file(path)
    card.read_card(path)


def pickled(data: bytes, folder: Path) -> None:
    weights.read_file(_file(folder / "x.pth", data))


def record(data: bytes, folder: Path) -> None:
    """The first byte says which class is expected."""
    cls = RECORDS[data[0] % len(RECORDS) if data else 0]
    cls.load(_file(folder / "x.json", data[1:]))


def coco_file(data: bytes, folder: Path) -> None:
    path = _file(folder / "coco.json", data)
    pictures = _file(folder / "pictures" / "a.png", b"").parent
    annotations = coco.read_coco(path)
    coco.join_images(annotations, pictures, where="x", name="x", title="x", split="all")


def voc_file(data: bytes, folder: Path) -> None:
    _file(folder / "voc" / "Annotations" / "a.xml", data)
    voc.voc_to_coco(folder / "voc", "all")


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    one.__name__: one
    for one in (image, tar, parquet_file, safetensors, pickled, record, coco_file, voc_file)
}


def _file(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _read_all(source: sources.Source) -> None:
    for index in range(min(3, len(source.labels))):
        source.read(index)


def seeds(name: str) -> list[bytes]:
    """Small valid inputs of a target."""
    pictures = []
    for kind, mode in (("PNG", "RGB"), ("PNG", "P"), ("PNG", "I;16"), ("GIF", "P"), ("BMP", "RGB"),
                       ("JPEG", "RGB"), ("JPEG", "CMYK"), ("PPM", "RGB"), ("TIFF", "RGBA"),
                       ("WEBP", "RGBA")):  # fmt: skip
        file = io.BytesIO()
        Image.new(mode, (8, 6)).save(file, kind)
        pictures.append(file.getvalue())
    file = io.BytesIO()
    if name == "tar":
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            info = tarfile.TarInfo("cat/ä.png")
            info.size = len(pictures[0])
            archive.addfile(info, io.BytesIO(pictures[0]))
        return [file.getvalue()]
    if name == "parquet_file":
        pq.write_table(pa.table({"image": pictures[:2], "label": [0, 1]}), file)
        return [file.getvalue()]
    if name == "safetensors":
        found = {"architecture": "efficientvit_m0", "config": {}, "class_names": ["a"]}
        return [save({"a": torch.ones(2)}, metadata={"evitlab": json.dumps(found)})]
    if name == "pickled":
        torch.save({"model": {"a": torch.ones(2)}}, file)
        return [file.getvalue()]
    if name == "record":
        return [
            bytes([i]) + json.dumps({"record": cls.__name__, **schema.encode(one_of(cls), "")})
            .encode() for i, cls in enumerate(RECORDS)
        ]  # fmt: skip
    if name == "coco_file":
        entries: dict[str, list[dict[str, Any]]] = {
            "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
            "categories": [{"id": 1, "name": "a"}],
            "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}],
        }
        return [json.dumps(entries).encode()]
    if name == "voc_file":
        return [b"<annotation><filename>a.png</filename><size><width>8</width><height>8</height>"
                b"</size><object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax>"
                b"<ymax>3</ymax></bndbox></object></annotation>"]  # fmt: skip
    return pictures


def instrument(module: types.ModuleType) -> None:
    """Have the functions and methods that a module defines report their branches."""
    atheris: Any = import_module("atheris")

    own = list(vars(module).values())
    held = [one for cls in own if isinstance(cls, type) for one in vars(cls).values()]
    for function in (*own, *held):
        if getattr(function, "__module__", "") != module.__name__:
            continue
        if inspect.isfunction(function) and not inspect.isgeneratorfunction(function):
            atheris.instrument_func(function)


def fuzz(name: str, folder: Path, options: list[str], shared: mmap.mmap) -> None:
    """Fuzz one target in this process, which then ends."""
    atheris: Any = import_module("atheris")

    target, room = TARGETS[name], Room(folder / "room")
    corpus, words = folder / "corpus", folder / "words"
    for number, data in enumerate(seeds(name)):
        _file(corpus / str(number), data)
    words.write_text("".join(f'"{word}"\n' for word in WORDS), encoding="ascii")
    watch, counts = Watch(room, pipe=-1), dict.fromkeys(COUNTS, 0)

    def once(data: bytes) -> None:
        try:
            target(data, room.target)
            counts["accepted"] += 1
        except REFUSALS as error:
            assert str(error).strip() and "\n" not in str(error), repr(error)
            counts["refused"] += 1
        counts["executed"], counts["outside"] = len(watch.executed), len(watch.outside)
        struct.pack_into("4q", shared, 0, *counts.values())

    atheris.Setup([sys.argv[0], *options, f"-dict={words}", f"-artifact_prefix={folder}/",
                   str(corpus)], once)  # fmt: skip
    sys.addaudithook(watch.see)
    atheris.Fuzz()


def fuzz_all(folder: Path, options: list[str]) -> None:
    """Fuzz each target in a process of its own; what came of each goes to results.json."""
    for module in INSTRUMENTED:
        instrument(module)
    results = {}
    for name in TARGETS:
        shared = mmap.mmap(-1, 32)
        (folder / name).mkdir()
        child = os.fork()
        if child == 0:
            with (folder / name / "said.txt").open("wb") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            try:
                fuzz(name, folder / name, options, shared)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        counts = dict(zip(COUNTS, struct.unpack_from("4q", shared), strict=True))
        results[name] = {"status": status, **counts}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    fuzz_all(Path(sys.argv[1]), sys.argv[2:])
