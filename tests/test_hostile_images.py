"""Pictures that are damaged, enormous or none, and folders and archives that want to be left."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hostile import NEEDS_FORK, Attempt, Recorder, Room, command, some, tabled
from PIL import Image

from evitlab import open_dataset
from evitlab.datasets.decoding import decode_image, fit_image, image_size
from evitlab.datasets.frames import Frames

pytestmark = NEEDS_FORK

FORMATS = {
    "BMP": "RGB", "GIF": "P", "JPEG": "RGB", "PNG": "RGBA", "PPM": "RGB", "TIFF": "RGB",
    "WEBP": "RGB", "ICO": "RGBA", "TGA": "RGB", "PCX": "RGB", "SGI": "RGB", "DDS": "RGB",
    "JPEG2000": "RGB", "MSP": "1", "XBM": "1", "SPIDER": "F", "EPS": "RGB",
    "PDF": "RGB", "ICNS": "RGBA", "DIB": "RGB", "AVIF": "RGB", "BLP": "P", "QOI": "RGB",
}  # fmt: skip


def picture(side: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


def encoded(kind: str, mode: str, **options: object) -> bytes:
    """A picture in a format of Pillow's; no bytes where this build cannot write it."""
    file = io.BytesIO()
    try:
        picture().convert(mode).save(file, kind, **options)
    except (KeyError, OSError, ValueError):
        return b""
    return file.getvalue()


def damaged(data: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """Cut, and with bytes changed, mostly those of the header."""
    random = np.random.default_rng(1)
    for length in (1, 3, 8, 20, len(data) // 4, len(data) // 2, len(data) - 2):
        yield f"cut to {length}", data[:length]
    for number in range(count):
        changed = bytearray(data)
        last = min(64, len(data)) if number % 2 else len(data)
        for place in random.integers(0, last, 1 + number % 5).tolist():
            changed[place] = int(random.choice([0, 1, 127, 128, 255, int(random.integers(256))]))
        yield f"changed {number}", bytes(changed)


def read(data: bytes) -> None:
    image_size(data)
    fit_image(decode_image(data), (32, 32))


def test_damaged_pictures(
    tmp_path: Path, record_property: Recorder, pytestconfig: pytest.Config
) -> None:
    room = Room(tmp_path)
    attempts = []
    for kind, mode in FORMATS.items():
        data = encoded(kind, mode)
        for name, changed in damaged(data, 60) if data else ():
            attempts.append(Attempt(f"{kind} {name}", partial(read, changed)))
    assert len(attempts) > 1000
    outcomes = room.attempt(some(attempts, pytestconfig, 400))
    tabled(record_property, "images: cut and altered files of each format", outcomes)


def png(width: int, height: int, *, colour: int = 2, depth: int = 8, rows: bytes = b"") -> bytes:
    """A PNG by its header, with whatever for pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        code = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + code

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def blank(width: int, height: int, mode: str = "RGB", kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, kind)
    return file.getvalue()


def large_pictures() -> dict[str, bytes]:
    longest = 60_000
    frames = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(40)]
    animated = io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    text = bytearray(blank(8, 8))
    note = b"zTXt" + b"a\0\0" + zlib.compress(bytes(2**26))
    text[33:33] = struct.pack(">I", len(note) - 4) + note + struct.pack(">I", zlib.crc32(note))
    return {
        "one row": blank(longest, 1), "one column": blank(1, longest),
        "one row of JPEG": blank(longest, 1, kind="JPEG"),
        "one column of JPEG": blank(1, longest, kind="JPEG"),
        "three rows": blank(longest, 3), "one pixel": blank(1, 1),
        "long grey of 16 bits": blank(1, longest, "I;16"),
        "square of 60,000": png(longest, longest), "60,000 x 1,000": png(longest, 1000),
        "largest there can be": png(2**31 - 1, 2**31 - 1), "zero wide": png(0, 5),
        "zero high": png(5, 0), "just accepted, without pixels": png(9459, 9459),
        "just accepted, transparent": png(9459, 9459, colour=6),
        "just accepted, 16 bits of grey": png(9459, 9459, colour=0, depth=16),
        "impossible depth": png(5, 5, depth=3), "impossible colour": png(5, 5, colour=9),
        "more pixels than declared": png(2, 2, rows=bytes(2**22)),
        "animated": animated.getvalue(), "a text that unpacks to 64 MiB": bytes(text),
        "header of a bitmap of 2 GiB": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40,
                                                          2**15, 2**15, 1, 24, 0, 0, 0, 0, 0, 0),
        "run lengths": b"P6 30000 30000 255\n", "text as PPM": b"P3 9999999 9999999 255 1 1",
        "GIF of 65,535": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",",
        "nothing": b"", "a text": b"This is no picture.",
        "HTML": b"<html><script>alert(1)</script>",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
        b"(%pipe%touch x) (w) file\n",
    }  # fmt: skip


def test_large_and_strange_pictures(tmp_path: Path, record_property: Recorder) -> None:
    """Decompression bombs, sides of 60,000 pixels, and what is no picture."""
    room = Room(tmp_path)
    attempts = []
    for number, (name, data) in enumerate(large_pictures().items()):
        attempts.append(Attempt(f"{name}: decode_image", partial(read, data)))
        for file in (f"{number}/a/x.png", f"{number}/b/y.png"):
            room.file(file, data if file.endswith("x.png") else blank(8, 8))
        opened = partial(
            open_dataset, room.target / str(number), "all", img_size=224, on_error="skip"
        )
        attempts.append(Attempt(f"{name}: open_dataset", opened))
        stream = partial(streamed, room.target / str(number))
        attempts.append(Attempt(f"{name}: streamed", stream))
    outcomes = room.attempt(attempts)
    tabled(record_property, "images: bombs, long sides, other files", outcomes)
    kinds = {one.name: one.kind for one in outcomes}
    assert kinds["one row: decode_image"] == kinds["one column: open_dataset"] == "accepted"
    assert kinds["square of 60,000: decode_image"] == "refused"


def streamed(folder: Path) -> None:
    data = open_dataset(folder, "all", img_size=224, streaming=True, on_error="skip")
    for _ in range(len(data)):
        data[0]


def archive(fill: Callable[[tarfile.TarFile], object], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        fill(tar)
    return file.getvalue()


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def archives(outside: Path) -> dict[str, bytes]:
    png_file = blank(8, 8)
    names = {
        "traversal": "../../../outside/x.png", "deep traversal": "../" * 50 + "etc/x.png",
        "absolute": f"{outside}/x.png", "absolute class": "/cat/x.png", "home": "~/x/y.png",
        "backslashes": "..\\..\\x\\y.png", "drive": "C:/x/y.png", "newline": "cat\n/x.png",
        "long": "cat/" + "x" * 5000 + ".png", "long class": "x" * 5000 + "/x.png",
        "reserved": "CON/NUL.png", "spaces": " / .png", "dots": "./././cat/x.png",
        "only suffix": "cat/.png", "escape codes": "\x1b[2Jcat/x.png", "empty part": "cat//x.png",
        "trailing dots": "cat.../x.png", "colon": "cat:x/y.png", "surrogates": "\udcff\udcfe/x.png",
    }  # fmt: skip
    made = {
        f"name: {what}": archive(
            lambda tar, name=name: tar.addfile(  # type: ignore[misc]
                member(name, size=len(png_file)), io.BytesIO(png_file)
            )
        )
        for what, name in names.items()
    }
    treasure = str(outside / "treasure.txt")
    for what, kind, target in (
        ("symlink", tarfile.SYMTYPE, treasure), ("hard link", tarfile.LNKTYPE, treasure),
        ("link to itself", tarfile.SYMTYPE, "x.png"), ("link up", tarfile.LNKTYPE, "../../x"),
        ("device", tarfile.CHRTYPE, ""), ("block device", tarfile.BLKTYPE, ""),
        ("fifo", tarfile.FIFOTYPE, ""), ("folder", tarfile.DIRTYPE, ""),
        ("contiguous", tarfile.CONTTYPE, ""), ("unknown", b"Z", ""),
    ):  # fmt: skip
        made[what] = archive(
            lambda tar, k=kind, t=target: tar.addfile(  # type: ignore[misc]
                member("cat/x.png", type=k, linkname=t, devmajor=1, devminor=3)
            )
        )
    header = bytearray(made["folder"])
    whole = archive(lambda tar: tar.addfile(member("cat/x.png", size=4), io.BytesIO(b"1234")))
    for size in (2**40, 2**62, -1):
        info = member("cat/x.png", size=max(size, 0))
        block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        if size < 0:
            block[124:136] = b"\xff" * 12
            block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:512]))
        made[f"declared size {size}"] = bytes(block) + bytes(1024)
    sparse = member("cat/x.png", size=512)
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0",
                          "GNU.sparse.realsize": str(2**50)}  # fmt: skip
    made |= {
        "sparse": archive(lambda tar: tar.addfile(sparse, io.BytesIO(b"1\n0\n9\n".ljust(512)))),
        "many empty members": archive(
            lambda tar: [*map(tar.addfile, (member(f"c{i % 7}/{i}.png") for i in range(3_000)))]
        ),
        "twice": archive(
            lambda tar: [*map(
                tar.addfile, [member("cat/x.png", size=len(png_file))] * 2,
                [io.BytesIO(png_file), io.BytesIO(png_file[::-1])],
            )]
        ),
        "gzip bomb": gzip.compress(bytes(2**28), 1), "bzip2 bomb": bz2.compress(bytes(2**25), 1),
        "gzip bomb of a tar": gzip.compress(
            member("cat/x.png", size=2**34).tobuf() + bytes(2**28), 1
        ),
        "cut": whole[:400], "header of rubbish": b"x" * 512, "blank": bytes(10240), "empty": b"",
        "header alone": bytes(header[:512]), "gzip of nothing": gzip.compress(b""),
        "gzip that is cut": gzip.compress(whole)[:-9], "xz magic": b"\xfd7zXZ\x00 rubbish",
        "lzma": lzma.compress(whole, lzma.FORMAT_ALONE), "zip": b"PK\x03\x04" + bytes(40),
        "pax of rubbish": archive(
            lambda tar: tar.addfile(member("cat/x.png", pax_headers={"size": "many"})), "w"),
        "pax with a huge size": archive(
            lambda tar: tar.addfile(member("cat/x.png", pax_headers={"size": str(10**30)})), "w"),
    }  # fmt: skip
    packed = lzma.compress(whole)
    for place in range(6, len(packed), 3):  # what comes before says that it is xz
        made[f"xz, byte {place} altered"] = (
            packed[:place] + bytes([packed[place] ^ 255]) + packed[place + 1 :]
        )
    return made


def test_archives(tmp_path: Path, record_property: Recorder) -> None:
    room = Room(tmp_path)
    attempts = []
    for number, (name, data) in enumerate(archives(room.outside).items()):
        path = room.file(f"{number}.tar", data)
        for split in ("all", "train"):
            opened = partial(open_dataset, path, split, img_size=16, on_error="skip")
            attempts.append(Attempt(f"{name}: {split}", opened))
    attempts.append(
        Attempt("evitlab evaluate", command(
            "evaluate", "efficientvit_m0_cifar10", "--data", room.target / "0.tar"))
    )  # fmt: skip
    outcomes = room.attempt(attempts)
    tabled(record_property, "archives: names, links, devices, bombs", outcomes)


def test_folders(tmp_path: Path, record_property: Recorder) -> None:
    """What may lie where an image is expected."""
    room = Room(tmp_path)
    makers: dict[str, Callable[[Path], object]] = {
        "a folder": lambda path: path.mkdir(),
        "a fifo": lambda path: os.mkfifo(path),
        "a broken link": lambda path: path.symlink_to("nowhere"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a link to a device": lambda path: path.symlink_to("/dev/zero"),
        "a link to a device that waits": lambda path: path.symlink_to("/dev/tty"),
        "a link to the outside": lambda path: path.symlink_to(room.outside / "treasure.txt"),
        "an empty file": lambda path: path.write_bytes(b""),
        "a sparse file of 1 TiB": lambda path: os.truncate(_touched(path), 2**40),
    }
    attempts = []
    for name, make in makers.items():
        folder = room.target / name
        room.file(f"{name}/cat/good.png", blank(8, 8))
        room.file(f"{name}/dog/good.png", blank(8, 8))
        make(folder / "cat" / "bad.jpg")
        for how in ("skip", "raise"):
            opened = partial(open_dataset, folder, "all", img_size=16, on_error=how)
            attempts.append(Attempt(f"{name}: {how}", opened))
        frames = partial(lambda folder: list(Frames([folder], on_error="skip")), folder)
        attempts.append(Attempt(f"{name}: frames", frames))
    loop = room.target / "loop"
    room.file("loop/cat/good.png", blank(8, 8))
    (loop / "cat" / "again").symlink_to(loop, target_is_directory=True)
    attempts.append(Attempt("folders in a circle", partial(_opens_one, loop)))
    for path in ("\0", "x" * 5000, "", "/dev/null", "/dev/zero", "/proc/self/mem", "~nobody/x"):
        opened = partial(open_dataset, path, "all", img_size=16)
        attempts.append(Attempt(f"path {path[:20]!r}", opened))
    outcomes = room.attempt(attempts)
    tabled(record_property, "image folders: links, pipes, devices, circles", outcomes)
    found = {one.name: one.kind for one in outcomes}
    assert all(found[f"{name}: skip"] == "accepted" for name in makers), found


def _opens_one(folder: Path) -> None:
    assert len(open_dataset(folder, "all", img_size=16)) == 1


def _touched(path: Path) -> Path:
    path.touch()
    return path
