"""`evitlab detect`: what each command leaves behind, and one line for every mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from red_boxes import COLORS, GREY, Box, RedBoxes, painted, painted_set, write_coco

from evitlab.cli import main
from evitlab.models import detector
from evitlab.models.detector import create_detector, load_detector
from evitlab.records.detection import BoxAP, DetectionRecord
from evitlab.training.box_ap import box_ap
from evitlab.training.checkpoint import save_weights

COMMANDS = ("train", "evaluate", "predict", "convert")


def mistake(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that was said of it."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("evitlab: error: "), lines
    return lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder: six pictures to train on, four to validate."""
    root = write_coco(tmp_path_factory.mktemp("data") / "painted", painted_set(6), "train")
    return write_coco(root, painted_set(4), "val")


def train_command(folder: Path, out: Path, *options: str) -> list[str]:
    return [
        *("detect", "train", "efficientvit_m0", "--data", str(folder), "--recipe", "detection"),
        *("--img-size", "64", "96", "--channels", "16", "--epochs", "2", "--batch-size", "3"),
        *("--device", "cpu", "--threads", "1", "--out", str(out), *options),
    ]


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "boxes"
    assert main(train_command(folder, out, "--json", str(out / "copy.json"))) == 0
    return out


@pytest.fixture
def sees_red(monkeypatch: pytest.MonkeyPatch) -> RedBoxes:
    """The detector of every path, from now on."""
    model = RedBoxes()
    monkeypatch.setattr(detector, "load_detector", lambda path: model)
    return model


def test_training_leaves_weights_and_a_record(run: Path) -> None:
    assert {f"training_curves.{kind}" for kind in ("png", "svg", "csv")} <= {
        file.name for file in run.iterdir()
    }
    record = DetectionRecord.load(run / "record.json")
    assert DetectionRecord.load(run / "copy.json") == record
    assert (record.model, record.dataset) == ("retinanet_efficientvit_m0", "painted")
    assert (record.train_images, record.train_boxes, record.final.images) == (6, 9, 4)
    assert (record.img_size, record.num_classes, len(record.history)) == ((64, 96), 2, 2)
    # 12 epochs have steps at 8 and 11; two epochs of two steps have one of warm-up.
    assert record.recipe["lr_steps"] in ((1, 2), [1, 2]) and record.recipe["warmup_steps"] == 1
    assert record.command.startswith("evitlab detect train efficientvit_m0 --data painted ")
    assert not re.search(r"(^|[\s='\"])[/~]", record.command)
    model = load_detector(run)
    assert (model.class_names, model.category_ids) == (("red", "blue"), (3, 7))


def test_the_same_command_again_is_finished_at_once(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run / "record.json").read_bytes()
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_: pytest.fail("it trains again"))
    assert main(train_command(folder, run)) == 0
    assert (run / "record.json").read_bytes() == before
    out = capsys.readouterr().out
    assert "6 training images with 9 boxes of 2 classes, 4 to validate" in out
    assert "a run of 4 steps: 1 of warm-up instead of 500" in out
    assert re.search(r"finished: AP \d", out)


def test_overfit_validates_on_what_it_learns(folder: Path, tmp_path: Path) -> None:
    command = train_command(folder, tmp_path / "out", "--overfit", "2")
    assert main([*command, "--epochs", "1"]) == 0
    record = DetectionRecord.load(tmp_path / "out" / "record.json")
    assert (record.train_images, record.final.images) == (2, 2)
    assert record.final.boxes == record.train_boxes == 3


def test_evaluate_says_twelve_values_and_writes_what_it_found(
    sees_red: RedBoxes, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, record = tmp_path / "results.json", tmp_path / "ap.json"
    command = ["detect", "evaluate", "run", "--data", str(folder), "--batch-size", "2"]
    assert main([*command, "--results", str(results), "--json", str(record)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("painted (val): 4 images, 6 boxes\n")
    rows = [line.split()[2:] for line in out.splitlines() if "%" in line]
    # Boxes of 26 x 34 and 16 x 32: there are small ones and no others.
    assert rows == [
        ["100.0", "100.0", "100.0", "100.0", "-", "-"],
        ["100.0", "100.0", "100.0", "100.0", "-", "-"],
    ]
    found = BoxAP.load(record)
    assert (found.ap, found.environment.batch_size) == (100, 2)
    truth = folder / "annotations" / "instances_val.json"
    assert len(json.loads(results.read_bytes())) == 6
    # The file that was written is measured alike, without a model.
    command = ["detect", "evaluate", "--annotations", str(truth), "--results", str(results)]
    assert main(command) == 0
    again = capsys.readouterr().out
    assert again.startswith("instances_val.json: 4 images, 6 boxes\n")
    assert again.splitlines()[1:] == out.splitlines()[1:]


def test_evaluate_runs_a_trained_detector(run: Path, folder: Path, tmp_path: Path) -> None:
    """What training measured of its final weights."""
    command = ["detect", "evaluate", str(run), "--data", str(folder), "--threads", "1"]
    results, record = tmp_path / "results.json", tmp_path / "ap.json"
    assert main([*command, "--results", str(results), "--json", str(record)]) == 0
    found, trained = BoxAP.load(record), DetectionRecord.load(run / "record.json").final
    assert found.ap == pytest.approx(trained.ap, abs=0.5)
    truth = folder / "annotations" / "instances_val.json"
    assert box_ap(truth, results, environment=found.environment) == found


def save_turned(picture: Image.Image, path: Path) -> None:
    """As a camera on its side does: the pixels lie, and a tag says by how much."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(path, quality=95, subsampling=0, exif=exif)


RED: Box = (10, 20, 60, 90)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures of every kind, with a red rectangle at RED where there is room and colour."""
    root = tmp_path / "photos"
    (root / "more").mkdir(parents=True)
    picture = painted(100, 160, ("red", RED))
    picture.save(root / "portrait.png")
    save_turned(picture, root / "turned.jpg")
    picture.convert("P").save(root / "more" / "palette.gif")
    picture.convert("CMYK").save(root / "more" / "print.tif")
    large = tuple(30 * value for value in RED)
    painted(3000, 4800, ("red", large)).save(root / "large.jpg", quality=95)  # type: ignore[arg-type]
    Image.new("L", (80, 60), 90).save(root / "grey.png")
    Image.fromarray(np.full((50, 70), 30000, np.uint16)).save(root / "grey16.png")
    Image.new("RGB", (1, 1), COLORS["red"]).save(root / "tiny.png")
    Image.new("RGB", (300, 1), COLORS["blue"]).save(root / "line.png")
    return root


def test_predict_draws_and_writes_pictures_of_any_kind(
    sees_red: RedBoxes, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found"
    assert main(["detect", "predict", "run", str(photos), "--out", str(out)]) == 0
    results = json.loads((out / "detections.json").read_bytes())
    boxes = {result["file_name"]: np.array(result["bbox"]) for result in results}
    assert set(boxes) == {
        "portrait.png", "turned.jpg", "large.jpg", "tiny.png", "line.png", "more/palette.gif",
        "more/print.tif",
    }  # fmt: skip
    red = np.array([10, 20, 50, 70])
    for name in ("portrait.png", "more/palette.gif", "more/print.tif"):
        assert boxes[name].tolist() == red.tolist(), name
    assert np.abs(boxes["turned.jpg"] - red).max() <= 1, "upright"
    assert np.abs(boxes["large.jpg"] - 30 * red).max() <= 2
    assert boxes["tiny.png"].tolist() == [0, 0, 1, 1]
    by_name = {result["file_name"]: result for result in results}
    assert (by_name["tiny.png"]["category_id"], by_name["line.png"]["category_id"]) == (3, 7)
    assert by_name["line.png"]["score"] == 0.5
    # Numbered in the order of the files, also those on which nothing was found.
    files = ["grey.png", "grey16.png", "large.jpg", "line.png", "portrait.png", "tiny.png",
             "turned.jpg", "more/palette.gif", "more/print.tif"]  # fmt: skip
    assert {name: by_name[name]["image_id"] for name in boxes} == {
        name: number for number, name in enumerate(files, 1) if name in boxes
    }
    said = capsys.readouterr().out
    assert said.startswith("9 pictures, 7 boxes with a score of 0.3 or more (red 6, blue 1); drawn")

    drawings = {file.relative_to(out).as_posix() for file in out.rglob("*.jpg")}
    assert drawings == {Path(name).with_suffix(".jpg").as_posix() for name in files}
    with Image.open(out / "large.jpg") as drawn:
        assert drawn.size == (3000, 4800)
    with Image.open(out / "turned.jpg") as drawn:
        assert drawn.size == (200, 320), "upright, and twice as large: names have room"
        assert drawn.getpixel((4, 316)) == pytest.approx(GREY, abs=6)
        assert drawn.getpixel((70, 110)) == pytest.approx(COLORS["red"], abs=12)
        edge = drawn.getpixel((22, 110))  # the line of the box
        assert edge != pytest.approx(COLORS["red"], abs=20)


def test_predict_keeps_to_the_threshold(
    sees_red: RedBoxes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = painted(400, 330, ("red", (10, 20, 110, 150)), ("blue", (200, 100, 300, 300)))
    both.save(tmp_path / "both.png")
    for threshold, expected in (("0.5", [3, 7]), ("0.51", [3]), ("1", [])):
        out = tmp_path / threshold
        command = ["detect", "predict", "run", str(tmp_path / "both.png"), "--out", str(out)]
        assert main([*command, "--threshold", threshold]) == 0
        results = json.loads((out / "detections.json").read_bytes())
        assert [result["category_id"] for result in results] == expected
    with Image.open(tmp_path / "1" / "both.jpg") as drawn:
        assert np.abs(np.asarray(drawn).astype(int) - np.asarray(both)).mean() < 2, "nothing on it"
    assert "1 picture, 0 boxes with a score of 1 or more; drawn in" in capsys.readouterr().out


def test_predict_on_frames_and_files_of_one_name(sees_red: RedBoxes, tmp_path: Path) -> None:
    frames = [painted(60, 40, ("red", (5 + k, 5, 25 + k, 25))) for k in range(6)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:])
    for name in ("clip.png", "clip.bmp"):
        frames[0].save(tmp_path / name)
    out = tmp_path / "out"
    command = ["detect", "predict", "run", str(tmp_path), "--out", str(out), "--every", "2"]
    assert main([*command, "--batch-size", "2"]) == 0
    drawings = sorted(file.name for file in out.glob("*.jpg"))
    assert drawings == [
        "clip.jpg", "clip_000000.jpg", "clip_000002.jpg", "clip_000004.jpg", "clip_2.jpg",
    ]  # fmt: skip
    results = json.loads((out / "detections.json").read_bytes())
    assert [(one["file_name"], one["bbox"][0]) for one in results] == [
        ("clip.bmp", 5), ("clip.gif#000000", 5), ("clip.gif#000002", 7), ("clip.gif#000004", 9),
        ("clip.png", 5),
    ]  # fmt: skip
    assert sees_red.batches == [2, 2, 1]
    # What was drawn last time is not taken for an image.
    assert main([*command, "--limit", "4"]) == 0
    assert len(json.loads((out / "detections.json").read_bytes())) == 4


def test_predict_leaves_out_what_cannot_be_read(
    sees_red: RedBoxes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    painted(60, 40, ("red", (5, 5, 25, 25))).save(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    command = ["detect", "predict", "run", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert re.search(r"bad\.jpg: not an image file", mistake(capsys))
    assert main([*command, "--skip-corrupt"]) == 0
    said = capsys.readouterr().out
    assert "left out: " in said and "1 picture, 1 box with" in said
    (tmp_path / "good.png").unlink()
    assert main([*command, "--skip-corrupt"]) == 2
    assert "IMAGES: expected one that can be read" in mistake(capsys)


def test_predict_writes_over_no_photograph(
    sees_red: RedBoxes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    painted(60, 40).save(tmp_path / "a.jpg")
    before = (tmp_path / "a.jpg").read_bytes()
    command = ["detect", "predict", "run", str(tmp_path / "a.jpg"), "--out", str(tmp_path)]
    assert main(command) == 2
    assert re.search(r"--out: expected another folder, .*a\.jpg would be", mistake(capsys))
    assert (tmp_path / "a.jpg").read_bytes() == before


def test_predict_writes_over_no_photograph_that_it_was_not_given(
    sees_red: RedBoxes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "a.jpg", "clip_000001.jpg"):
        painted(60, 40).save(tmp_path / name)
    frames = [painted(60, 40, ("red", (5 + k, 5, 25 + k, 25))) for k in range(2)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for given, hit in (("a.png", "a.jpg"), ("clip.gif", "clip_000001.jpg")):
        command = ["detect", "predict", "run", str(tmp_path / given), "--out", str(tmp_path)]
        assert main(command) == 2
        assert re.search(rf"--out: .*{hit} would be written over", mistake(capsys))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    (tmp_path / "a.jpg").unlink()
    command = ["detect", "predict", "run", str(tmp_path / "a.png"), "--out", str(tmp_path)]
    assert main(command) == main(command) == 0, "its own drawings it may write over"


def test_predict_again_after_a_run_that_was_cut_off(sees_red: RedBoxes, tmp_path: Path) -> None:
    painted(60, 40).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    command = ["detect", "predict", "run", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(command) == 2 and (tmp_path / "out" / "a.jpg").is_file()
    assert main([*command, "--skip-corrupt"]) == 0


def test_predict_says_which_picture_is_whose(sees_red: RedBoxes, tmp_path: Path) -> None:
    """Also where names differ by case alone, which not every file system tells apart."""
    for name in ("one/a.png", "two/a.png", "three/A.bmp"):
        (tmp_path / name).parent.mkdir()
        painted(60, 40, ("red", (5, 5, 25, 25))).save(tmp_path / name)
    folders = [str(tmp_path / name) for name in ("one", "two", "three")]
    out = tmp_path / "out"
    assert main(["detect", "predict", "run", *folders, "--out", str(out)]) == 0
    rows = json.loads((out / "detections.json").read_bytes())
    assert [(row["file_name"], row["drawn"]) for row in rows] == [
        ("a.png", "a.jpg"), ("a.png", "a_2.jpg"), ("A.bmp", "A_3.jpg"),
    ]  # fmt: skip
    assert {file.name for file in out.glob("*.jpg")} == {row["drawn"] for row in rows}


def test_predict_runs_a_real_detector(tmp_path: Path) -> None:
    """One that finds a hundred things on whatever it sees."""
    torch.manual_seed(0)
    model = create_detector(
        "efficientvit_m0", num_classes=2, img_size=(64, 128), channels=8, class_names=("a", "b")
    )
    with torch.no_grad():
        bias = model.get_parameter("head.classification_head.cls_logits.bias")
        bias.zero_()
    save_weights(model, tmp_path / "model.safetensors", class_names=("a", "b"))
    for name, size in {"wide": (500, 90), "line": (200, 1), "tiny": (5, 7)}.items():
        Image.effect_noise(size, 80).save(tmp_path / f"{name}.png")
    command = ["detect", "predict", str(tmp_path / "model.safetensors"), str(tmp_path)]
    assert main([*command, "--out", str(tmp_path / "out"), "--threshold", "0.1"]) == 0
    results = json.loads((tmp_path / "out" / "detections.json").read_bytes())
    assert {one["category_id"] for one in results} == {1, 2}, "numbers, where the data gave none"
    inside = [one["bbox"] for one in results if one["file_name"] == "wide.png"]
    assert inside
    x, y, width, height = np.array(inside).T
    assert x.min() >= 0 and y.min() >= 0
    assert (x + width).max() <= 500.01 and (y + height).max() <= 90.01


XML = (
    "<annotation><filename>{name}.png</filename><size><width>60</width><height>40</height>"
    "<depth>3</depth></size><object><name>cat</name><difficult>{difficult}</difficult><bndbox>"
    "<xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>20</ymax></bndbox></object></annotation>"
)


def test_convert_writes_what_evaluate_reads(
    sees_red: RedBoxes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / part).mkdir(parents=True)
    for name, difficult in (("one", 0), ("two", 1)):
        Image.new("RGB", (60, 40)).save(tmp_path / "JPEGImages" / f"{name}.png")
        (tmp_path / "Annotations" / f"{name}.xml").write_text(
            XML.format(name=name, difficult=difficult), "utf-8"
        )
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("one\ntwo\n", "utf-8")
    out = tmp_path / "train.json"
    assert main(["detect", "convert", str(tmp_path), str(out)]) == 0
    said = capsys.readouterr().out
    assert "train: 2 images, 1 box and 1 difficult one, as crowds, of 1 class;" in said
    found = json.loads(out.read_bytes())
    assert [entry["bbox"] for entry in found["annotations"]] == [[0, 0, 10, 20]] * 2
    sees_red.num_classes, sees_red.class_names = 1, ("cat",)
    command = ["detect", "evaluate", "run", "--data", str(out), "--images",
               str(tmp_path / "JPEGImages")]  # fmt: skip
    assert main(command) == 0
    assert "2 images, 1 box" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["detect", command, "--help"])
    assert done.value.code == 0
    example = capsys.readouterr().out.partition("example:\n")[2].strip()
    assert example.startswith(f"evitlab detect {command} ")


def test_detect_alone_names_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["detect"])
    assert done.value.code == 2
    with pytest.raises(SystemExit):
        main(["detect", "--help"])
    listed = re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE)
    assert tuple(listed) == COMMANDS


class Place:
    """Where the mistakes below find what they are made with."""

    def __init__(self, tmp: Path, folder: Path, run: Path) -> None:
        self.tmp, self.folder, self.run = tmp, folder, run

    def train(self, *options: str) -> list[str]:
        return train_command(self.folder, self.tmp / "out", *options)

    def evaluate(self, *options: str) -> list[str]:
        return ["detect", "evaluate", str(self.run), "--data", str(self.folder), *options]

    def predict(self, *options: str) -> list[str]:
        out = str(self.tmp / "out")
        return ["detect", "predict", str(self.run), str(self.folder), "--out", out, *options]

    def write(self, name: str, content: Any) -> str:
        (self.tmp / name).write_text(json.dumps(content), "utf-8")
        return str(self.tmp / name)

    def truth(self, change: Callable[[dict[str, Any]], object]) -> str:
        """The training annotations, changed."""
        content = json.loads((self.folder / "annotations" / "instances_train.json").read_bytes())
        change(content)
        return self.write("instances.json", content)

    def images(self) -> tuple[str, str]:
        return "--images", str(self.folder / "train")


MISTAKES: dict[str, tuple[Callable[[Place], list[str]], str]] = {
    "unknown recipe": (
        lambda at: at.train("--recipe", "detecton"),
        "--recipe: expected one of .*detection.*, got 'detecton'",
    ),
    "a classifier's recipe": (lambda at: at.train("--recipe", "cifar"), "crop: expected 'none'"),
    "three sizes": (lambda at: at.train("--img-size", "64", "96", "2"), "--img-size: .* 3 numbers"),
    "unknown backbone": (
        lambda at: [*at.train()[:2], "efficientvit_m9", *at.train()[3:]],
        "backbone_name: .* got 'efficientvit_m9'; did you mean 'efficientvit_m",
    ),
    "unknown data": (lambda at: at.train("--data", "coc128"), "'coc128' is neither"),
    "more to overfit than there is": (
        lambda at: at.train("--overfit", "7"),
        "--overfit: expected 2 to 6, as many images of painted have boxes, got 7",
    ),
    "too few to overfit": (lambda at: at.train("--overfit", "1"), "--overfit: expected 2 to 6,"),
    "overfit and validation data": (
        lambda at: at.train("--overfit", "2", "--val-data", str(at.folder)),
        "--val-data: expected none beside --overfit",
    ),
    "images of no data": (
        lambda at: at.train("--val-images", "x"), "--val-images: expected a --val-data",
    ),
    "a different run": (
        lambda at: [*at.train()[:-1], str(at.run), "--lr", "0.5"],
        "out_dir: .* holds a different run .*lr",
    ),
    "no annotations": (
        lambda at: at.train("--data", at.truth(lambda t: t["annotations"].clear()), *at.images()),
        "train_data: expected at least one box to learn from, got none in",
    ),
    "a missing image": (
        lambda at: at.train(
            "--data", at.truth(lambda t: t["images"][2].update(file_name="gone.png")), *at.images()
        ),
        "gone.png",
    ),
    "another class count": (
        lambda at: at.evaluate(
            "--data", at.truth(lambda t: t["categories"].append({"id": 9, "name": "green"})),
            *at.images(),
        ),
        r"data: expected boxes of 2 classes \(the model's\), got 3",
    ),
    "another class": (
        lambda at: at.evaluate(
            "--data", at.truth(lambda t: t["categories"][0].update(name="rouge")), *at.images()
        ),
        "data: expected the model's classes in its order, got 'rouge' instead of 'red'",
    ),
    "no detector": (
        lambda at: ["detect", "evaluate", "efficientvit_m0_cifar10", "--data", str(at.folder)],
        "efficientvit_m0_cifar10: expected a detector's weights, got those of the classifier",
    ),
    "nothing to evaluate": (lambda at: ["detect", "evaluate"], "RUN: expected a detector's"),
    "no results": (
        lambda at: ["detect", "evaluate", "--annotations", at.truth(lambda t: None)],
        "--results: expected the file of the results to measure",
    ),
    "a run beside annotations": (
        lambda at: at.evaluate("--annotations", "x.json"),
        "RUN: expected none beside --annotations",
    ),
    "results of unknown images": (
        lambda at: ["detect", "evaluate", "--annotations", at.truth(lambda t: None), "--results",
                    at.write("r.json", [{"image_id": 99, "category_id": 3, "score": 1,
                                         "bbox": [0, 0, 1, 1]}])],
        r"r\.json: results\[0\]: expected the id of an image, got image_id 99",
    ),
    "results that cannot be written": (  # said before a model is opened
        lambda at: ["detect", "evaluate", "gone", "--data", "gone", "--results",
                    at.write("file", []) + "/r.json"],
        r"cannot write here \(Not a directory\): '.*file/r\.json'",
    ),
    "no such annotations": (
        lambda at: ["detect", "evaluate", "--annotations", "gone.json", "--results", "r.json"],
        "gone.json",
    ),
    "no weights": (
        lambda at: ["detect", "predict", "nothing", str(at.folder), "--out", str(at.tmp)],
        "nothing: expected a weights file",
    ),
    "no images": (
        lambda at: ["detect", "predict", str(at.run), "gone.jpg", "--out", str(at.tmp)],
        "gone.jpg: expected an image, a video or a folder, found nothing",
    ),
    "a threshold in percent": (
        lambda at: at.predict("--threshold", "30"), "--threshold: expected 0 to 1, got 30",
    ),
    "no batch": (lambda at: at.predict("--batch-size", "0"), "--batch-size: expected at least 1"),
    "no frames": (lambda at: at.predict("--every", "0"), "every: expected at least 1, got 0"),
    "no device": (lambda at: at.predict("--device", "gpu"), "device: expected one that torch"),
    "no Pascal VOC": (
        lambda at: ["detect", "convert", str(at.folder), str(at.tmp / "x.json")],
        "folder: expected annotations in",
    ),
}  # fmt: skip


@pytest.mark.parametrize("option", [
    ("--split", "val"), ("--batch-size", "1"), ("--device", "cpu"), ("--threads", "1"),
    ("--skip-corrupt",),
])  # fmt: skip
def test_measuring_a_file_has_no_options_of_a_detector(
    option: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["detect", "evaluate", "--annotations", "x.json", "--results", "y.json", *option]
    assert main(command) == 2
    assert f"{option[0]}: expected none beside --annotations" in mistake(capsys)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    name: str, tmp_path: Path, folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, said = MISTAKES[name]
    command = make(Place(tmp_path, folder, run))
    capsys.readouterr()
    assert main(command) == 2
    assert re.search(said, mistake(capsys))
