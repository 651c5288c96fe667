"""Without the network: one line that says what is missing and what to do, and exit code 2.

The tests' guard and HF_HUB_OFFLINE (conftest.py) are what stands for no network.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from PIL import Image

from evitlab.cli import main

# A command, and what its line has to say.
OFFLINE = {
    "train efficientvit_m0 --data pets --out run": ("pets", "EVITLAB_DATA", "train-*.parquet"),
    "train efficientvit_m0 --data photos --limit 8 --weights timm --out run": (
        "efficientvit_m0.r224_in1k", "pass its path",
    ),
    "evaluate efficientvit_m0_cifar10 --data cifar100": ("cifar100", "EVITLAB_DATA"),
    "heads vit_tiny_patch16_224 --weights hub --images photos": ("vit_tiny_patch16_224", "hub"),
    "explore deit_tiny_patch16_224 --weights hub --images photos": ("deit_tiny_patch16_224",),
    "detect train efficientvit_m0 --data coco128 --out run": ("coco128", "EVITLAB_DATA"),
    "export efficientvit_m0 m0.onnx --weights timm": ("efficientvit_m0.r224_in1k", "pass its path"),
}  # fmt: skip


@pytest.mark.parametrize("line", OFFLINE, ids=str)
def test_offline(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVITLAB_DATA", str(tmp_path / "data"))
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (32, 32), (40 * number, 0, 0)).save(
                tmp_path / "photos" / kind / f"{number}.png"
            )
    assert main(shlex.split(line)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1].rpartition("\r")[2]
    assert "evitlab: error: " in said, said
    for word in OFFLINE[line]:
        assert word in said, said
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "m0.onnx").exists()
