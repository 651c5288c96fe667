"""The command line: what each command leaves behind, and one line for every mistake."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from randomised import images
from safetensors.torch import load_file
from small_runs import RunsCode, no_training, shapes, tiny_vit, write_folder
from timed_records import CARD, ROOFLINE, timing

from evitlab import (
    RECIPES,
    Accuracy,
    Dataset,
    Recipe,
    TrainingRecord,
    count_macs,
    count_params,
    create_model,
    environment_card,
    load_model,
    save_weights,
)
from evitlab.analysis.presets import PRESETS
from evitlab.analysis.throughput import Plan
from evitlab.cli import main
from evitlab.records import (
    DataPathRow,
    DeployRatios,
    PeakRow,
    RatioRow,
    SpeedRecord,
    SpeedRow,
    ThroughputSweep,
)
from evitlab.training.recipe import fit_batch

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "train", "evaluate", "export", "models", "recipes", "profile", "heads", "explore", "prune",
    "bench", "study", "detect", "reproduce", "doctor",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 images to train on, 12 to validate, of three classes."""
    root = tmp_path_factory.mktemp("data") / "drawings"
    return write_folder(root, {"train": shapes(102), "val": shapes(12, "val")})


def train_command(folder: Path, out: Path) -> list[str]:
    return [
        *("train", "efficientvit_m0", "--data", str(folder), "--recipe", "smoke"),
        *("--limit", "96", "--epochs", "3", "--batch-size", "32", "--threads", "1"),
        *("--device=cpu", f"--out={out}"),
    ]


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "m0"
    assert main([*train_command(folder, out), "--json", str(out / "copy.json")]) == 0
    return out


def test_a_reader_that_has_enough_is_no_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`evitlab models | head -1`, where head has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["models", "efficientvit_m0"]) == 1
    assert capsys.readouterr().err == ""


def test_train_leaves_weights_record_checkpoints_and_curves(run: Path, folder: Path) -> None:
    names = {str(path.relative_to(run).as_posix()) for path in run.rglob("*") if path.is_file()}
    curves = {f"training_curves.{suffix}" for suffix in ("png", "svg", "csv")}
    checkpoints = {f"checkpoints/{name}" for name in ("last.pt", "previous.pt", "best.safetensors")}
    asked = {"model.safetensors", "record.json", "recipe.json", "copy.json"}
    results = {"results.json", "results.png", "results.svg"}
    assert names == asked | curves | results | checkpoints
    record = TrainingRecord.load(run / "record.json")
    assert TrainingRecord.load(run / "copy.json") == record
    assert record.model == "efficientvit_m0_p4"  # keeps 8 x 8 tokens on 32 pixels
    assert (record.dataset, record.train_images, record.img_size) == ("drawings", 96, (32, 32))
    assert (len(record.history), record.final.n) == (3, 12)
    assert record.environment.threads == 1
    assert {record.recipe[name] for name in ("epochs", "batch_size")} == {3, 32}
    model: Any = load_model(run)
    assert model.class_names == ("disk", "square", "triangle")
    with Image.open(run / "training_curves.png") as picture:
        assert picture.size[0] > 100


def test_the_recorded_command_names_no_folder_of_this_machine(run: Path) -> None:
    command = TrainingRecord.load(run / "record.json").command
    assert command.startswith("evitlab train efficientvit_m0 --data drawings --recipe smoke ")
    assert command.endswith("--out=m0 --json copy.json")
    assert not re.search(r"(^|[\s='\"])[/~]", command)


def test_the_same_command_again_says_that_the_run_is_finished(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = (run / "record.json").read_bytes()
    with no_training():
        assert main(train_command(folder, run)) == 0
    assert "finished: top-1" in capsys.readouterr().out
    assert (run / "record.json").read_bytes() == record


def test_no_resume_starts_over(run: Path, folder: Path) -> None:
    command = [*train_command(folder, run), "--no-resume"]
    with no_training(), pytest.raises(AssertionError, match="training began"):
        copy = shutil.copytree(run, run.parent / "copy")
        main([*command[:-2], f"--out={copy}", command[-1]])
    assert not (copy / "record.json").exists()


def test_evaluate_finds_what_the_run_recorded(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "accuracy.json"
    command = ["evaluate", str(run), "--data", str(folder), "--json", str(file)]
    assert main([*command, "--threads", "1"]) == 0  # as the run: sums are rounded by their order
    found, final = Accuracy.load(file), TrainingRecord.load(run / "record.json").final
    assert (found.top1, found.top5, found.loss, found.n) == (
        (final.top1, final.top5, final.loss, final.n)
    )
    assert f"drawings (val), 12 images: top-1 {final.top1:.2f} %" in capsys.readouterr().out


def test_evaluate_of_another_split(run: Path, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "accuracy.json"
    command = ["evaluate", str(run), "--data", str(folder), "--split", "train"]
    assert main([*command, "--json", str(file)]) == 0
    assert Accuracy.load(file).n == 102


def test_export_in_half_precision_is_half_as_large_and_the_same_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, half = tmp_path / "new" / "whole.safetensors", tmp_path / "half.safetensors"
    assert main(["export", str(run), str(whole)]) == 0
    assert main(["export", str(run / "model.safetensors"), str(half), "--half"]) == 0
    assert whole.read_bytes() == (run / "model.safetensors").read_bytes()
    assert half.stat().st_size / whole.stat().st_size == pytest.approx(0.5, abs=0.02)
    mib = half.stat().st_size / 2**20
    assert capsys.readouterr().out.splitlines()[-1] == f"{half}: {mib:.1f} MiB"
    batch = images(4, 3, 32, 32).float()
    torch.testing.assert_close(load_model(half)(batch), load_model(run)(batch), rtol=0, atol=1e-2)


def test_models_lists_size_and_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "models.json"
    assert main(["models", "efficientvit_m0_p?", "--json", str(file)]) == 0
    rows = {row["model"]: row for row in json.loads(file.read_text())}
    sizes = {"efficientvit_m0_p4": 32, "efficientvit_m0_p8": 64}
    assert {name: row["img_size"] for name, row in rows.items()} == sizes
    model = create_model("efficientvit_m0_p8", img_size=64)
    assert rows["efficientvit_m0_p8"]["params_m"] == pytest.approx(count_params(model) / 1e6)
    assert rows["efficientvit_m0_p8"]["macs_m"] == pytest.approx(count_macs(model) / 1e6)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", *sizes]


def test_bench_beside_timm_prints_and_saves_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Any, ...]] = []
    row = SpeedRow("efficientvit_m0", "forward", 4, 10.0, 15.0, 1.53, 1.41, 1.62)
    path = DataPathRow("efficientvit_m0_p4", "cifar", 128, 5.0, 200.0, 2.5)
    record = SpeedRecord((row,), (path,), 7, environment_card())

    def measured(models: Any, **options: Any) -> SpeedRecord:
        asked.append((list(models), options))
        return record

    monkeypatch.setattr("evitlab.analysis.comparison.compare_with_timm", measured)
    options = ["--preset", "timm", "--batch-sizes", "4", "8", "--rounds", "7", "--threads", "2"]
    file = tmp_path / "speed.json"
    assert main(["bench", "efficientvit_m0", *options, "--json", str(file)]) == 0
    assert asked == [(["efficientvit_m0"], dict(batch_sizes=[4, 8], rounds=7, threads=2))]
    assert SpeedRecord.load(file) == record
    out = capsys.readouterr().out
    for part in ("1.53", "recipe cifar: 5.0 of 200.0 ms a step, 2.5 %", "median of 7 rounds"):
        assert part in out


def test_bench_deploy_prints_and_saves_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = RatioRow("efficientvit_m0", "deploy", "eager", 1, 5, 10.0, 15.0, 1.53, 1.41, 1.62)
    peak = PeakRow("efficientvit_m5", "onnxruntime", 16, 5, 30.0, 40.0, 0.75, 0.7, 0.8)
    card = environment_card()

    def measured(*models: Any, command: str, **options: Any) -> DeployRatios:
        assert (models, options) == ((["efficientvit_m0"],), dict(threads=1, rounds=5))
        return DeployRatios((row,), (peak,), ("x: failed",), (224, 224), command, card)

    monkeypatch.setattr("evitlab.analysis.deploy_ratios.compare_deploy", measured)
    file = tmp_path / "deploy.json"
    command = ["bench", "efficientvit_m0", "--preset", "deploy", "--rounds", "5"]
    assert main([*command, "--json", str(file)]) == 0
    record = DeployRatios.load(file)
    assert record.rows == (row,)
    assert record.command == (
        "evitlab bench efficientvit_m0 --preset deploy --rounds 5 --json deploy.json"
    )
    out = capsys.readouterr().out
    for part in ("1.53", "30.0 of 40.0 GMAC/s, 75% of the peak", "not measured: x: failed"):
        assert part in out


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Plan, int]]:
    """What `sweep` was asked for: the plan, and how many rows were there already."""
    asked: list[tuple[Plan, int]] = []

    def measured(plan: Plan, *, done: Any = ()) -> Any:
        asked.append((plan, len(done)))
        for batch_size in plan.batch_sizes[len(done) :]:
            yield [timing(plan.models[0], batch_size, 100.0)]
        yield [timing(plan.models[0], 999, None)]

    monkeypatch.setattr("evitlab.analysis.throughput.sweep", measured)
    monkeypatch.setattr("evitlab.analysis.roofline.measure_roofline", lambda *_, **__: ROOFLINE)
    return asked


def test_bench_prints_and_saves_a_sweep(
    swept: list[tuple[Plan, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options change the preset; a row that failed says why."""
    file = tmp_path / "sweep.json"
    options = ["--batch-sizes", "1", "8", "--engines", "eager", "--rounds", "4", "--threads", "1"]
    assert main(["bench", "timm/test_vit", *options, "--json", str(file)]) == 0
    plan = dataclasses.replace(
        PRESETS["quick"], models=("timm/test_vit",), batch_sizes=(1, 8), engines=("eager",),
        rounds=4, threads=(1,),
    )  # fmt: skip
    assert swept == [(plan, 0)]
    record = ThroughputSweep.load(file)
    assert [row.batch_size for row in record.rows] == [1, 8, 999]
    assert record.command.startswith("evitlab bench timm/test_vit --batch-sizes 1 8 ")
    out = capsys.readouterr().out
    for part in ("100.0", "out of memory", "of the 80 GMAC/s"):
        assert part in out


def test_bench_resumes_a_sweep_of_this_machine(
    swept: list[tuple[Plan, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sweep.json"
    row = timing("timm/test_vit", 1, 50.0, environment=environment_card())
    ThroughputSweep((row,), ROOFLINE, "evitlab bench", environment_card()).save(file)
    command = ["bench", "timm/test_vit", "--batch-sizes", "1", "8", "--json", str(file)]
    assert main([*command, "--resume"]) == 0
    assert [count for _, count in swept] == [1]
    assert [row.img_per_s for row in ThroughputSweep.load(file).rows] == [50.0, 100.0, None]
    other = dataclasses.replace(row, environment=CARD)
    ThroughputSweep((other,), ROOFLINE, "evitlab bench", CARD).save(file)
    assert main([*command, "--resume"]) == 2
    assert "--resume: expected a record of this machine" in capsys.readouterr().err


@dataclass
class Begun:
    """What `train` was given when it was called instead of the real one."""

    model: dict[str, torch.Tensor]
    images: int
    recipe: Recipe
    scale: str | None
    threads: int


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Begun]:
    """Runs as far as where training would begin; each then ends in an error."""
    runs: list[Begun] = []

    def stop(model: Any, data: Dataset, val: Dataset, recipe: Recipe, **options: Any) -> None:
        torch.rand(7)
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        threads = torch.get_num_threads()
        runs.append(Begun(weights, len(data), recipe, options["scale"], threads))
        raise ValueError("not trained here")

    monkeypatch.setattr("evitlab.training.classifier.train", stop)
    return runs


def test_fine_tuning_takes_all_but_the_classifier_of_other_classes(
    run: Path, tmp_path: Path, begun: list[Begun], capsys: pytest.CaptureFixture[str]
) -> None:
    four = {"train": shapes(16, classes=4), "val": shapes(4, "val", classes=4)}
    data = write_folder(tmp_path / "four", four)
    at = Place(tmp_path, data, run)
    assert main(at.train("--weights", str(run))) == 2
    said = "m0: of other classes, so the classifier is trained from scratch"
    assert said in capsys.readouterr().out
    source, (given,) = load_file(run / "model.safetensors"), begun
    assert given.model.keys() == source.keys()
    for key, value in source.items():
        if key.startswith("head.linear."):
            assert len(given.model[key]) == 4
        else:
            assert torch.equal(given.model[key], value), key


def test_weights_of_the_same_classes_are_taken_whole(
    folder: Path, run: Path, tmp_path: Path, begun: list[Begun], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(Place(tmp_path, folder, run).train("--weights", str(run))) == 2
    assert "from scratch" not in capsys.readouterr().out
    for key, value in load_file(run / "model.safetensors").items():
        assert torch.equal(begun[0].model[key], value), key


def test_skip_corrupt_trains_on_the_rest_and_says_so(
    folder: Path,
    run: Path,
    tmp_path: Path,
    begun: list[Begun],
    capsys: pytest.CaptureFixture[str],
) -> None:
    at = Place(tmp_path, folder, run)
    data = at.corrupt_jpeg()
    main(at.train("--skip-corrupt", "--limit", "99", data=data))
    assert begun[0].images == 6
    said = "6 training images (1 unreadable ones left out), 3 validation images, 3 classes"
    assert said in capsys.readouterr().out
    evaluate = ["evaluate", str(run), "--data", str(data), "--split", "train"]
    assert main([*evaluate, "--skip-corrupt"]) == 0
    assert "6 images (1 unreadable ones left out): top-1" in capsys.readouterr().out


def test_options_change_the_recipe_and_nothing_else(
    folder: Path, run: Path, tmp_path: Path, begun: list[Begun]
) -> None:
    """--epochs is the whole run, without cooldown; --lr is the peak, whatever the batch."""
    at = Place(tmp_path, folder, run)
    main([*at.train(), "--recipe", "imagenet", "--lr", "0.5", "--seed", "9", "--scale", "lab"])
    assert begun[0].recipe == dataclasses.replace(
        RECIPES["imagenet"],
        epochs=1,
        cooldown_epochs=0,
        batch_size=6,
        lr=0.5,
        lr_batch=None,
        seed=9,
    )
    assert (begun[0].recipe.total_epochs, begun[0].recipe.peak_lr) == (1, 0.5)
    assert begun[0].scale == "lab"
    main(["train", "efficientvit_m0", "--data", str(folder), "--out", str(tmp_path)])
    assert begun[1].recipe == fit_batch(RECIPES["cifar"], 102)
    assert begun[1].images == 102


def test_a_command_leaves_torch_as_it_found_it(
    folder: Path, run: Path, tmp_path: Path, begun: list[Begun]
) -> None:
    """Threads and random numbers; also after an error."""
    before = torch.get_rng_state(), torch.get_num_threads()
    main(Place(tmp_path, folder, run).train("--threads", str(before[1] + 1)))
    assert begun[0].threads == before[1] + 1
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


def test_the_seed_decides_the_first_weights(
    folder: Path, run: Path, tmp_path: Path, begun: list[Begun]
) -> None:
    for seed in ("1", "1", "2"):
        torch.rand(1)
        main(Place(tmp_path, folder, run).train("--seed", seed))
    first, same, other = (given.model["head.linear.weight"] for given in begun)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    example = out.partition("example:\n")[2].strip()
    assert example.startswith(f"evitlab {command} ")
    with pytest.raises(SystemExit) as done:  # what it shows can be parsed
        main([*example.split()[1:], "--help"])
    assert done.value.code == 0


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    listed = re.findall(r"^    (\w+)\b", capsys.readouterr().out, flags=re.MULTILINE)
    assert tuple(listed) == COMMANDS


class Place:
    """Where the mistakes below find what they are made with."""

    def __init__(self, tmp: Path, folder: Path, run: Path) -> None:
        self.tmp, self.folder, self.run = tmp, folder, run

    def train(self, *options: str, data: str | Path | None = None) -> list[str]:
        few = ["--recipe", "smoke", "--limit", "6", "--epochs", "1", "--batch-size", "6"]
        data = str(data or self.folder)
        return ["train", "efficientvit_m0", "--data", data, "--out", str(self.tmp / "out"), *few,
                *options]  # fmt: skip

    def file(self, name: str, content: bytes = b"") -> str:
        (self.tmp / name).write_bytes(content)
        return str(self.tmp / name)

    def truncated(self, name: str) -> str:
        source = self.run / ("model.safetensors" if name.endswith("s") else "checkpoints/last.pt")
        content = source.read_bytes()
        return self.file(name, content[: len(content) // 2])

    def code(self) -> str:
        torch.save({"model": RunsCode(self.tmp / "broken into")}, self.tmp / "code.pth")
        return str(self.tmp / "code.pth")

    def corrupt_jpeg(self) -> Path:
        data = write_folder(self.tmp / "data", {"train": shapes(6), "val": shapes(3, "val")})
        buffer = io.BytesIO()
        Image.effect_noise((32, 32), 50).convert("RGB").save(buffer, "JPEG")
        (data / "train" / "disk" / "broken.jpg").write_bytes(buffer.getvalue()[:200])
        return data

    def parquet(self) -> str:
        """Two classes by its own account, and a label 2."""
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32)).save(buffer, "PNG")
        table = pa.table({"image": [buffer.getvalue()] * 6, "label": [0, 1, 2] * 2})
        features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
        told = json.dumps({"info": {"features": features}}).encode()
        pq.write_table(
            table.replace_schema_metadata({b"huggingface": told}), self.tmp / "x.parquet"
        )
        return str(self.tmp / "x.parquet")

    def other_classes(self) -> str:
        path = self.tmp / "two.safetensors"
        save_weights(tiny_vit(num_classes=2), path, class_names=("cat", "dog"))
        return str(path)


# Command line, and what its one line says.
MISTAKES: dict[str, tuple[Callable[[Place], list[str]], str]] = {
    "unknown model": (
        lambda at: ["train", "efficientvit_m9", "--data", "embedded", "--out", str(at.tmp)],
        r"name: .* got 'efficientvit_m9'; did you mean 'efficientvit_m\d'\?",
    ),
    "unknown recipe": (
        lambda at: at.train("--recipe", "cifra"),
        "--recipe: expected one of smoke, cifar, finetune, imagenet, .*got 'cifra'",
    ),
    "unknown data": (
        lambda at: at.train(data="cifer10"),
        "'cifer10' is neither an existing path nor a data set; closest name: 'cifar10'",
    ),
    "image too small": (
        lambda at: at.train("--img-size", "2"),
        r"img_size: expected both sides of at least patch_size=4 pixels, got \(2, 2\)",
    ),
    "no image size": (lambda at: at.train("--img-size", "0"), "img_size: expected a positive int"),
    "no image": (
        lambda at: at.train(data=at.run / "checkpoints"),
        r"checkpoints: no images found; accepted are \.bmp",
    ),
    "corrupt JPEG": (lambda at: at.train(data=at.corrupt_jpeg()), r"train/disk/broken\.jpg"),
    "labels out of range": (
        lambda at: at.train(data=at.parquet()),
        r"x\.parquet \(\w+\): label 2 is outside 0\.\.1 \(2 classes\)",
    ),
    "truncated safetensors": (
        lambda at: at.train("--weights", at.truncated("half.safetensors")),
        r"half\.safetensors: truncated or not a weights file",
    ),
    "truncated pickle": (
        lambda at: at.train("--weights", at.truncated("half.pt")),
        r"half\.pt: truncated or not a weights file",
    ),
    "code in weights": (
        lambda at: at.train("--weights", at.code()),
        r"code\.pth: needs code to be unpickled \(\w+\.mkdir\), which is refused",
    ),
    "weights of another model": (
        lambda at: at.train("--weights", "deit_t_125x_cifar10"),
        r"weights: expected those of efficientvit_m0\S*, got deit_t_p4 in deit_t_125x_cifar10",
    ),
    "distillation without a teacher": (
        lambda at: at.train("--distillation", "soft"),
        "--distillation: expected a --teacher beside it",
    ),
    "a teacher of other classes": (
        lambda at: at.train("--teacher", at.other_classes()),
        "teacher: expected the model's 3 classes .*, got 2 of efficientvit_m0_p4",
    ),
    "a teacher without weights": (
        lambda at: at.train("--teacher", "resnet18"),
        "--teacher: .*resnet18 is not in the local cache .*give the folder of a run",
    ),
    "no weights": (
        lambda at: ["evaluate", str(at.tmp / "nothing"), "--data", "embedded"],
        "nothing: expected a weights file, a run's folder, or one of",
    ),
    "unwritable folder": (
        lambda at: at.train("--out", at.file("file") + "/out"),
        "cannot write here",
    ),
    "a record that cannot be written": (  # said before anything is measured
        lambda at: ["bench", "nothing", "--json", at.file("file") + "/x.json"],
        r"cannot write here \(Not a directory\): '.*file/x\.json'",
    ),
    "a record of the name of a folder": (
        lambda at: ["bench", "nothing", "--json", str(at.folder)],
        r"cannot write here \(Is a directory\)",
    ),
    "figures where a file is": (
        lambda at: ["profile", "nothing", "--out", at.file("file")],
        r"cannot write here \(Not a directory\): '[^']*file'$",
    ),
    "a name that no system takes": (
        lambda at: ["heads", "nothing", "--json", "x" * 5000],
        r"cannot write here \(File name too long\)",
    ),
    "no name at all": (
        lambda at: ["heads", "nothing", "--json", "\0"],
        r"json: expected a path, got '\\x00'",
    ),
    "a different run": (
        lambda at: at.train("--out", str(at.run)),
        r"out_dir: .* holds a different run \(epochs 3 there, 1 asked for; batch_size",
    ),
    "loss of NaN": (
        lambda at: at.train("--lr", "1e30", "--batch-size", "2"),
        "loss is not finite at epoch 1, step 3 of 3, learning rate .* good checkpoint: none yet",
    ),
    "limit of 0": (lambda at: at.train("--limit", "0"), "limit: expected a positive number"),
    "no epochs": (lambda at: at.train("--epochs", "0"), "epochs: expected at least 1"),
    "batch of 0": (lambda at: at.train("--batch-size", "0"), "batch_size: expected at least 1"),
    "rate of NaN": (lambda at: at.train("--lr", "nan"), "lr: expected a positive number, got nan"),
    "no threads": (lambda at: at.train("--threads", "0"), "threads: expected at least 1, got 0"),
    "no such scale": (
        lambda at: at.train("--scale", "labs"),
        "scale: expected one of smoke, quick, lab, paper, got 'labs'; did you mean 'lab'",
    ),
    "no such device": (
        lambda at: at.train("--device", "gpu"),
        "device: expected one that torch can use here, such as 'cpu', got 'gpu'",
    ),
    "other classes": (
        lambda at: ["evaluate", at.other_classes(), "--data", str(at.folder)],
        r"data: expected only the 2 classes of the weights \(cat, dog\), got 3 of other names "
        r"\(disk, square, triangle\)",
    ),
    "evaluate at batch size 0": (
        lambda at: ["evaluate", str(at.run), "--data", str(at.folder), "--batch-size", "0"],
        "batch_size: expected at least 1, got 0",
    ),
    "evaluate truncated weights": (
        lambda at: ["evaluate", at.truncated("half.safetensors"), "--data", "embedded"],
        r"half\.safetensors: expected safetensors written by evitlab",
    ),
    "no such split": (
        lambda at: ["evaluate", str(at.run), "--data", str(at.folder), "--split", "dev"],
        "split: expected one of train, val, test, got 'dev'",
    ),
    "export to a wrong suffix": (
        lambda at: ["export", str(at.run), str(at.tmp / "m0.pth")],
        r"FILE: expected a name that ends in .*\.safetensors, got .*m0\.pth",
    ),
    "export to an unwritable folder": (
        lambda at: ["export", str(at.run), at.file("file") + "/m0.safetensors"],
        "cannot write here",
    ),
    "no model matches": (
        lambda at: ["models", "resnet*"],
        r"pattern: expected one that matches a model, got 'resnet\*'",
    ),
    "bench of an unknown model": (
        lambda at: ["bench", "efficientvit_m9"],
        r"model: expected one of .* got 'efficientvit_m9'; did you mean 'efficientvit_m\d'\?",
    ),
    "ratios of an unknown model": (
        lambda at: ["bench", "--preset", "deploy", "efficientvit_m9"],
        r"models: expected names of .* got \['efficientvit_m9'\]",
    ),
    "unknown engine": (
        lambda at: ["bench", "--engines", "onnxruntim"],
        "engine: expected one of eager, .* got 'onnxruntim'; did you mean 'onnxruntime'",
    ),
    "unknown preset": (
        lambda at: ["bench", "--preset", "paper"],
        "--preset: expected one of paper-cpu, .* got 'paper'; did you mean 'paper-",
    ),
    "engine without its device": (
        lambda at: ["bench", "--engines", "cuda-graph", "--device", "cpu"],
        "device: cuda-graph runs on cuda, got cpu",
    ),
    "option that the preset lacks": (
        lambda at: ["bench", "--preset", "deploy", "--engines", "eager"],
        "--engines: not an option of --preset deploy",
    ),
    "nothing to resume": (lambda at: ["bench", "--resume"], "--resume: expected --json FILE"),
    "unknown study": (
        lambda at: ["study", "head-similarty"],
        "name: expected one of .* got 'head-similarty'; did you mean 'head-similarity'",
    ),
    "no such run": (
        lambda at: ["study", "attention-share", "--only", "ViT*", "--out", str(at.tmp)],
        r"only: expected one that matches a run \(.*\), got 'ViT\*'",
    ),
    "no time": (
        lambda at: ["study", "attention-share", "--time-limit", "0", "--out", str(at.tmp)],
        "time_limit: expected more than 0, got 0",
    ),
    "unknown scale": (lambda at: ["reproduce", "--scale", "quik"], "scale: .*quik"),
    # What argparse finds
    "no command": (lambda at: [], "the following arguments are required: COMMAND"),
    "unknown command": (lambda at: ["trian"], "invalid choice: 'trian'"),
    "no folder": (
        lambda at: ["train", "efficientvit_m0"],
        r"the following arguments are required: --out \(see evitlab train --help\)",
    ),
    "no number": (lambda at: at.train("--epochs", "two"), "argument --epochs: invalid int value"),
    "unknown option": (lambda at: at.train("--epoch5"), "unrecognized arguments: --epoch5"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_line_and_exit_code_2(
    mistake: str, tmp_path: Path, folder: Path, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, message = MISTAKES[mistake]
    try:
        code = main(arguments(Place(tmp_path, folder, run)))
    except SystemExit as left:  # argparse's way
        assert isinstance(left.code, int)
        code = left.code
    lines = capfd.readouterr().err.splitlines()
    if mistake == "loss of NaN":
        lines = [line for line in lines if line.strip() and "img/s" not in line]  # the bar's
    assert code == 2
    (line,) = lines
    assert line.startswith("evitlab: error: ")
    assert re.search(message, line), line
    assert not (tmp_path / "broken into").exists()
    assert not list(tmp_path.rglob("record.json"))


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback(place: str) -> None:
    command = ["models", "resnet*"]
    with pytest.raises(ValueError, match="pattern: "):
        main(["--debug", *command] if place == "before" else [*command, "--debug"])


def test_an_interrupt_says_that_the_command_continues(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("evitlab.models.zoo.list_models", interrupt)
    assert main(["models"]) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_message_of_several_lines_is_put_on_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("several\n  lines\n")

    monkeypatch.setattr("evitlab.models.zoo.list_models", fail)
    assert main(["models"]) == 2
    assert capsys.readouterr().err == "evitlab: error: several lines\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), 2),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), 2),
        (RuntimeError("shapes cannot be multiplied"), None),
        (TypeError("unexpected keyword"), None),
    ],
    ids=["GPU memory", "memory", "shapes", "types"],
)
def test_too_little_memory_is_a_mistake_and_a_bug_is_not(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int | None,
) -> None:
    """A bug keeps its traceback."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("evitlab.models.zoo.list_models", fail)
    if code is None:
        with pytest.raises(type(error), match=str(error)):
            main(["models"])
    else:
        assert main(["models"]) == code
        assert capsys.readouterr().err == f"evitlab: error: {error}\n"


@pytest.mark.parametrize(("arguments", "code"), [(["models", "x"], 2), (["models", "*_m0"], 0)])
def test_python_m_evitlab_passes_the_exit_code_on(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["evitlab", *arguments])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("evitlab", run_name="__main__")
    assert left.value.code == code
