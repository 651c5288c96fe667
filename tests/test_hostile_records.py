"""JSON, XML and parquet from anywhere: records, annotations and tables that are not what they say.

What is tried with a record follows from its class: each field in turn is left out, or nonsense.
"""

import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import NEEDS_FORK, NONSENSE, Attempt, Recorder, Room, some, tabled
from PIL import Image
from some_records import RECORDS, one_of

from evitlab import box_ap, open_dataset, open_detection
from evitlab.schema import encode

pytestmark = NEEDS_FORK


def changed(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """JSON with each of its values, however deep, left out or nonsense: the path and the JSON."""
    keys = list(content) if isinstance(content, dict) else range(min(1, len(content)))
    for key in keys:
        here = (*path, str(key))
        if isinstance(content, dict):
            yield f"without {'.'.join(here)}", {k: v for k, v in content.items() if k != key}
        values = dict(NONSENSE)
        for name, value in values.items():
            yield f"{'.'.join(here)} is {name}", _with(content, key, value)
        if isinstance(content[key], (dict, list)):
            for name, inner in changed(content[key], here):
                yield name, _with(content, key, inner)


def _with(content: Any, key: Any, value: Any) -> Any:
    if isinstance(content, dict):
        return {**content, key: value}
    return [*content[:key], value, *content[key + 1 :]]


def test_records(tmp_path: Path, record_property: Recorder, pytestconfig: pytest.Config) -> None:
    room = Room(tmp_path)
    cases: list[tuple[str, type[Any], Any]] = []
    for cls in RECORDS:
        good = {"record": cls.__name__, **encode(one_of(cls), cls.__name__)}
        variants = [("extra", {**good, "extra": 1}), *changed(good)]
        cases += [(f"{cls.__name__}: {name}", cls, content) for name, content in variants]
    text = json.dumps({"record": RECORDS[0].__name__, **encode(one_of(RECORDS[0]), "")})
    raw = {
        "deep list": "[" * 100_000, "deep object": '{"a":' * 100_000,
        "deep field": '{"record": ' + "[" * 50_000 + "]" * 50_000 + "}",
        "key twice": text[:-1] + ', "record": "x"}', "NaN": "NaN", "digits": "1" * 10_000,
        "digits in a field": '{"record": ' + "1" * 10_000 + "}", "nothing": "",
        "BOM": "\ufeff" + text,
        "NUL": "\0" + text, "two": text + text, "cut": text[:-5], "1e999": '{"record": 1e999}',
        "lone surrogate": '{"record": "\\ud800"}',
    }  # fmt: skip
    chosen = some([Attempt(name, lambda: None) for name, _, _ in cases], pytestconfig, 300)
    wanted = {one.name for one in chosen}
    attempts = []
    for number, (name, cls, content) in enumerate(cases):
        if name in wanted:
            path = room.file(f"{number}.json", json.dumps(content))
            attempts.append(Attempt(name, partial(cls.load, path)))
    for number, (name, said) in enumerate(raw.items()):
        path = room.file(f"raw {number}.json", said.encode(errors="surrogatepass"))
        attempts.append(Attempt(name, partial(RECORDS[0].load, path)))
    path = room.file("not UTF-8.json", b"\xff\xfe{}")
    attempts.append(Attempt("not UTF-8", partial(RECORDS[0].load, path)))
    for path in (room.target, Path("/dev/null"), Path("\0")):
        attempts.append(Attempt(f"{path!r}", partial(RECORDS[0].load, path)))
    outcomes = room.attempt(attempts)
    tabled(record_property, "records: JSON with fields missing, extra or of nonsense", outcomes)
    extra = [one for one in outcomes if one.name.endswith((": extra", " is NaN", "is infinity"))]
    assert len(extra) > 20 and all(one.kind == "refused" for one in extra)


def coco() -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 32, "height": 24}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 8, 9], "area": 72,
             "iscrowd": 0}
        ],
    }  # fmt: skip


VOC = """<?xml version="1.0"?>{doctype}<annotation><filename>{file}</filename>
<size><width>{width}</width><height>24</height></size>
<object><name>cat</name><bndbox><xmin>{x}</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
</object></annotation>"""


def voc_files(outside: Path) -> dict[str, bytes]:
    laughs = '<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)
    )
    plain = dict(doctype="", file="a.png", width="32", x="1")
    made = {
        "good": {}, "billion laughs": {"doctype": f"<!DOCTYPE x [{laughs}]>", "x": "&j;"},
        "quadratic": {"doctype": f'<!DOCTYPE x [<!ENTITY a "{"1" * 10**6}">]>', "x": "&a;" * 10**4},
        "a file as entity": {
            "doctype": f'<!DOCTYPE x [<!ENTITY a SYSTEM "file://{outside}/treasure.txt">]>',
            "file": "&a;",
        },
        "outer DTD": {"doctype": '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">'},
        "traversal": {"file": "../../../outside/treasure.txt"},
        "absolute": {"file": f"{outside}/treasure.txt"},
        "NaN": {"x": "nan"}, "infinity": {"width": "inf"}, "huge": {"width": "1e300"},
        "many digits": {"width": "9" * 5000}, "negative": {"width": "-32"}, "empty": {"file": ""},
        "long": {"file": "x" * 10**6}, "newline": {"file": "a\nb.png"},
    }  # fmt: skip
    files = {name: VOC.format(**{**plain, **change}).encode() for name, change in made.items()}
    files |= {
        "deep": b"<annotation>" + b"<a>" * 10**5, "no XML": b"{}", "nothing": b"",
        "declared UTF-7": files["good"].replace(b'"1.0"', b'"1.0" encoding="UTF-7"'),
        "unknown encoding": files["good"].replace(b'"1.0"', b'"1.0" encoding="rubbish"'),
        "UTF-16": files["good"].decode().encode("utf-16"),
        "NUL": files["good"].replace(b"cat", b"\0"),
    }  # fmt: skip
    return files


def test_annotations(
    tmp_path: Path, record_property: Recorder, pytestconfig: pytest.Config
) -> None:
    """COCO and VOC files, and results of a detector in COCO's form."""
    room = Room(tmp_path)
    png = io.BytesIO()
    Image.new("RGB", (32, 24)).save(png, "PNG")
    images = room.file("images/a.png", png.getvalue()).parent
    (room.outside / "a.png").write_bytes(png.getvalue())
    cases: dict[str, str] = {name: json.dumps(one) for name, one in changed(coco())}
    for name in ("../../../outside/a.png", f"{room.outside}/a.png", "..\\..\\outside\\a.png",
                 "a.png/../../../../outside/a.png", "\0", "a\n.png", "x" * 10**5):  # fmt: skip
        content = coco()
        content["images"][0]["file_name"] = name
        cases[f"named {name[:40]!r}"] = json.dumps(content)
    cases |= {"deep": "[" * 10**5, "no JSON": "{", "a list": "[]", "digits": "9" * 10**4}
    attempts = []
    for number, (name, text) in enumerate(cases.items()):
        path = room.file(f"coco/{number}.json", text)
        opened = partial(look, path, images)
        attempts.append(Attempt(f"COCO {name}", opened))
        if number % 8 == 0:
            attempts.append(Attempt(f"AP of {name}", partial(box_ap, path, [])))
    result = [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 8, 9], "score": 0.5}]
    truth = room.file("truth.json", json.dumps(coco()))
    for number, (name, found) in enumerate(changed(result)):
        path = room.file(f"found/{number}.json", json.dumps(found))
        attempts.append(Attempt(f"result {name}", partial(box_ap, truth, path)))
    attempts = some(attempts, pytestconfig, 200)
    for number, (name, data) in enumerate(voc_files(room.outside).items()):
        room.file(f"voc {number}/Annotations/a.xml", data)
        room.file(f"voc {number}/JPEGImages/a.png", png.getvalue())
        attempts.append(Attempt(f"VOC {name}", partial(look, room.target / f"voc {number}", None)))
    outcomes = room.attempt(attempts)
    tabled(record_property, "annotations: COCO, results, VOC", outcomes)
    kinds = {one.name: one.kind for one in outcomes}
    assert kinds["VOC good"] == "accepted"
    for name in ("billion laughs", "quadratic", "a file as entity", "traversal", "absolute"):
        assert kinds[f"VOC {name}"] == "refused", name


def look(path: Path, images: Path | None) -> None:
    """Open annotations, and what they call an image."""
    data = open_detection(path, "all", images=images)
    for index in range(len(data)):
        data.resized(index, (32, 64))


def tables(png: bytes) -> dict[str, bytes]:
    """Parquet files by what is wrong with them."""
    good: dict[str, Any] = {"image": [{"bytes": png, "path": "x"}] * 6, "label": [0, 1] * 3}
    made: dict[str, dict[str, Any]] = {
        "no label": {"image": good["image"]}, "no image": {"label": good["label"]},
        "no rows": {"image": pa.array([], pa.struct({"bytes": pa.binary()})),
                    "label": pa.array([], pa.int64())},
        "text labels": {**good, "label": ["cat"] * 6}, "float labels": {**good, "label": [0.5] * 6},
        "null label": {**good, "label": [0, None] * 3}, "all null": {**good, "label": [None] * 6},
        "negative label": {**good, "label": [-1] * 6}, "huge label": {**good, "label": [2**62] * 6},
        "label of a billion": {**good, "label": [10**9] * 6},
        "unsigned": {**good, "label": pa.array([2**64 - 1] * 6, pa.uint64())},
        "nested label": {**good, "label": [[0]] * 6}, "bool label": {**good, "label": [True] * 6},
        "null image": {**good, "image": [None] * 6}, "text image": {**good, "image": ["x"] * 6},
        "null bytes": {**good, "image": pa.array([{"bytes": None}] * 6,
                                                 pa.struct({"bytes": pa.binary()}))},
        "bytes are text": {**good, "image": [{"bytes": "x"}] * 6},
        "bytes are numbers": {**good, "image": [{"bytes": 5}] * 6},
        "no bytes": {**good, "image": [{"path": "/etc/passwd"}] * 6},
        "rubbish": {**good, "image": [{"bytes": b"rubbish"}] * 6},
        "deep": {**good, "image": [{"bytes": {"bytes": png}}] * 6},
        "dictionary": {**good, "label": pa.array([0, 1] * 3).dictionary_encode()},
        "packed zeros": {"image": [bytes(2**26)] * 6, "label": good["label"]},
    }  # fmt: skip
    files = {name: _parquet(columns) for name, columns in made.items()}
    for name, told in {
        "no JSON": b"{", "a list": b"[]", "null": b"null", "info is text": b'{"info": "x"}',
        "names are text": b'{"info": {"features": {"label": {"names": "ab"}}}}',
        "names are numbers": b'{"info": {"features": {"label": {"names": [1, 2]}}}}',
        "names are a number": b'{"info": {"features": {"label": {"names": 5}}}}',
        "label is null": b'{"info": {"features": {"label": null}}}',
        "deep": b"[" * 10**5, "not UTF-8": b"\xff",
    }.items():  # fmt: skip
        files[f"metadata {name}"] = _parquet(good, {b"huggingface": told})
    whole = _parquet(good)
    random = np.random.default_rng(0)
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        files[f"cut to {length}"] = whole[:length]
    for number in range(60):
        altered = bytearray(whole)
        last = len(whole) - 8  # the footer, which tells where everything is
        for place in random.integers(last // 2 if number % 2 else 0, len(whole), 3):
            altered[place] = random.integers(256)
        files[f"altered {number}"] = bytes(altered)
    return files


def _parquet(columns: dict[str, Any], metadata: dict[bytes, bytes] | None = None) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), file)
    return file.getvalue()


def test_parquet(tmp_path: Path, record_property: Recorder) -> None:
    room = Room(tmp_path)
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    attempts = []
    for number, (name, data) in enumerate(tables(png.getvalue()).items()):
        path = room.file(f"{number}/x.parquet", data)
        opened = partial(open_dataset, path, "all", img_size=8)
        attempts.append(Attempt(name, opened))
    listing = [{"label": 0, "name": "a"}, {"label": 1, "name": "b"}]
    for number, (name, content) in enumerate(
        [*changed(listing), *NONSENSE.items()]
    ):
        folder = f"listing {number}"
        room.file(f"{folder}/classes.json", json.dumps(content))
        path = room.file(f"{folder}/x.parquet", _parquet({"image": [png.getvalue()] * 6,
                                                          "label": [0, 1] * 3}))  # fmt: skip
        opened = partial(open_dataset, path, "all", img_size=8)
        attempts.append(Attempt(f"classes.json: {name}", opened))
    outcomes = room.attempt(attempts, memory_mib=1536)
    tabled(record_property, "parquet: columns, types, metadata, damage", outcomes)
