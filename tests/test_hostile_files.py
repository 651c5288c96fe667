"""Weights files made by hand: what torch and safetensors would never write."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import NEEDS_FORK, NONSENSE, Attempt, Recorder, Room, command, some, tabled
from safetensors import safe_open
from small_runs import tiny_vit

from evitlab import create_detector, load_detector, load_model, load_weights, save_weights
from evitlab.models.starting import starting_model

pytestmark = NEEDS_FORK


def safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with this header: text as it is, other values as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: object, shape: object, *offsets: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def headers() -> dict[str, bytes]:
    data = bytes(64)
    f32 = "F32"
    wrong: dict[str, object] = {
        "overlap": {"a": entry(f32, [8], 0, 32), "b": entry(f32, [8], 16, 48)},
        "same bytes twice": {"a": entry(f32, [16], 0, 64), "b": entry(f32, [16], 0, 64)},
        "gap": {"a": entry(f32, [4], 0, 16), "b": entry(f32, [4], 48, 64)},
        "beyond the end": {"a": entry(f32, [1024], 0, 4096)},
        "backwards": {"a": entry(f32, [16], 64, 0)},
        "negative offsets": {"a": entry(f32, [16], -64, 0)},
        "negative shape": {"a": entry(f32, [-4, -4], 0, 64)},
        "negative and positive": {"a": entry(f32, [-16], 0, 64)},
        "overflowing shape": {"a": entry(f32, [2**33, 2**33], 0, 64)},
        "overflow to the right size": {"a": entry(f32, [2**32, 2**30, 16], 0, 64)},
        "fraction": {"a": entry(f32, [1.5], 0, 6)},
        "endless shape": {"a": entry(f32, [1] * 100_000 + [16], 0, 64)},
        "empty dimension": {"a": entry(f32, [0, 2**62, 2**62], 0, 0)},
        "unknown type": {"a": entry("F1024", [16], 0, 64)},
        "type is a number": {"a": entry(3, [16], 0, 64)},
        "no type": {"a": {"shape": [16], "data_offsets": [0, 64]}},
        "one offset": {"a": entry(f32, [16], 0)},
        "three offsets": {"a": entry(f32, [16], 0, 32, 64)},
        "not an object": [1, 2], "a number": 5, "text": "header", "null": None,
        "metadata of numbers": {"__metadata__": {"evitlab": 3}},
        "metadata is a list": {"__metadata__": ["evitlab"]},
        "metadata is nested": {"__metadata__": {"evitlab": {"config": {}}}},
        "deep": b"[" * 100_000 + b"]" * 100_000,
        "deep metadata": b'{"__metadata__": {"evitlab": ' + b"[" * 50_000 + b"]" * 50_000 + b"}}",
        "key twice": b'{"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]},'
                     b' "a": {"dtype": "I8", "shape": [64], "data_offsets": [0, 64]}}',
        "not UTF-8": b'{"\xff\xfe": {}}', "no JSON": b"{]", "blank": b" " * 100, "empty": b"",
        "a name with NUL": {"a\0b": entry(f32, [16], 0, 64)},
        "many names": {f"n{i}": entry("U8", [0], 0, 0) for i in range(50_000)},
    }  # fmt: skip
    made = {
        name: safetensors(header, data if "a" in str(header)[:8] else b"")
        for name, header in wrong.items()
    }
    for length in (0, 1, 2**31, 2**32, 2**40, 2**63, 2**64 - 1):
        made[f"length {length}"] = safetensors({}, data, length=length)
    return made


def test_safetensors_headers(tmp_path: Path, record_property: Recorder) -> None:
    room = Room(tmp_path)
    attempts = []
    for number, (name, data) in enumerate(headers().items()):
        path = room.file(f"{number}.safetensors", data)
        attempts += [
            Attempt(f"{name}: load_weights", partial(load_weights, tiny_vit(), path)),
            Attempt(f"{name}: load_model", partial(load_model, path)),
        ]
    outcomes = room.attempt(attempts)
    tabled(record_property, "weights: safetensors headers", outcomes)
    assert all(one.kind == "refused" for one in outcomes)


def card_of(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        card: dict[str, Any] = json.loads(file.metadata()["evitlab"])
    return card


def with_card(path: Path, card: object) -> bytes:
    """The tensors of a file beside another card: any value, or bytes that shall be JSON."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    text = card.decode() if isinstance(card, bytes) else json.dumps(card)
    return safetensors({**header, "__metadata__": {"evitlab": text}}, data[8 + length :])


def wrong_cards(card: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """Each entry, and each of the configuration, in turn: left out, or nonsense."""
    for name, value in NONSENSE.items():
        yield f"card is {name}", value
    for key in (*card, "channel_widths", "category_ids", "task"):
        yield f"without {key}", {k: v for k, v in card.items() if k != key}
        for name, value in NONSENSE.items():
            yield f"{key} is {name}", {**card, key: value}
    for key in card["config"]:
        yield f"without config.{key}", {
            **card, "config": {k: v for k, v in card["config"].items() if k != key}
        }  # fmt: skip
        for name, value in NONSENSE.items():
            yield f"config.{key} is {name}", {**card, "config": {**card["config"], key: value}}
        if isinstance(card["config"][key], list):
            for number in (-1, 0, 10**6, 10**12, 2**63, 1.5, None):
                whole = [number] * len(card["config"][key])
                yield f"config.{key} is {whole}", {**card, "config": {**card["config"], key: whole}}


def test_cards(tmp_path: Path, record_property: Recorder, pytestconfig: pytest.Config) -> None:
    """What names the architecture, its sizes and its classes."""
    room = Room(tmp_path)
    good = save_weights(tiny_vit(), tmp_path / "good.safetensors", class_names=("a", "b", "c"))
    cards = dict(wrong_cards(card_of(good)))
    cards["endless nesting"] = b"[" * 100_000
    cards["key twice"] = b'{"config": {}, "config": {}, "architecture": "x", "class_names": []}'
    cards["a hundred thousand classes"] = {
        **card_of(good), "class_names": [f"class {i}" for i in range(10**5)],
    }  # fmt: skip
    attempts = []
    for number, (name, card) in enumerate(cards.items()):
        path = room.file(f"{number}.safetensors", with_card(good, card))
        attempts.append(Attempt(f"{name}: load_model", partial(load_model, path)))
        if number % 10 == 0:
            start = partial(
                starting_model, "efficientvit_m0", img_size=(32, 32), class_names="abc",
                weights=path,
            )  # fmt: skip
            attempts.append(Attempt(f"{name}: starting_model", start))
    outcomes = room.attempt(some(attempts, pytestconfig, 100))
    tabled(record_property, "weights: hostile cards of classifiers", outcomes)


def test_cards_of_detectors(
    tmp_path: Path, record_property: Recorder, pytestconfig: pytest.Config
) -> None:
    room = Room(tmp_path)
    torch.manual_seed(0)
    model = create_detector("efficientvit_m0", num_classes=2, img_size=64, channels=16,
                            class_names=("a", "b"), category_ids=(1, 2))  # fmt: skip
    good = save_weights(model, tmp_path / "good.safetensors", class_names=("a", "b"))
    cards = dict(wrong_cards(card_of(good)))
    for backbone in ("hf-hub:evil/model", "local-dir:/", "vit_giant_patch14_dinov2", "../../x"):
        config = {**card_of(good)["config"], "backbone": backbone}
        cards[f"backbone {backbone}"] = {**card_of(good), "config": config}
    chosen = some(
        [Attempt(name, lambda: None) for name in cards], pytestconfig, 30
    )
    names = [one.name for one in chosen] + [name for name in cards if name.startswith("backbone")]
    attempts = []
    for number, name in enumerate(dict.fromkeys(names)):
        path = room.file(f"{number}.safetensors", with_card(good, cards[name]))
        attempts.append(Attempt(name, partial(load_detector, path)))
    outcomes = room.attempt(attempts)
    tabled(record_property, "weights: hostile cards of detectors", outcomes)


def zeros(mib: int) -> bytes:
    """So many MiB of zeros as raw deflate: one compressed block, again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * mib + zlib.compressobj(9, zlib.DEFLATED, -15).flush()


def packed_zip(name: str, mib: int) -> bytes:
    """A zip whose one entry unpacks to zeros."""
    data, path, size = zeros(mib), name.encode(), mib * 2**20
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, 0, len(data), size, len(path), 0)
    local = b"PK\x03\x04" + fields + path + data
    central = b"PK\x01\x02" + struct.pack("<H", 20) + fields + bytes(14) + path
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + b"PK\x05\x06" + end


def rezipped(data: bytes, compression: int, replace: dict[str, bytes] | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            short = name.partition("/")[2]
            new.writestr(name, (replace or {}).get(short, old.read(name)))
    return out.getvalue()


def storage(numel: int, *, shape: object = (4,), stride: object = (1,), offset: int = 0) -> bytes:
    """The pickle of a state dict whose one tensor is a view of a storage of `numel` floats."""

    class View:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Held(), offset, shape, stride, False, {})

    class Held:
        pass

    class Writer(pickle.Pickler):
        def persistent_id(self, value: object) -> Any:
            where = ("storage", torch.FloatStorage, "0", "cpu", numel)
            return where if isinstance(value, Held) else None

    file = io.BytesIO()
    Writer(file, 2).dump({"head.linear.bias": View()})
    return file.getvalue()


def bombs() -> dict[str, bytes]:
    file = io.BytesIO()
    torch.save({"head.linear.bias": torch.ones(4)}, file)
    good = file.getvalue()
    # Each tuple holds the one before twice, so that its hash takes twice as long: } ( ) q0 h0 h0 …
    nested = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"0"
                      for i in range(60))  # fmt: skip
    laughs: Any = ["ha"] * 10
    for _ in range(12):
        laughs = [laughs] * 10
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in ("storages", "tensors", "pickle"):
            tar.addfile(tarfile.TarInfo(f"../{name}"))
    return {
        "zip bomb": packed_zip("archive/data.pkl", 3000),
        "zip bomb beside": packed_zip("archive/data/0", 3000),
        "compressed": rezipped(good, zipfile.ZIP_DEFLATED),
        "path traversal": good.replace(b"archive/", b"../../a/"),
        "huge storage": rezipped(good, zipfile.ZIP_STORED, {"data.pkl": storage(10**12)}),
        "negative storage": rezipped(good, zipfile.ZIP_STORED, {"data.pkl": storage(-4)}),
        "view beyond": rezipped(good, 0, {"data.pkl": storage(4, shape=(10**6,))}),
        "view before": rezipped(good, 0, {"data.pkl": storage(4, offset=-10**6)}),
        "negative shape": rezipped(good, 0, {"data.pkl": storage(4, shape=(-4,))}),
        "negative stride": rezipped(good, 0, {"data.pkl": storage(4, stride=(-1,))}),
        "overflowing view": rezipped(
            good, 0, {"data.pkl": storage(4, shape=(2**62, 8), stride=(8, 1))}
        ),
        "virtually huge": rezipped(
            good, 0, {"data.pkl": storage(4, shape=(2**40,), stride=(0,))}
        ),
        "text as shape": rezipped(good, 0, {"data.pkl": storage(4, shape="ab")}),
        "empty zip": b"PK\x05\x06" + bytes(18),
        "a list of lists": pickle.dumps(laughs, 2),
        "a tuple of tuples as key": b"\x80\x02})q\x000" + nested + b"h\x3cK\x01s.",
        "bytes by number": b"\x80\x02c__builtin__\nbytearray\n\x8a\x06"
        + (2**40).to_bytes(6, "little") + b"\x85R.",
        "a number of a million digits": b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x01" * 10**6
        + b".",
        "endless nesting": b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
        "a length that is not there": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
        "recursion": b"\x80\x02]q\x00h\x00a.",
        "legacy tar": archive.getvalue(),
    }  # fmt: skip


def test_bombs(tmp_path: Path, record_property: Recorder) -> None:
    """Small files that would fill the memory, reach beyond it, or take for ever."""
    room = Room(tmp_path)
    attempts = []
    for number, (name, data) in enumerate(bombs().items()):
        path = room.file(f"{number}.pth", data)
        model = tiny_vit()
        attempts.append(Attempt(name, partial(load_weights, model, path, strict=False)))
    path = room.target / "0.pth"
    train = ["train", "efficientvit_m0", "--data", "embedded", "--limit", 20, "--out", "out"]
    attempts.append(Attempt("evitlab train", command(*train, "--weights", path)))
    outcomes = room.attempt(attempts)
    tabled(record_property, "weights: bombs", outcomes)
    assert [one.name for one in outcomes if one.kind == "accepted"] == []
