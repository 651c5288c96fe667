"""Every command of the README is carried out, tiny, in the README's order; each is in TINY.

A line that would train for hours gets options that make it small, a line that needs the network or
GPUs is read by the parser. A new line without a row in TINY fails.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from readme_text import ROOT, command_lines, mentioned
from red_boxes import painted, painted_set, write_coco
from small_runs import shapes, small_detector, write_folder
from test_datasets import encode, write_parquet
from test_detection_wrong_input import write_voc
from test_drawn_boxes import write_video

from evitlab import open_detection, save_weights, serving
from evitlab.cli import main
from evitlab.cli.parser import Parser


@dataclass(frozen=True)
class Tiny:
    """How a line of the README is carried out here.

    Attributes:
        add: options that make it small; the last one of a name counts.
        leaves: files that it must leave.
        after: the line whose results it needs.
        only_parsed: why it is not carried out.
    """

    add: str = ""
    leaves: tuple[str, ...] = ()
    after: str = ""
    only_parsed: str = ""


FEW = "--epochs 1 --limit 8 --batch-size 8 --threads 1 --device cpu"
RUN = ("model.safetensors", "record.json", "results.json", "training_curves.png", "results.png")
HUB = "its weights come from the hub"
IMAGENET = "needs ImageNet and days"
STUDIED = "starts processes: test_studies.py, test_throughput.py and test_notebooks.py do"
M0 = "evitlab train efficientvit_m0 --data cifar10 --out runs/m0"
PHOTOS = "evitlab train efficientvit_m0 --data photos/ --recipe finetune --out runs/photos"
BOXES = (
    "evitlab detect train efficientvit_m0 --overfit 4 --img-size 128 --channels 64 --out runs/boxes"
)
FOUND = "evitlab detect evaluate runs/coco --data coco/ --results found.json"


def run_of(folder: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in RUN)


TINY = {
    "evitlab doctor": Tiny(),
    "evitlab models": Tiny("efficientvit_m0*"),
    M0: Tiny(FEW, run_of("runs/m0")),
    "evitlab evaluate runs/m0 --data cifar10": Tiny(after=M0),
    "evitlab export runs/m0 m0.safetensors --half": Tiny(after=M0, leaves=("m0.safetensors",)),
    "evitlab profile deit_tiny_patch16_224 swin_tiny_patch4_window7_224 efficientvit_m4": Tiny(
        "--img-size 64 --rounds 1 --threads 1 --fused off", ("figures/fig2_profile.png",)
    ),
    "evitlab heads vit_tiny_patch16_224 --images photos/": Tiny("--img-size 32 --limit 4"),
    "evitlab explore efficientvit_m4 --images photos/": Tiny(),
    "evitlab prune efficientvit_m0_cifar10 --macs 0.7 --data cifar10 --out runs/m0_small": Tiny(
        "--steps 1 --images 8 --limit 8 --val-limit 8 --threads 1", ("runs/m0_small/record.json",)
    ),
    BOXES: Tiny(
        "--overfit 2 --channels 16 --epochs 1 --threads 1 --device cpu",
        ("runs/boxes/model.safetensors", "runs/boxes/record.json"),
    ),
    "evitlab detect predict runs/boxes photos/ --out found": Tiny(
        after=BOXES, leaves=("found/detections.json",)
    ),
    "evitlab study ablations --scale smoke": Tiny(only_parsed=STUDIED),
    "evitlab recipes imagenet": Tiny(),
    "evitlab bench --train": Tiny(only_parsed=STUDIED),
    "evitlab bench efficientvit_m0 timm/levit_128s --engines eager deploy --batch-sizes 1 16": Tiny(
        only_parsed=STUDIED
    ),
    "evitlab bench --preset deploy": Tiny(only_parsed=STUDIED),
    "evitlab export efficientvit_m0 m0.onnx": Tiny(only_parsed="test_docs_python.py exports it"),
    "evitlab reproduce --scale quick --out figures": Tiny(only_parsed=STUDIED),
    "evitlab explore": Tiny(),
    "evitlab explore deit_tiny_patch16_224 --weights hub --images photos/ "
    "--compare efficientvit_m4": Tiny(only_parsed=HUB),
    "evitlab explore --app": Tiny(),
    PHOTOS: Tiny(FEW, run_of("runs/photos")),
    "evitlab evaluate runs/photos --data new_photos/ --split all --per-class "
    "--json per_class.json": Tiny(after=PHOTOS, leaves=("per_class.json",)),
    "evitlab evaluate runs/photos --data unsorted/ --predictions predictions.csv": Tiny(
        after=PHOTOS, leaves=("predictions.csv",)
    ),
    "evitlab train efficientvit_m4 --data imagenet --recipe imagenet --accumulate 8 "
    "--out runs/m4": Tiny(only_parsed=IMAGENET),
    "torchrun --nproc-per-node=8 -m evitlab train efficientvit_m4 --data imagenet "
    "--recipe imagenet --out runs/m4": Tiny(only_parsed=IMAGENET),
    "evitlab train efficientvit_m0 --data cifar10 --teacher runs/big --distillation soft "
    "--out runs/small": Tiny(FEW, run_of("runs/small"), after=M0),
    "evitlab train efficientvit_m0 --weights runs/m0 --img-size 64 --data cifar10 "
    "--recipe finetune --out runs/m0_64": Tiny(FEW, run_of("runs/m0_64"), after=M0),
    "evitlab detect train efficientvit_m4 --data coco/ --weights timm --out runs/coco": Tiny(
        only_parsed=HUB
    ),
    "evitlab detect train efficientvit_m4 --data coco128 --overfit 8 --img-size 256 "
    "--channels 128 --out runs/overfit": Tiny(only_parsed="COCO128 may not be at hand"),
    FOUND: Tiny("--threads 1", ("found.json",)),
    "evitlab detect evaluate --annotations instances_val2017.json --results found.json": Tiny(
        after=FOUND
    ),
    "evitlab detect predict runs/coco photos/ street.mp4 --every 25 --out found": Tiny(
        "--out found_in_video", ("found_in_video/detections.json",)
    ),
    "evitlab detect convert VOC2012/ instances_train.json": Tiny(leaves=("instances_train.json",)),
}


class World:
    """A folder with all that the README's commands take, where they run once each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.codes: dict[str, int] = {}

    def run(self, line: str) -> int:
        """The exit code; a line that needs another's results has that one run first."""
        if line not in self.codes:
            tiny = TINY[line]
            assert not tiny.after or self.run(tiny.after) == 0, tiny.after
            self._place()
            self.codes[line] = main([*shlex.split(line)[1:], *shlex.split(tiny.add)])
        return self.codes[line]

    def _place(self) -> None:
        """A run of another line under the name that the README gives to a larger one."""
        source, target = self.root / "runs" / "m0", self.root / "runs" / "big"
        if source.is_dir() and not target.exists():
            shutil.copytree(source, target)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("readme")
    for split, count in (("train", 40), ("test", 20)):
        data = shapes(count, split, classes=10)
        write_parquet(
            root / "data" / "cifar10" / f"{split}.parquet",
            [encode(Image.fromarray(data[i][0].permute(1, 2, 0).numpy())) for i in range(count)],
            data.labels.tolist(),
            image="img",
            names=list(data.class_names),
        )
    for name, split, count in (("photos", "train", 24), ("new_photos", "val", 6)):
        folder = write_folder(root / name / "all", {"": shapes(count, split)})
        for kind in folder.iterdir():
            kind.rename(root / name / kind.name)
        folder.rmdir()
    (root / "unsorted").mkdir()
    painted(32, 32, ("red", (4, 4, 20, 20))).save(root / "unsorted" / "one.png")
    for split in ("train2017", "val2017"):
        write_coco(root / "coco", painted_set(2), split)
    detector = small_detector(open_detection(root / "coco", "val"))
    save_weights(detector, root / "runs" / "coco" / "model.safetensors")
    shutil.copy(root / "coco" / "annotations" / "instances_val2017.json", root)
    write_voc(root / "VOC2012", train="ab", val="c")
    write_video(root / "street.mp4", 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("EVITLAB_DATA", str(root / "data"))
        patch.setattr(serving, "serve", lambda command: 0)  # test_servers.py starts the real ones
        yield World(root)


@pytest.mark.parametrize("line", [line for line in TINY if not TINY[line].only_parsed], ids=str)
def test_command_is_carried_out(line: str, world: World) -> None:
    assert world.run(line) == 0
    for name in TINY[line].leaves:
        assert (world.root / name).stat().st_size > 0, name
        if name.endswith(".json"):
            assert json.loads((world.root / name).read_text(encoding="utf-8")) is not None


def test_every_command_of_the_readme_is_here() -> None:
    ours = [line for line in command_lines() if line.split()[0] in ("evitlab", "torchrun")]
    assert not set(ours) - set(TINY), "lines without a row in TINY"
    assert not set(TINY) - set(ours), "rows of TINY that no line has"
    assert len(ours) == len(set(ours)), "the same line twice"


class Parsed(Exception):
    """The parser has read everything."""


def parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the real parser read a line, up to where it would be carried out."""
    words = shlex.split(line)
    words = words[words.index("evitlab") + 1 :]
    read = Parser.parse_args

    def stop(self: Parser, *args: object, **options: object) -> None:
        read(self, *args, **options)
        raise Parsed

    with monkeypatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(Parser, "parse_args", stop)
        main(words)


@pytest.mark.parametrize("line", [line for line in TINY if TINY[line].only_parsed], ids=str)
def test_command_is_parsed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse(line, monkeypatch)


def ours_in(text: str) -> list[str]:
    return [line for line in mentioned(text) if line.startswith("evitlab ")]


NOTEBOOKS = "\n".join(
    "".join(cell["source"])
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    if cell["cell_type"] == "markdown"
)
TEXTS = {name: (ROOT / name).read_text("utf-8") for name in ("README.md", "CONTRIBUTING.md")}


SENTENCES = sorted({line for text in (*TEXTS.values(), NOTEBOOKS) for line in ours_in(text)})


@pytest.mark.parametrize("line", SENTENCES, ids=str)
def test_command_in_a_sentence_is_parsed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the README, of CONTRIBUTING.md and of the notebooks; NAME… stands for several names."""
    values = {"MINUTES": "1", "X": "1", "N": "1"}  # what an option's placeholder stands for
    words = [values.get(word, word) for word in line.split()]
    if all(word.isalpha() and word.islower() for word in words):  # the name of a command alone
        with pytest.raises(SystemExit) as stopped:
            main([*words[1:], "--help"])
        assert stopped.value.code == 0
    else:
        parse(" ".join(words), monkeypatch)


@pytest.mark.parametrize("text", TEXTS)
def test_make_target_exists(text: str) -> None:
    """Not run: make would install."""
    lines = [*command_lines(TEXTS[text]), *mentioned(TEXTS[text])]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in lines:
        if line.startswith("make "):
            assert f"\n{line.split()[1]}:" in makefile, line
    assert any(line.startswith("make ") for line in lines)


def test_examples_of_the_help_are_parsed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in sorted({line.split()[1] for line in TINY if line.startswith("evitlab ")}):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        examples = capsys.readouterr().out.partition("example:\n")[2].splitlines()
        assert examples, command
        for line in examples:
            parse(line, monkeypatch)
