"""The README's Python is carried out block after block, and so is every docstring's example."""

from __future__ import annotations

import contextlib
import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from readme_text import ROOT, blocks

import evitlab

BLOCKS = blocks("python")
# By what a block begins with: what the reader's own code has before it.
TINY_MODEL = (
    "model = evitlab.create_model('efficientvit_m0_p4', img_size=32, num_classes=10).eval()\n"
    "images = torch.rand(2, 3, 32, 32)\n"
    "batches = [(images, torch.arange(2))]\n"
)
BEFORE = {
    "with evitlab.capture_attention": TINY_MODEL,
    "scores = ": TINY_MODEL,
    "pixels = ": TINY_MODEL,
    "evitlab.AttentionExplorer": TINY_MODEL,
    "detector = ": "image = torch.rand(3, 64, 96)\n",
    "report = ": "model = evitlab.create_model('efficientvit_m4')\n",
}
# What makes a block small where its model decides the time.
SMALLER = {
    "num_classes=80)": "num_classes=80, img_size=128, channels=16)",
    'create_model("efficientvit_m0")': (
        'create_model("efficientvit_m0", img_size=64, depth=(1, 1, 1))'
    ),
}
EXAMPLES = [
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for path in sorted((ROOT / "evitlab").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What a reader's blocks share: names, and a folder with weights."""
    folder = tmp_path_factory.mktemp("reader")
    m4 = evitlab.create_model("efficientvit_m4").state_dict()
    torch.save(m4, folder / "efficientvit_m4.pth")
    (folder / "runs").mkdir()
    tiny = evitlab.create_model("efficientvit_m0_p4", img_size=32, num_classes=10)
    evitlab.save_weights(tiny, folder / "runs" / "m0" / "model.safetensors")
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setattr("timm.models.load_state_dict_from_hf", lambda *_, **__: m4)  # the hub's
        yield {"evitlab": evitlab, "torch": torch}


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_block_runs(
    number: int, reader: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    block = BLOCKS[number]
    for begin, before in BEFORE.items():
        if block.startswith(begin):
            exec(before, reader)
    for whole, small in SMALLER.items():
        block = block.replace(whole, small)
    exec(compile(block, "README.md", "exec"), reader)
    if number == 0:
        assert "8.80 M parameters, 299 M MACs" in capsys.readouterr().out
        assert Path("block.png").stat().st_size > 10_000


def test_all_that_is_made_small_is_still_there() -> None:
    for begin in BEFORE:
        assert any(block.startswith(begin) for block in BLOCKS), begin
    for whole in SMALLER:
        assert any(whole in block for block in BLOCKS), whole


@pytest.mark.parametrize("module", EXAMPLES)
def test_docstring_examples(module: str) -> None:
    torch.manual_seed(0)
    found = doctest.testmod(
        importlib.import_module(module),
        extraglobs={"evitlab": evitlab, "torch": torch},
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    assert found.attempted and not found.failed
