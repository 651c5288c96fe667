"""A folder of own images: what is trained, predicted, refused, and shown on the results page."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import ExifTags, Image
from small_runs import no_training, one_line, shapes, tiny_vit, write_folder
from torch import Tensor, nn

from evitlab import (
    RECIPES,
    ClassificationReport,
    Dataset,
    Predictions,
    TrainingRecord,
    classification_report,
    environment_card,
    evaluate,
    load_model,
    open_dataset,
    predict,
)
from evitlab.cli import main
from evitlab.cli.data import training_size
from evitlab.datasets import (
    StreamingDataset,
    common_img_size,
    holds_photographs,
    match_classes,
    without_images,
)
from evitlab.datasets.decoding import decode_image, image_size
from evitlab.figures import class_accuracy, confusion_matrix, results_page
from evitlab.training.checkpoint import save_weights
from evitlab.training.per_class import confusion_matrix as classes_in_cells
from evitlab.training.per_class import report_of
from evitlab.training.recipe import fit_batch

NAMES = ("disk", "square", "triangle")


class ByRed(nn.Module):
    """Sure of the class that an image's red value names."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.classes = classes
        self.pretrained_cfg = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}

    def forward(self, images: Tensor) -> Tensor:
        red = images[:, 0].mean((1, 2)).round().long()
        return 10.0 * nn.functional.one_hot(red, self.classes).float()


def reds(values: list[int], labels: list[int], names: tuple[str, ...] = NAMES) -> Dataset:
    images = torch.zeros(len(values), 3, 4, 4, dtype=torch.uint8)
    images[:, 0] = torch.tensor(values, dtype=torch.uint8)[:, None, None]
    return Dataset("reds", "reds", "val", images, torch.tensor(labels), names)


def cut(data: Dataset, size: int) -> Dataset:
    return dataclasses.replace(data, images=data.images[..., :size, :size])


def report(counts: list[list[int]], names: tuple[str, ...] | None = None) -> ClassificationReport:
    """The report of predictions with this confusion matrix."""
    pairs = [(i, j) for i, row in enumerate(counts) for j, n in enumerate(row) for _ in range(n)]
    labels, predicted = torch.tensor(pairs).unbind(1)
    n = len(pairs)
    predictions = Predictions(
        files=tuple(map(str, range(n))),
        class_names=names or tuple(f"class {k}" for k in range(len(counts))),
        labels=labels,
        ranked=predicted[:, None],
        probabilities=torch.ones(n, 1),
        losses=torch.zeros(n),
        environment=environment_card(dataset="reds"),
    )
    return report_of(predictions, model="m", split="val")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 images to train on, 9 to validate; six of each class differ in size."""
    root = write_folder(
        tmp_path_factory.mktemp("own") / "photos", {"train": shapes(18), "val": shapes(9, "val")}
    )
    for file in root.glob("train/*/?.png"):
        with Image.open(file) as image:
            image.resize((30 + int(file.stem), 40)).save(file)
    return root


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A run over it, of one epoch."""
    out = folder.parent / "run"
    command = ["train", "efficientvit_m0", "--data", str(folder), "--recipe", "finetune"]
    assert main([*command, "--epochs", "1", "--img-size", "32", "--out", str(out)]) == 0
    return out


def test_a_report_worked_by_hand() -> None:
    data = reds([0, 0, 1, 1, 1, 0, 2], [0, 0, 0, 1, 1, 1, 0], (*NAMES[:2], "unseen"))
    found = classification_report(ByRed(), data, batch_size=3)
    assert found.confusion == ((2, 1, 1), (1, 2, 0), (0, 0, 0))
    assert [(row.name, row.n, row.predicted) for row in found.classes] == [
        ("disk", 4, 3), ("square", 3, 3), ("unseen", 0, 1),
    ]  # fmt: skip
    assert [row.accuracy for row in found.classes] == [50, pytest.approx(200 / 3), None]
    assert [row.precision for row in found.classes] == [*[pytest.approx(200 / 3)] * 2, 0]
    assert found.mean_accuracy == pytest.approx((50 + 200 / 3) / 2)
    assert found.accuracy.top1 == pytest.approx(100 * 4 / 7)
    # As many of each: the rarer class's mistake weighs more, so it comes first.
    assert [(pair.true, pair.predicted, pair.count) for pair in found.confused] == [
        ("square", "disk", 1), ("disk", "square", 1), ("disk", "unseen", 1),
    ]  # fmt: skip
    assert found.confused[1].share == 25


def test_a_report_goes_through_json(tmp_path: Path) -> None:
    made = report([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    assert ClassificationReport.load(made.save(tmp_path / "report.json")) == made
    frame = made.to_frame()
    assert frame["n"].tolist() == [4, 2, 0] and frame["accuracy"].isna().tolist()[-1]


def test_a_report_sums_to_the_accuracy_of_evaluate() -> None:
    data = shapes(30)
    torch.manual_seed(1)
    model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 3))
    found, accuracy = classification_report(model, data), evaluate(model, data)
    matrix = torch.tensor(found.confusion)
    assert 100 * int(matrix.diagonal().sum()) / 30 == accuracy.top1 == found.accuracy.top1
    assert matrix.sum(1).tolist() == [10, 10, 10] and matrix.sum() == found.n == accuracy.n


def test_a_report_of_other_classes_is_refused() -> None:
    model: Any = ByRed()
    model.class_names = ("a", "b", "c")
    with pytest.raises(ValueError, match=r"expected the model's 3 classes \(a, b, c, …\), got 3"):
        classification_report(model, reds([0], [0]))
    with pytest.raises(ValueError, match="expected labelled images"):
        evaluate(ByRed(), dataclasses.replace(reds([0], [0]), labelled=False))


def test_a_class_without_a_name_counts_in_no_cell() -> None:
    with pytest.raises(ValueError, match=r"^predicted: expected classes 0\.\.2, .* got 4$"):
        classes_in_cells(torch.tensor([0, 1]), torch.tensor([4, 1]), 3)
    with pytest.raises(ValueError, match=r"^labels: expected classes 0\.\.2, .* got -1$"):
        classes_in_cells(torch.tensor([-1, 1]), torch.tensor([0, 1]), 3)
    found = classes_in_cells(torch.tensor([0, 1, 1]), torch.tensor([2, 1, 1]), 3)
    assert found.tolist() == [[0, 0, 1], [0, 2, 0], [0, 0, 0]]


def test_weights_of_more_classes_than_have_names_have_no_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a confusion matrix they are measured: labels are numbers of their classes."""
    file = tmp_path / "unnamed.safetensors"
    save_weights(tiny_vit(num_classes=5), file)
    command = ["evaluate", str(file), "--data", str(folder)]
    assert main([*command, "--per-class"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    said = "expected the 5 classes of the model, which carries no names, got 3 (disk, square, tri"
    assert line.startswith(f"evitlab: error: data: {said}")
    assert main(command) == 0 and "top-1" in capsys.readouterr().out


def test_predictions_rank_the_classes_and_name_the_files() -> None:
    data = dataclasses.replace(reds([2, 0], [1, 0]), files=("x.png", "y.png"))
    frame = predict(ByRed(), data, batch_size=1).to_frame()
    assert frame[["file", "true", "predicted"]].to_numpy().tolist() == [
        ["x.png", "square", "triangle"], ["y.png", "disk", "disk"],
    ]  # fmt: skip
    sure = np.exp(10) / (np.exp(10) + 2)
    assert frame["probability"].tolist() == pytest.approx([sure] * 2)
    chances = frame[["probability", "probability_2", "probability_3"]]
    assert chances.sum(axis=1).tolist() == pytest.approx([1, 1]) and "predicted_4" not in frame


def test_predictions_without_labels_or_names() -> None:
    unlabelled = dataclasses.replace(reds([2, 0], [0, 0], ("photos",)), labelled=False)
    frame = predict(ByRed(), unlabelled).to_frame()
    assert "true" not in frame and frame["predicted"].tolist() == ["2", "photos"]
    assert frame["file"].tolist() == ["0", "1"]


def test_predictions_leave_out_what_cannot_be_read(tmp_path: Path) -> None:
    write_folder(tmp_path, {"val": shapes(6, "val")})
    broken = tmp_path / "val" / "disk" / "0.png"
    broken.write_bytes(b"broken")
    for streaming in (False, True):
        data = open_dataset(tmp_path, "all", img_size=4, streaming=streaming, on_error="skip")
        if isinstance(data, StreamingDataset):
            data = dataclasses.replace(data, num_workers=0)
        found = predict(ByRed(256), data, batch_size=2)
        assert len(found) == len(found.files) == 5
        assert found.files[0] == "val/disk/3.png" and broken.name not in found.files


def test_classes_are_matched_by_name_in_any_order_and_number() -> None:
    data = reds([1, 2], [0, 1], ("triangle", "disk"))
    matched = match_classes(data, NAMES)
    assert matched.labels.tolist() == [2, 0] and matched.class_names == NAMES
    assert without_images(matched) == ["square"]
    assert match_classes(matched, NAMES) is matched


def test_classes_without_images_need_no_match() -> None:
    data = reds([1, 2], [0, 0], ("disk", "zebra"))
    assert match_classes(data, NAMES).labels.tolist() == [0, 0]


def test_other_names_are_listed() -> None:
    data = reds([1, 2, 0], [0, 1, 2], ("disk", "cat", "dog"))
    with pytest.raises(ValueError) as raised:
        match_classes(data, NAMES)
    assert one_line(raised) == (
        "data: expected only the 3 classes of the weights (disk, square, triangle), got 2 of other "
        "names (cat, dog) in reds; it has no images of square, triangle"
    )


def test_two_classes_of_one_name_are_told_apart_by_order_alone() -> None:
    twice = ("crane", "crane", "disk")
    assert match_classes(reds([0], [1], twice), twice).labels.tolist() == [1]
    with pytest.raises(ValueError, match="got 'crane' twice in the weights"):
        match_classes(reds([0], [0], ("disk", "crane", "crane")), twice)


def test_streams_are_matched_as_well(tmp_path: Path) -> None:
    write_folder(tmp_path, {"val": shapes(6, "val")})
    data = open_dataset(tmp_path, "val", img_size=4, streaming=True)
    matched = match_classes(data, ("triangle", "square", "disk"))
    assert matched.labels.tolist() == [2, 2, 1, 1, 0, 0] and matched[0][1] == 2


def test_the_only_image_of_a_class_is_trained_on(tmp_path: Path) -> None:
    write_folder(tmp_path / "all", {"x": reds([0] * 12, [0] * 6 + [1] * 5 + [2])})
    root = tmp_path / "all" / "x"
    train, val = open_dataset(root, "train"), open_dataset(root, "val")
    assert without_images(train) == [] and without_images(val) == ["triangle"]
    assert len(train) + len(val) == 12


def test_photographs_are_known_from_classes(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    (root / "cat").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(root / "a.png")
    assert holds_photographs(root)
    assert not open_dataset(root, "all").labelled
    Image.new("RGB", (4, 4)).save(root / "cat" / "a.png")
    assert not holds_photographs(root) and not holds_photographs(root / "cat" / "a.png")


def test_the_size_to_train_at(folder: Path, run: Path, tmp_path: Path) -> None:
    """Asked for, else the weights', else the files' own up to 224, else 224."""
    assert common_img_size(folder) is None and common_img_size(folder, "val") == (32, 32)
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    (tmp_path / "wide" / "cat").mkdir(parents=True)
    Image.new("RGB", (640, 480)).save(tmp_path / "wide" / "cat" / "a.png")
    cases: dict[tuple[str, int | None, str | None], tuple[Any, str]] = {
        (str(folder), 48, str(run)): (48, ""),
        (str(folder), None, str(run)): ((32, 32), "32x32 pixels, the size of the weights"),
        (str(folder), None, "timm"): (224, ""),
        (str(folder), None, None): (224, "images of several sizes brought to 224x224"),
        (str(folder / "val"), None, None): (None, ""),
        (str(tmp_path / "wide"), None, None): (224, "images of 480x640 pixels brought to 224x224"),
        ("embedded", None, None): (None, ""),
    }
    for (data, asked, weights), (size, said) in cases.items():
        found = training_size(data, "efficientvit_m0", img_size=asked, weights=weights)
        assert found[0] == size and said in found[1] and bool(said) == bool(found[1]), data


def test_a_file_that_was_not_looked_at_may_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then all are brought to 224; as far as where training begins."""
    begun: list[tuple[int, int]] = []

    def stop(model: nn.Module, data: Dataset, val_data: Dataset, *_: Any, **__: Any) -> None:
        begun.extend([data.img_size, val_data.img_size])
        raise ValueError("not trained here")

    monkeypatch.setattr("evitlab.training.classifier.train", stop)
    monkeypatch.setattr("evitlab.datasets.sizes._LOOKED_AT", 2)
    root = write_folder(tmp_path / "own", {"train": shapes(9), "val": shapes(3, "val")})
    Image.new("RGB", (30, 40)).save(root / "train" / "square" / "1.png")
    assert common_img_size(root) == (32, 32)
    command = ["train", "efficientvit_m0", "--data", str(root), "--recipe", "finetune"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    assert begun == [(224, 224)] * 2
    assert "images of several sizes brought to 224x224: resized" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_of_upright_images(suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    Image.new("RGB", (30, 20)).save(file, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix),
                                    exif=exif)  # fmt: skip
    upright = decode_image(file.getvalue())
    assert image_size(file.getvalue()) == (upright.height, upright.width)
    assert (upright.height > upright.width) == (orientation >= 5)


def test_weights_that_state_no_size_are_refused_in_a_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of a model of timm, whose card has no configuration of ours."""
    file = tmp_path / "peer.safetensors"
    model: Any = nn.Linear(2, 2)
    model.pretrained_cfg = {"architecture": "mobilenetv3_small_100"}
    save_weights(model, file, class_names=("cat", "dog"))
    size, said = training_size(
        str(folder / "val"), "efficientvit_m0", img_size=None, weights=str(file)
    )
    assert (size, said) == (None, "")
    command = ["train", "efficientvit_m0", "--data", str(folder), "--recipe", "finetune"]
    assert main([*command, "--weights", str(file), "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "weights: expected those of efficientvit_m0, got mobilenetv3_small_100 in" in line


def test_a_small_folder_gets_a_small_batch() -> None:
    """Eight steps an epoch or more, and the rate with the root of the batch."""
    recipe = RECIPES["finetune"]
    for images, batch in ((20, 8), (127, 8), (128, 16), (240, 16), (2047, 128)):
        fitted = fit_batch(recipe, images)
        assert fitted.batch_size == batch, images
        assert fitted.lr == pytest.approx(recipe.lr * (batch / recipe.batch_size) ** 0.5)
        assert dataclasses.replace(fitted, batch_size=256, lr=recipe.lr) == recipe
    assert fit_batch(recipe, 2048) is recipe
    scaled = fit_batch(RECIPES["imagenet"], 4096)
    assert (scaled.batch_size, scaled.lr) == (512, RECIPES["imagenet"].lr)  # lr_batch scales it


def test_train_leaves_a_results_page(run: Path, folder: Path) -> None:
    found = ClassificationReport.load(run / "results.json")
    record = TrainingRecord.load(run / "record.json")
    assert (found.class_names, found.n, found.split) == (NAMES, 9, "val")
    assert (found.accuracy.top1, found.accuracy.loss) == (record.final.top1, record.final.loss)
    assert found.model == record.model == "efficientvit_m0_p4"
    with Image.open(run / "results.png") as picture:
        assert min(picture.size) > 1000
    assert (run / "results.svg").stat().st_size > 10_000
    assert record.recipe["batch_size"] == 8


def test_a_finished_run_draws_its_page_again_and_measures_nothing(
    run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run / "results.json").read_bytes()
    (run / "results.png").unlink()
    monkeypatch.setattr("evitlab.training.per_class.predict", None)
    monkeypatch.setattr("evitlab.cli.train._curves", lambda *_: None)  # drawn elsewhere
    command = ["train", "efficientvit_m0", "--data", str(folder), "--recipe", "finetune"]
    with no_training():
        assert main([*command, "--epochs", "1", "--img-size", "32", "--out", str(run)]) == 0
    assert (run / "results.json").read_bytes() == before and (run / "results.png").exists()


def test_evaluate_class_by_class_and_image_by_image(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, table = tmp_path / "report.json", tmp_path / "new" / "predictions.csv"
    command = ["evaluate", str(run), "--data", str(folder), "--per-class", "--json", str(file)]
    assert main([*command, "--predictions", str(table)]) == 0
    found, results = (ClassificationReport.load(path) for path in (file, run / "results.json"))
    assert (found.confusion, found.classes) == (results.confusion, results.classes)
    said = capsys.readouterr().out
    for row in found.classes:
        assert f"{row.name:8}  {row.accuracy:6.2f} % of 3" in said
    assert f"{found.confused[0].true} taken for {found.confused[0].predicted}: " in said
    rows = pd.read_csv(table)
    assert 100 * (rows["true"] == rows["predicted"]).mean() == pytest.approx(found.accuracy.top1)
    assert rows["file"].tolist() == sorted(f"val/{n}/{i}.png" for i, n in enumerate(NAMES * 3))


def test_evaluate_of_images_without_classes_predicts_only(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        Image.new("RGB", (50 + i, 40)).save(photos / f"{i}.jpg")
    table = tmp_path / "p.csv"
    command = ["evaluate", str(run), "--data", str(photos)]
    assert main([*command, "--predictions", str(table)]) == 0
    assert "photos (all), 3 images: no class folders, so no accuracy" in capsys.readouterr().out
    rows = pd.read_csv(table)
    assert "true" not in rows and rows["file"].tolist() == ["0.jpg", "1.jpg", "2.jpg"]
    assert set(rows["predicted"]) <= set(NAMES)
    for options, message in (
        ([], "--data: expected a folder of images for each class, got images directly in"),
        (["--predictions", str(table), "--per-class"], "--per-class: expected labelled images"),
        (["--predictions", str(table), "--json", "x"], "--json: expected labelled images"),
    ):
        assert main([*command, *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def parquet(path: Path, names: list[str], labels: list[int], files: list[Path]) -> Path:
    table = pa.table({"image": [file.read_bytes() for file in files], "label": labels})
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    told = json.dumps({"info": {"features": features}}).encode()
    pq.write_table(table.replace_schema_metadata({b"huggingface": told}), path)
    return path


def test_evaluate_goes_by_the_names_of_classes_not_their_numbers(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same images twice, the second time with the classes in another order."""
    files = sorted(folder.glob("val/*/*.png"))
    turned = [*NAMES[::-1]]
    data = parquet(
        tmp_path / "set.parquet", turned, [turned.index(file.parent.name) for file in files], files
    )
    report_file = tmp_path / "report.json"
    command = ["evaluate", str(run), "--data", str(data), "--split", "all", "--per-class"]
    assert main([*command, "--json", str(report_file)]) == 0
    found = ClassificationReport.load(report_file)
    assert found.confusion == ClassificationReport.load(run / "results.json").confusion
    two = parquet(tmp_path / "two.parquet", ["square", "disk"], [1] * 3, files[:3])
    capsys.readouterr()
    assert main(["evaluate", str(run), "--data", str(two), "--split", "all"]) == 0
    assert "no images of square, triangle" in capsys.readouterr().out


def modes(root: Path) -> Path:
    """Images of every channel count, eight of each of two classes."""
    made: dict[str, Callable[[np.ndarray], Image.Image]] = {
        "grey.png": lambda x: Image.fromarray(x[..., 0]),
        "grey_alpha.png": lambda x: Image.fromarray(x[..., :2], "LA"),
        "rgba.png": lambda x: Image.fromarray(x, "RGBA"),
        "deep.png": lambda x: Image.fromarray(x[..., 0].astype(np.uint16) * 257),
        "cmyk.jpg": lambda x: Image.fromarray(x, "CMYK"),
        "palette.gif": lambda x: Image.fromarray(x[..., :3]).quantize(16),
        "bilevel.png": lambda x: Image.fromarray(x[..., 0]).convert("1"),
        "rgb.webp": lambda x: Image.fromarray(x[..., :3]),
    }
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for file, make in made.items():
                make(rng.integers(0, 256, (40, 36, 4), np.uint8)).save(root / split / name / file)
    return root


@pytest.mark.filterwarnings("ignore:.*mode.*parameter is deprecated:DeprecationWarning")
def test_images_of_other_channel_counts_train_and_predict(tmp_path: Path) -> None:
    root, out, table = modes(tmp_path / "modes"), tmp_path / "run", tmp_path / "p.csv"
    few = ["--recipe", "finetune", "--epochs", "1"]
    assert main(["train", "efficientvit_m0", "--data", str(root), *few, "--out", str(out)]) == 0
    model: Any = load_model(out)
    assert model.config.in_chans == 3 and model.config.img_size == (40, 36)
    command = ["evaluate", str(out), "--data", str(root), "--predictions", str(table)]
    assert main(command) == 0
    assert len(pd.read_csv(table)) == 16


def test_arrays_of_one_channel_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images: expected uint8 \[N, 3, H, W\], got .*1, 4, 4"):
        Dataset("x", "x", "val", torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
                torch.zeros(2).long(), ("a",))  # fmt: skip


def emptied(folder: Path, root: Path, *without: str) -> Path:
    """A copy of the first images, less some folders."""
    for file in folder.glob("*/*/*.png"):
        place = file.relative_to(folder)
        if not any(place.is_relative_to(gone) for gone in without):
            (root / place.parent).mkdir(parents=True, exist_ok=True)
            (root / place).write_bytes(file.read_bytes())
    return root


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "a class without training images": (
        ("train/disk",),
        r"own: val/ has 'disk', which train/ lacks; give each class training images",
    ),
    "one class only": (
        ("train/disk", "val/disk", "train/square", "val/square"),
        r"--data: expected images of at least two classes, got one \('triangle'\) in own",
    ),
    "no training folder": (
        ("train",),
        "split: .*own has val, got 'train'; training needs a folder train/<class> beside it",
    ),
    "no validation folder": (
        ("val",),
        "split: .*own has train, got 'val'; pass its train folder itself to have a fifth",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_folder_that_cannot_be_trained_on(
    mistake: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    without, message = MISTAKES[mistake]
    root = emptied(folder, tmp_path / "own", *without)
    command = ["train", "efficientvit_m0", "--data", str(root), "--recipe", "finetune"]
    with no_training():
        assert main([*command, "--img-size", "32", "--out", str(tmp_path / "run")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("evitlab: error: ")
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos" / "train" / "cat").mkdir(parents=True)
    command = ["train", "efficientvit_m0", "--data", str(tmp_path / "photos")]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "photos: no images found; accepted are .bmp" in line


def test_a_class_without_validation_images_is_said_and_trained(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As far as where training begins."""
    begun: list[Dataset] = []

    def stop(model: nn.Module, data: Dataset, val_data: Dataset, *_: Any, **__: Any) -> None:
        begun.append(val_data)
        raise ValueError("not trained here")

    monkeypatch.setattr("evitlab.training.classifier.train", stop)
    root = emptied(folder, tmp_path / "own", "val/disk")
    command = ["train", "efficientvit_m0", "--data", str(root), "--recipe", "finetune"]
    assert main([*command, "--img-size", "32", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().out
    assert "no validation images of disk: nothing will be known of them" in said
    assert "batches of 8 instead of 256, peak rate 0.00018 instead of 0.001" in said
    assert begun[0].class_names == NAMES and set(begun[0].labels.tolist()) == {1, 2}


def test_validation_images_are_brought_to_the_size_of_the_training_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the training files keep their own size; as far as where training begins."""
    begun: list[tuple[int, int]] = []

    def stop(model: nn.Module, data: Dataset, val_data: Dataset, *_: Any, **__: Any) -> None:
        begun.extend([data.img_size, val_data.img_size])
        raise ValueError("not trained here")

    monkeypatch.setattr("evitlab.training.classifier.train", stop)
    sets = {"train": shapes(18), "val": cut(shapes(6, "val"), 24)}
    root = write_folder(tmp_path / "own", sets)
    command = ["train", "efficientvit_m0", "--data", str(root), "--recipe", "finetune"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    assert open_dataset(root, "val").img_size == (24, 24) and begun == [(32, 32)] * 2


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_the_matrix_writes_counts_and_colours_shares() -> None:
    (axes,) = confusion_matrix(report([[3, 1], [0, 8]], ("cat", "$5 and $10"))).axes
    assert texts(axes) == ["3", "1", "8"]
    assert np.array(axes.images[0].get_array()).tolist() == [[0.75, 0.25], [0, 1]]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["cat", "$5 and $10"]
    assert not any(label.get_parse_math() for label in axes.get_yticklabels())


def test_of_many_classes_the_most_confused_are_shown() -> None:
    counts = np.diag([5] * 30)
    counts[3, 7], counts[20, 21], counts[7, 29] = 9, 4, 2
    (axes,) = confusion_matrix(report(counts.tolist())).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) <= 20 and names == sorted(names, key=lambda name: int(name.split()[1]))
    assert {f"class {k}" for k in (3, 7, 20, 21, 29)} <= set(names)
    assert axes.get_xticklabels()[-1].get_text() == "all others"
    shares = np.array(axes.images[0].get_array())
    assert shares.sum(1).tolist() == pytest.approx([1] * len(names))
    assert axes.get_title(loc="left") == f"Most confused {len(names)} of 30 classes"


def test_classes_are_ranked_from_the_worst() -> None:
    made = report([[1, 3, 0], [0, 4, 0], [0, 0, 0]], NAMES)
    (axes,) = class_accuracy(made).axes
    bars: list[Any] = list(axes.patches)
    assert [bar.get_width() for bar in bars] == [25, 100]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(NAMES)
    assert texts(axes) == ["25 % of 4", "100 % of 4", "no images", "all: 62.5 %"]


def test_of_many_classes_the_worst_and_the_best_are_named() -> None:
    counts = np.zeros((30, 30), int)
    for k in range(30):
        counts[k, k], counts[k, (k + 1) % 30] = k + 1, 30 - k
    (axes,) = class_accuracy(report(counts.tolist())).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [*(f"class {k}" for k in range(10)), "", *(f"class {k}" for k in range(20, 30))]
    assert "… 10 more" in texts(axes)


@pytest.mark.parametrize("classes", [2, 200])
def test_nothing_of_the_page_is_cut_off(run: Path, classes: int) -> None:
    names = tuple(f"{k} of a genus with a very long name, as in ImageNet" for k in range(classes))
    counts = np.eye(classes, dtype=int) * 3 + np.eye(classes, k=1, dtype=int) * 1234
    figure = results_page(TrainingRecord.load(run / "record.json"), report(counts.tolist(), names))
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    box = figure.get_tightbbox(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    assert -0.02 < box.x0 and box.x1 < width / figure.dpi + 0.02
    assert -0.02 < box.y0 and box.y1 < height / figure.dpi + 0.02
