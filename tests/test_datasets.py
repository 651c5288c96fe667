"""Data sets: decoding by hand-made files, each way of opening, and each mistake by name."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from evitlab.datasets import (
    NAMED_SETS,
    Dataset,
    StreamingDataset,
    default_dataset_name,
    embedded,
    open_dataset,
    photograph,
)
from evitlab.datasets.decoding import decode_all, decode_image, fit_image, jpeg_quality
from evitlab.datasets.sources import stratified
from evitlab.datasets.streaming import random_resized_box
from evitlab.training.augment import erase

RED, GREEN, BLUE = (200, 30, 40), (10, 180, 60), (20, 40, 220)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(color: tuple[int, int, int], size: tuple[int, int] = (12, 8)) -> Image.Image:
    """One colour; `size` is (width, height), as Pillow has it."""
    return Image.new("RGB", size, color)


def numbered(number: int) -> bytes:
    """A picture that says its number in every pixel."""
    return encode(plain((number, 0, 0)))


def write_parquet(
    path: Path,
    images: list[bytes],
    labels: list[int],
    *,
    image: str = "image",
    label: str = "label",
    names: list[str] | None = None,
    row_group_size: int = 3,
) -> None:
    struct = pa.array([{"bytes": data, "path": None} for data in images])
    table = pa.table({image: struct, label: pa.array(labels)})
    if names:
        info = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)


def write_folder(root: Path, counts: dict[str, int]) -> Path:
    """`counts`: images per folder; the red value tells the image within its folder."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            (root / folder / f"{number:03d}.png").write_bytes(numbered(number))
    return root


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder."""
    monkeypatch.setenv("EVITLAB_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def reds(images: Tensor) -> list[int]:
    return [int(value) for value in images[:, 0, 0, 0]]


# Decoding


def test_grey_palette_and_bilevel_become_rgb() -> None:
    assert decode_image(encode(Image.new("L", (3, 2), 77))).getpixel((0, 0)) == (77, 77, 77)
    assert decode_image(encode(Image.new("1", (3, 2), 1))).getpixel((2, 1)) == (255, 255, 255)
    palette = plain(RED).convert("P", palette=Image.Palette.ADAPTIVE)
    assert decode_image(encode(palette)).getpixel((0, 0)) == RED


def test_cmyk_becomes_rgb() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = decode_image(encode(cmyk, "JPEG", quality=95)).getpixel((8, 8))
    assert isinstance(red, tuple) and red[0] > 245 and max(red[1:]) < 10


def test_transparency_is_laid_over_white() -> None:
    layer = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    layer.putpixel((1, 0), (0, 0, 0, 0))
    image = decode_image(encode(layer))
    assert (image.getpixel((0, 0)), image.getpixel((1, 0))) == ((200, 0, 0), (255, 255, 255))
    grey = Image.new("LA", (1, 1), (100, 0))
    assert decode_image(encode(grey)).getpixel((0, 0)) == (255, 255, 255)
    palette = plain(RED, (2, 2)).quantize(2)
    keyed = encode(palette, transparency=bytes([0] * 2))
    assert decode_image(keyed).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut(kind: str) -> None:
    levels = np.array([[0, 257, 32768, 65535]], np.uint16)
    image = decode_image(encode(Image.fromarray(levels), kind))
    assert [image.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 128, 255)]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(kind: str) -> None:
    image = Image.new("RGB", (16, 8), BLUE)
    image.paste(RED, (0, 0, 8, 8))  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: left becomes up
    upright = decode_image(encode(image, kind, exif=exif.tobytes()))
    assert upright.size == (8, 16)
    assert np.abs(np.array(upright.getpixel((4, 2))) - RED).max() < 30
    assert np.abs(np.array(upright.getpixel((4, 13))) - BLUE).max() < 30


def test_corrupt_bytes_are_named() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for kind in ("PNG", "JPEG"):
        whole = encode(Image.fromarray(noise), kind)
        with pytest.raises(ValueError, match="cats/tom.jpg: cannot be decoded"):
            decode_image(whole[: len(whole) // 2], where="cats/tom.jpg")
    for data in (b"", b"no image", b"\xff\xd8\xff"):
        with pytest.raises(ValueError, match="cats/tom.jpg: "):
            decode_image(data, where="cats/tom.jpg")


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="floating-point"):
        decode_image(encode(Image.new("F", (2, 2), 0.5), "TIFF"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 9_000), (15_000, 12_000)])
def test_decompression_bomb_is_refused(size: tuple[int, int]) -> None:
    """Pillow itself only warns of the first."""
    bomb = encode(Image.new("1", size))
    assert len(bomb) < 100_000
    with pytest.raises(ValueError, match="bomb.png: cannot be decoded"):
        decode_image(bomb, where="bomb.png")


def test_fit_covers_and_cuts_the_centre() -> None:
    image = Image.new("RGB", (300, 100), BLUE)
    image.paste(RED, (100, 0, 200, 100))  # the middle third
    fitted = fit_image(image, (50, 50))
    assert fitted.shape == (50, 50, 3) and (fitted[:, 3:-3] == RED).all()
    assert fit_image(image, None).shape == (100, 300, 3)
    assert fit_image(plain(RED, (10, 10)), (24, 32)).shape == (24, 32, 3)


def test_fit_as_in_the_papers_evaluation() -> None:
    """Resize 224 to 256, then the centre: by torchvision's rule, here spelled out in Pillow."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (281, 500, 3), np.uint8))
    resized = image.resize((int(256 * 500 / 281), 256), Image.Resampling.BICUBIC)
    left = round((resized.width - 224) / 2)
    expected = np.asarray(resized)[16:240, left : left + 224]
    assert np.array_equal(fit_image(image, (224, 224), crop_ratio=224 / 256), expected)


def test_decode_all_keeps_the_order_over_many_chunks() -> None:
    files = [numbered(number % 256) for number in range(300)]
    images, kept = decode_all(300, lambda index: (files[index], str(index)))
    assert images.shape == (300, 3, 8, 12)
    assert images[:, 0, 0, 0].tolist() == [n % 256 for n in range(300)]
    assert kept.tolist() == list(range(300))


def test_jpeg_quality_is_read_from_the_tables() -> None:
    for quality in (30, 75, 90):
        assert jpeg_quality(encode(plain(RED), "JPEG", quality=quality)) == quality
    assert jpeg_quality(encode(plain(RED))) is None


# The stratified choice


def test_stratified_keeps_proportions() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    chosen = stratified(labels, 32)
    assert np.bincount(labels[chosen]).tolist() == [20, 10, 2]
    assert (np.diff(chosen) > 0).all()
    assert not np.array_equal(chosen, stratified(labels, 32, seed=1))
    assert stratified(labels, 160).tolist() == list(range(160))
    assert stratified(labels, 0).tolist() == []


def test_stratified_with_fewer_images_than_classes() -> None:
    chosen = stratified(np.arange(100), 20)
    assert len(set(chosen.tolist())) == 20 and np.diff(chosen).max() <= 9


# Named sets


def test_named_set_from_hub_layout(home: Path) -> None:
    for split, count in (("train", 7), ("test", 4)):
        write_parquet(
            home / "cifar10" / "plain_text" / f"{split}-00000-of-00001.parquet",
            [numbered(number) for number in range(count)],
            [number % 10 for number in range(count)],
            image="img",
            names=[f"name {n}" for n in range(10)],
        )
    train = open_dataset("cifar10", "train")
    assert isinstance(train, Dataset)
    assert (train.name, train.title, train.split) == ("cifar10", "CIFAR-10", "train")
    assert reds(train.images) == list(range(7)) and train.labels.tolist() == list(range(7))
    assert train.class_names[3] == "name 3" and train.num_classes == 10
    assert train.images.dtype == torch.uint8 and train.img_size == (8, 12)
    assert open_dataset("cifar10", "val").split == "test", "there is no other held-out split"
    assert default_dataset_name() == "cifar10"


def test_title_tells_a_jpeg_copy_and_a_part(home: Path) -> None:
    jpeg = encode(plain(RED), "JPEG", quality=75)
    write_parquet(home / "cifar100" / "test-0.parquet", [jpeg], [5], label="fine_label")
    assert open_dataset("cifar100", "test").title == "CIFAR-100 (JPEG q75)"
    folder = home / "tiny_imagenet"
    write_parquet(folder / "train150-00000-of-00001.parquet", [jpeg] * 400, [*range(200)] * 2)
    assert open_dataset("tiny_imagenet", "train").title == "Tiny-ImageNet (2 per class)"


def test_splits_by_folder_and_by_alias(home: Path) -> None:
    folder = home / "imagenette" / "full_size"
    write_parquet(folder / "train" / "0000.parquet", [numbered(1)], [1])
    write_parquet(folder / "train" / "0001.parquet", [numbered(2)], [2])
    write_parquet(folder / "validation" / "0000.parquet", [numbered(3)], [3])
    write_parquet(home / "imagenette" / "160px" / "train" / "0000.parquet", [numbered(9)], [9])
    train, val = open_dataset("imagenette", "train"), open_dataset("imagenette", "test")
    assert isinstance(train, Dataset) and isinstance(val, Dataset)
    assert reds(train.images) == [1, 2], "both files, but not those of another size"
    assert (val.split, reds(val.images)) == ("val", [3])


def test_class_names_from_each_place(home: Path) -> None:
    folder = home / "cifar10"
    write_parquet(folder / "train.parquet", [numbered(0)], [0])
    assert open_dataset("cifar10", "train").class_names == tuple("0123456789")
    letters = list("abcdefghij")
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": letters}, protocol=2))
    assert open_dataset("cifar10", "train").class_names == tuple(letters)
    write_parquet(folder / "train.parquet", [numbered(0)], [0], names=list("klmnopqrst"))
    assert open_dataset("cifar10", "train").class_names == tuple("klmnopqrst")
    listing = [{"label": n, "wnid": "n0", "name": f"class {n}"} for n in reversed(range(10))]
    (folder / "classes.json").write_text(json.dumps(listing))
    assert open_dataset("cifar10", "train").class_names[4] == "class 4"


def test_pickled_class_names_cannot_run_code(home: Path) -> None:
    write_parquet(home / "cifar10" / "train.parquet", [numbered(0)], [0])
    (home / "cifar10" / "batches.meta").write_bytes(pickle.dumps({"label_names": Path("x")}))
    with pytest.raises(ValueError, match="batches.meta: refused"):
        open_dataset("cifar10", "train")


def test_absent_set_says_where_to_put_it(home: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        open_dataset("cifar10", "train")
    message = str(error.value)
    assert str(home / "cifar10") in message and "train-*.parquet" in message
    assert "EVITLAB_DATA" in message and "\n" not in message
    assert default_dataset_name() == "embedded"


def test_incomplete_series_counts_as_absent(home: Path) -> None:
    path = home / "mini_imagenet" / "data" / "train-00000-of-00002.parquet"
    write_parquet(path, [numbered(0)], [0])
    with pytest.raises(FileNotFoundError, match="no complete train split"):
        open_dataset("mini_imagenet", "train")


class FakeHub:
    """A repository of the Hub with the given files; remembers what was asked for."""

    def __init__(self, files: list[str]) -> None:
        self.files = files
        self.fetched: list[str] = []

    def dataset_info(self, repo: str, **options: Any) -> Any:
        self.repo = repo
        siblings = [type("Sibling", (), {"rfilename": name})() for name in self.files]
        return type("Info", (), {"siblings": siblings})()

    def snapshot_download(
        self, repo: str, *, allow_patterns: list[str], local_dir: Path, **options: Any
    ) -> None:
        self.fetched += allow_patterns
        for name in allow_patterns:
            write_parquet(local_dir / name, [numbered(7)], [7])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], FakeHub]:
    def install(files: list[str]) -> FakeHub:
        fake = FakeHub(files)
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
        monkeypatch.setattr("huggingface_hub.snapshot_download", fake.snapshot_download)
        return fake

    return install


def test_fetches_the_wanted_split_only(home: Path, hub: Callable[[list[str]], FakeHub]) -> None:
    data = [f"data/train-0000{n}-of-00002.parquet" for n in range(2)]
    held_out = "data/validation-00000-of-00001.parquet"
    fake = hub(["README.md", *data, held_out, "data/test-0.parquet"])
    val = open_dataset("imagenet", "test")
    assert val.split == "val", "ImageNet's test split has no labels"
    assert fake.fetched == [held_out]
    assert fake.repo == NAMED_SETS["imagenet"].repo
    assert len(open_dataset("imagenet", "train")) == 2 and fake.fetched[1:] == data
    open_dataset("imagenet", "train")
    assert len(fake.fetched) == 3, "what is there is not fetched again"


def test_default_is_cifar_where_it_can_be_fetched(
    home: Path, hub: Callable[[list[str]], FakeHub]
) -> None:
    hub(["plain_text/train-00000-of-00001.parquet"])
    assert default_dataset_name() == "cifar10"


# Paths


def test_folder_without_splits_is_split_by_class(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets", {"dog": 20, "cat": 10})
    train, val = open_dataset(root, "train"), open_dataset(root, "val")
    assert isinstance(train, Dataset) and isinstance(val, Dataset)
    assert train.class_names == ("cat", "dog") and train.title == "pets"
    assert train.labels.bincount().tolist() == [8, 16] and val.labels.bincount().tolist() == [2, 4]
    seen = [(label, red) for part in (train, val) for label, red in zip(
        part.labels.tolist(), reds(part.images), strict=True)]
    assert len(set(seen)) == 30, "each image in one of the two"
    assert open_dataset(root, "test").labels.tolist() == val.labels.tolist()
    assert len(open_dataset(root, "all")) == 30


def test_folder_with_splits(tmp_path: Path) -> None:
    counts = {"train/cat": 3, "train/dog": 2, "valid/dog": 4, "train/dog/young": 1}
    root = write_folder(tmp_path / "pets", counts)
    train, val = open_dataset(root, "train"), open_dataset(root, "test")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert val.class_names == ("cat", "dog") and val.labels.tolist() == [1] * 4
    assert val.split == "val"


def test_folder_whose_class_is_called_train(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "vehicles", {"car": 5, "train": 5})
    assert open_dataset(root, "train").class_names == ("car", "train")


@pytest.mark.parametrize("packed", [False, True])
def test_folders_beside_the_splits_are_no_classes(tmp_path: Path, packed: bool) -> None:
    counts = {"train/cat": 3, "train/dog": 2, "test": 4, "unlabeled/x": 1, "extra": 1}
    root = write_folder(tmp_path / "pets", counts)
    path = root
    if packed:
        path = tmp_path / "pets.tar"
        with tarfile.open(path, "w") as tar:
            tar.add(root, arcname="pets")
    for split in ("train", "all"):
        data = open_dataset(path, split)
        assert isinstance(data, Dataset)
        assert data.class_names == ("cat", "dog")
        assert (data.labels.tolist(), reds(data.images)) == ([0, 0, 0, 1, 1], [0, 1, 2, 0, 1])
    with pytest.raises(ValueError, match=r"split: .* has train, got 'test'"):
        open_dataset(path, "test")


def test_image_outside_the_classes_of_a_split_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets", {"train/cat": 2})
    (root / "train" / "stray.png").write_bytes(numbered(0))
    with pytest.raises(ValueError, match=r"got 'train/stray.png' outside a class folder"):
        open_dataset(root, "train")


def test_photographs_without_class_folders_open_as_one_class(tmp_path: Path) -> None:
    root = tmp_path / "holidays"
    root.mkdir()
    for i in range(3):
        (root / f"{i}.png").write_bytes(numbered(i))
    data = open_dataset(root, "all")
    assert isinstance(data, Dataset)
    assert (data.class_names, data.labels.tolist()) == (("holidays",), [0, 0, 0])
    assert reds(data.images) == [0, 1, 2]
    for split in ("train", "val"):
        with pytest.raises(ValueError, match="outside a class folder"):
            open_dataset(root, split)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", ["", "train/"])
def test_hidden_folders_are_no_classes(tmp_path: Path, packed: bool, below: str) -> None:
    # The data may themselves lie in a hidden folder.
    hidden = (".ipynb_checkpoints", ".git/objects", "__MACOSX/cat", "cat/.thumbnails")
    counts = {f"{below}{folder}": 1 for folder in ("cat", "dog", *hidden)}
    path = root = write_folder(tmp_path / ".cache" / "pets", counts)
    if packed:
        path = tmp_path / "pets.tar"
        with tarfile.open(path, "w") as tar:
            tar.add(root, arcname=".")
    data = open_dataset(path, "all")
    assert (data.class_names, data.labels.tolist()) == (("cat", "dog"), [0, 1])


def test_stray_and_hidden_files_are_ignored(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets", {"cat": 1})
    (root / "cat" / "._000.png").write_bytes(b"left by macOS")
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / "cat" / "loud.JPG").write_bytes(encode(plain(RED), "JPEG"))
    assert len(open_dataset(root, "all")) == 2


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("prefix", ["", "./", "outer/inner/"])
def test_tar_reads_like_the_folder(tmp_path: Path, mode: str, prefix: str) -> None:
    root = write_folder(tmp_path / "pets", {"cat": 6, "dog": 4})
    path = tmp_path / "pets.tar"
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for folder in ("dog", "cat"):
            tar.add(root / folder, arcname=f"{prefix}{folder}")
    folder_set, tar_set = open_dataset(root, "train"), open_dataset(path, "train")
    assert isinstance(folder_set, Dataset) and isinstance(tar_set, Dataset)
    assert torch.equal(folder_set.images, tar_set.images)
    assert torch.equal(folder_set.labels, tar_set.labels)
    assert folder_set.class_names == tar_set.class_names
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pets", "pets.tar"], "nothing extracted"


def test_tar_with_splits_links_and_bad_names(tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (
            ("set/train/cat/a.png", tarfile.REGTYPE),
            ("set/val/cat/../cat/b.png", tarfile.REGTYPE),
            ("set/train/cat/link.png", tarfile.SYMTYPE),
            ("set/train/cat/device.png", tarfile.CHRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            data = numbered(5) if kind == tarfile.REGTYPE else b""
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert len(open_dataset(path, "train")) == 1


def test_broken_tar_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pets.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(write_folder(tmp_path / "pets", {"cat": 30}), arcname="pets")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"pets.tar.gz: neither .* nor a tar"):
        open_dataset(path, "all")


def test_single_parquet_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "mine.parquet", [numbered(n) for n in range(10)], [0, 1] * 5)
    train, val = (open_dataset(tmp_path / "mine.parquet", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (8, 2) and val.labels.tolist().count(0) == 1
    write_parquet(tmp_path / "two" / "train-0.parquet", [numbered(1)], [0])
    write_parquet(tmp_path / "two" / "test-0.parquet", [numbered(2)], [0])
    for path in (tmp_path / "two", tmp_path / "two" / "train-0.parquet"):
        test = open_dataset(path, "test")
        assert isinstance(test, Dataset) and reds(test.images) == [2]


# Options


def test_limit_is_stratified_and_reads_no_more(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets", {"cat": 30, "dog": 10})
    limited = open_dataset(root, "all", limit=8)
    assert limited.labels.tolist() == [0] * 6 + [1] * 2
    assert len(open_dataset(root, "all", limit=1000)) == 40


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"image": "picture"}, "expected the columns of train-0.parquet, got others"),
        ({"label": "fine_label"}, "expected the columns of train-0.parquet, got others"),
        ({"label": "kind"}, r"expected an integer label column \(.*got columns image, kind"),
    ],
)
def test_parquet_files_of_one_set_have_the_same_columns(
    tmp_path: Path, second: dict[str, Any], message: str
) -> None:
    pictures = [numbered(n) for n in range(3)]
    write_parquet(tmp_path / "train-0.parquet", pictures, [0, 1, 0])
    write_parquet(tmp_path / "train-1.parquet", pictures, [0, 1, 0], **second)
    with pytest.raises(ValueError, match=rf"train-1\.parquet: {message}"):
        open_dataset(tmp_path, "train")


def test_corrupt_file_is_raised_or_skipped(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    (root / "dog" / "001.png").write_bytes(numbered(1)[:40])
    with pytest.raises(ValueError, match=r"dog.001\.png: "):
        open_dataset(root, "all")
    data = open_dataset(root, "all", on_error="skip")
    assert isinstance(data, Dataset)
    assert (data.skipped, data.labels.tolist()) == (1, [0, 0, 0, 1, 1])
    assert reds(data.images) == [0, 1, 2, 0, 2]


@pytest.mark.parametrize("row", [0, 1])
def test_corrupt_row_is_named(home: Path, row: int) -> None:
    images = [numbered(0), numbered(1), numbered(2)]
    images[row] = b"broken"
    write_parquet(home / "cifar10" / "train.parquet", images, [0, 1, 2])
    with pytest.raises(ValueError, match=rf"CIFAR-10 \(train\), row {row}: not an image"):
        open_dataset("cifar10", "train")


@pytest.mark.parametrize("label", [10, -1])
def test_label_out_of_range_is_named(home: Path, label: int) -> None:
    write_parquet(home / "cifar10" / "train.parquet", [numbered(0)] * 2, [3, label])
    expected = rf"cifar10 \(train\): label {label} is outside 0..9 \(10 classes\)"
    with pytest.raises(ValueError, match=expected):
        open_dataset("cifar10", "train")


def test_mistakes_are_explained(tmp_path: Path, home: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "a.png").write_bytes(numbered(0))
    mixed = write_folder(tmp_path / "mixed", {"cat": 1})
    (mixed / "cat" / "big.png").write_bytes(encode(plain(RED, (50, 40))))
    write_parquet(tmp_path / "odd.parquet", [numbered(0)], [0], label="species")
    split = write_folder(tmp_path / "split", {"train/cat": 1})
    (tmp_path / "text.txt").write_text("hello")
    for arguments, expected in (
        ((empty, "train"), rf"{empty}: no images found; accepted are .*\.jpeg"),
        ((flat, "train"), r"expected <class>/<file>.*'a.png' outside a class folder"),
        ((mixed, "all"), r"img_size: the images differ in size \(8x12, then 40x50 in .*big.png"),
        ((split, "val"), r"split: .*split has train, got 'val'"),
        ((tmp_path / "odd.parquet", "train"), r"integer label column.*got columns image, species"),
        ((tmp_path / "text.txt", "train"), r"text.txt: neither a folder"),
        (("cifar11", "train"), r"'cifar11' is neither.*closest name: 'cifar10'"),
        (("embedded", "dev"), r"split: expected one of train, val, test, got 'dev'"),
    ):
        with pytest.raises(ValueError, match=expected):
            open_dataset(*arguments)
    sizes: list[Any] = [0, "32", 32.5, (32, 32.5), ("3", "2"), (8, 8, 8)]
    for size in sizes:
        with pytest.raises(ValueError, match="img_size: expected a positive int"):
            open_dataset("embedded", "val", img_size=size)
    limits: list[Any] = [0, 2.5, "2"]
    for limit in limits:
        with pytest.raises(ValueError, match="limit: expected a positive"):
            open_dataset("embedded", "val", limit=limit)


# In memory


def small_dataset(**changes: Any) -> Dataset:
    images = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 3, 2, 2)
    values: dict[str, Any] = {
        "name": "toy",
        "title": "Toy",
        "split": "train",
        "images": images,
        "labels": torch.arange(20) % 4,
        "class_names": ("a", "b", "c", "d"),
    }
    return Dataset(**{**values, **changes})


def test_batches_follow_the_order() -> None:
    order = torch.tensor([3, 3, 19, 0, 7])
    batches = list(small_dataset().batches(order, 2))
    assert [reds(images) for images, _ in batches] == [[3, 3], [19, 0], [7]]
    assert [labels.tolist() for _, labels in batches] == [[3, 3], [3, 0], [3]]
    assert list(small_dataset().batches(order[:0], 2)) == []


def test_subset_keeps_proportions_and_masks() -> None:
    data = small_dataset(masks=torch.arange(20)[:, None, None].expand(20, 2, 2) % 2 == 0)
    part = data.subset(8)
    assert part.labels.bincount().tolist() == [2, 2, 2, 2] and part.masks is not None
    assert torch.equal(part.masks[:, 0, 0], part.images[:, 0, 0, 0] % 2 == 0)
    assert data.subset(99) is data
    assert not torch.equal(part.images, data.subset(8, seed=1).images)
    image, label = data[5]
    assert image.shape == (3, 2, 2) and label == 1


def test_dataset_checks_its_parts() -> None:
    with pytest.raises(ValueError, match="images: expected uint8"):
        small_dataset(images=torch.zeros(20, 3, 2, 2))
    with pytest.raises(ValueError, match=r"labels: expected int64 \[20\]"):
        small_dataset(labels=torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"toy \(train\): label 3 is outside 0..2 \(3 classes\)"):
        small_dataset(class_names=("a", "b", "c"))


def test_erasing_does_not_depend_on_the_memory_layout() -> None:
    plain_layout, last = (
        torch.full((6, 3, 8, 10), 50.0).contiguous(memory_format=layout)
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    for pixels in (plain_layout, last):
        erase(pixels, 1.0, torch.Generator().manual_seed(0))
    assert (last != 50.0).flatten(1).any(1).all() and torch.equal(last, plain_layout)
    assert last.is_contiguous(memory_format=torch.channels_last)


# Streaming


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of larger pictures of several sizes."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for folder in ("cat", "dog"):
        (root / folder).mkdir()
        for number in range(5):
            coarse = rng.integers(0, 256, (4, 5, 3), np.uint8)
            image = Image.fromarray(coarse).resize((70 + 9 * number, 60), Image.Resampling.BICUBIC)
            image.save(root / folder / f"{number}.png")
    return root


def streamed(photos: Path, **options: Any) -> StreamingDataset:
    data = open_dataset(photos, "all", img_size=32, streaming=True, **options)
    assert isinstance(data, StreamingDataset)
    return data


def all_batches(data: StreamingDataset, workers: int, **options: Any) -> list[Tensor]:
    order = torch.tensor([0, 4, 4, 9, 2, 7, 4])
    batches = replace(data, num_workers=workers).batches(order, 3, **options)
    return [tensor for batch in batches for tensor in batch]


def test_stream_does_not_depend_on_the_workers(photos: Path) -> None:
    data = streamed(photos)
    alone = all_batches(data, 0, train=True, seed=3)
    together = all_batches(data, 2, train=True, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert [tuple(images.shape) for images in alone[::2]] == [(3, 3, 32, 32)] * 2 + [(1, 3, 32, 32)]
    assert torch.cat(alone[1::2]).tolist() == [0, 0, 0, 1, 0, 1, 0]


def test_stream_crops_anew_at_each_place_and_seed(photos: Path) -> None:
    data = streamed(photos)
    images = torch.cat(all_batches(data, 0, train=True, seed=3)[::2])
    assert not torch.equal(images[1], images[2]), "the same index twice gets two crops"
    other = torch.cat(all_batches(data, 0, train=True, seed=4)[::2])
    assert not torch.equal(images[0], other[0])


def test_stream_evaluates_on_the_centre(photos: Path) -> None:
    data = streamed(photos)
    images = torch.cat(all_batches(data, 0)[::2])
    with Image.open(photos / "cat" / "0.png") as image:
        expected = torch.from_numpy(fit_image(image, (32, 32), crop_ratio=224 / 256).copy())
    assert torch.equal(images[0], expected.permute(2, 0, 1)) and torch.equal(images[0], data[0][0])
    assert torch.equal(images[1], images[2])


def test_stream_leaves_the_global_generator_alone(photos: Path) -> None:
    before = torch.get_rng_state()
    all_batches(streamed(photos), 0, train=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_stream_names_or_skips_a_corrupt_file(photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(photos, broken)
    (broken / "cat" / "4.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"^\S*cat.4\.png: not an image file \(6 bytes\)$"):
        all_batches(streamed(broken), 2)
    data = streamed(broken, on_error="skip")
    order = torch.tensor([0, 4, 4, 9])
    sizes = [len(labels) for _, labels in replace(data, num_workers=0).batches(order, 3)]
    assert sizes == [1, 1]


def test_a_disk_that_fails_is_told_and_skipped_as_a_corrupt_file(
    photos: Path,
) -> None:
    whole: Any = streamed(photos, on_error="skip")

    def read(index: int) -> tuple[bytes, str]:
        if index == 4:
            raise OSError(5, "Input/output error", "4.png")
        return whole.source.read(index)

    data: Any = replace(whole, num_workers=0, source=replace(whole.source, read=read))
    sizes = [len(labels) for _, labels in data.batches(torch.tensor([0, 4, 4, 9]), 3)]
    assert sizes == [1, 1] and data.skipped == 1
    with pytest.raises(ValueError, match=r"Input/output error: '4.png'$"):
        all_batches(replace(data, on_error="raise"), 2)


def test_stream_counts_what_it_skips(photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(photos, broken)
    (broken / "cat" / "4.png").write_bytes(b"broken")
    data = streamed(broken, on_error="skip")
    assert data.skipped == 0
    list(data.batches(torch.tensor([4, 4, 1]), 3))
    assert data.skipped == 1


def test_stream_has_the_interface_of_the_dataset(photos: Path) -> None:
    data, stored = streamed(photos), open_dataset(photos, "all", img_size=32)
    for name in ("name", "title", "split", "class_names", "num_classes", "img_size", "skipped"):
        assert getattr(data, name) == getattr(stored, name), name
    assert torch.equal(data.labels, stored.labels) and len(data) == len(stored)
    assert data.crops_on_load and not stored.crops_on_load
    assert data.subset(4).labels.tolist() == stored.subset(4).labels.tolist() == [0, 0, 1, 1]


def test_stream_of_parquet_reads_in_any_order(home: Path) -> None:
    folder = home / "cifar10"
    write_parquet(folder / "train.parquet", [numbered(n) for n in range(10)], list(range(10)))
    data = open_dataset("cifar10", "train", img_size=8, streaming=True)
    order = torch.tensor([9, 0, 5, 5, 3])
    assert isinstance(data, StreamingDataset)
    for workers in (0, 1):
        (images, labels), = replace(data, num_workers=workers).batches(order, 8)
        assert reds(images) == labels.tolist() == order.tolist()
    assert len(list((folder / ".arrow").iterdir())) == 1, "copied once"
    assert len(open_dataset("cifar10", "train")) == 10, "the copy is not mistaken for data"


def test_stream_of_changed_parquet_is_copied_anew(home: Path) -> None:
    path = home / "cifar10" / "train.parquet"
    for red in (3, 4):
        write_parquet(path, [numbered(red)] * red, [0] * red)
        data = open_dataset("cifar10", "train", img_size=8, streaming=True)
        assert [len(data), int(data[red - 1][0][0, 0, 0])] == [red, red]


def test_streaming_is_chosen_by_size(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evitlab.datasets.opening.STREAM_ABOVE_BYTES", 10 * 3 * 32 * 32)
    assert isinstance(open_dataset(photos, "all", img_size=32), Dataset)
    assert isinstance(open_dataset(photos, "all", img_size=33), StreamingDataset)
    with pytest.raises(ValueError, match="img_size: expected a size"):
        open_dataset(photos, "all")


def test_opening_a_stream_decodes_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*arguments: Any, **options: Any) -> None:
        raise AssertionError("an image was decoded")

    for module in ("opening", "streaming"):
        monkeypatch.setattr(f"evitlab.datasets.{module}.decode_image", decode)
    data = streamed(photos)
    assert len(data) == 10
    with pytest.raises(AssertionError, match="was decoded"):
        data[0]


def test_random_resized_box_stays_inside() -> None:
    rng = np.random.default_rng(0)
    for size in ((60, 40), (7, 300)):
        for _ in range(200):
            left, top, right, bottom = random_resized_box(size, (0.08, 1.0), rng)
            assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    shares = []
    for _ in range(300):
        left, top, right, bottom = random_resized_box((100, 100), (0.2, 0.5), rng)
        shares.append((right - left) * (bottom - top) / 10_000)
        assert 0.72 < (right - left) / (bottom - top) < 1.38
    assert 0.19 < min(shares) < 0.23 and 0.46 < max(shares) < 0.52


# The embedded set


def test_embedded_is_a_function_of_split_and_index() -> None:
    some = open_dataset("embedded", "val", limit=60)
    assert isinstance(some, Dataset)
    whole, _ = embedded.draw("val", np.arange(2000))
    indices = stratified(embedded.labels_of("val"), 60)
    assert np.array_equal(some.images.numpy(), whole[indices])
    alone, _ = embedded.draw("val", np.array([1234]))
    assert np.array_equal(alone[0], whole[1234])
    other, _ = embedded.draw("train", np.array([1234]))
    assert not np.array_equal(alone, other)


def test_embedded_classes_are_balanced_and_named() -> None:
    for split, size in embedded.SPLIT_SIZES.items():
        assert np.bincount(embedded.labels_of(split)).tolist() == [size // 10] * 10
    data = open_dataset("embedded", "test", limit=40)
    assert data.num_classes == 10 and data.class_names[0] == "disk" and data.title


@pytest.mark.parametrize("size", [32, 224, (48, 64)])
def test_embedded_masks_cover_the_object(size: int | tuple[int, int]) -> None:
    data = open_dataset("embedded", "val", limit=20, img_size=size)
    assert isinstance(data, Dataset) and data.masks is not None
    assert data.img_size == (size if isinstance(size, tuple) else (size, size))
    assert data.masks.shape == (20, *data.img_size)
    height, width = data.img_size
    share = data.masks.float().mean((1, 2)) * (height * width / min(height, width) ** 2)
    assert (share > 0.03).all() and (share < 0.5).all()
    border = torch.cat([data.masks[:, [0, -1]].flatten(1), data.masks[:, :, [0, -1]].flatten(1)], 1)
    assert border.float().mean() < 0.02, "objects lie inside the picture"


def test_embedded_object_differs_from_its_ground() -> None:
    data = open_dataset("embedded", "val", limit=200)
    assert isinstance(data, Dataset) and data.masks is not None
    for image, mask in zip(data.images.float(), data.masks, strict=True):
        gap = image[:, mask].mean(1) - image[:, ~mask].mean(1)
        assert gap.abs().max() > 20


def test_embedded_scene_is_the_same_at_every_size() -> None:
    small = open_dataset("embedded", "val", limit=30)
    large = open_dataset("embedded", "val", limit=30, img_size=128)
    assert isinstance(small, Dataset) and isinstance(large, Dataset)
    shrunk = torch.nn.functional.avg_pool2d(large.images.float(), 4)
    assert (shrunk - small.images.float()).abs().mean() < 4
    assert small.masks is not None and large.masks is not None
    shrunk_masks = torch.nn.functional.avg_pool2d(large.masks.float(), 4) > 0.5
    assert (shrunk_masks == small.masks).float().mean() > 0.985


def test_embedded_class_cannot_be_told_from_colour() -> None:
    """A linear classifier on mean colours stays near chance: the outline alone is the class."""
    data = open_dataset("embedded", "train", limit=2000)
    assert isinstance(data, Dataset)
    features = data.images.float().mean((2, 3)) / 255
    features = torch.cat([features, features**2, torch.ones(2000, 1)], 1)
    targets = torch.nn.functional.one_hot(data.labels, 10).float()
    fit = torch.linalg.lstsq(features[:1500], targets[:1500]).solution
    hits = (features[1500:] @ fit).argmax(1) == data.labels[1500:]
    assert hits.float().mean() < 0.25


def test_photograph() -> None:
    image = photograph()
    assert image.dtype == torch.uint8 and image.shape == (3, 600, 512) and image.is_contiguous()
    assert 50 < image.float().mean() < 200
