"""Validation takes no more memory than a step, and too few readable images end in one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from small_runs import one_line, plain_net, recipe, shapes, write_folder
from tqdm.auto import tqdm

from evitlab import open_dataset, train
from evitlab.training import loop
from evitlab.training.distributed import Ranks


@pytest.mark.parametrize(("changes", "most"), [({}, 16), (dict(accumulate=4), 4)])
def test_validation_takes_no_more_images_than_a_forward_pass(
    tmp_path: Path, changes: dict[str, Any], most: int
) -> None:
    """So that a smaller batch_size, or more parts, help where validation runs out of memory."""
    model, seen = plain_net(), {True: set[int](), False: set[int]()}
    model.register_forward_pre_hook(lambda module, args: seen[module.training].add(len(args[0])))
    record = train(model, shapes(32), shapes(40, "val"), recipe(**changes), out_dir=tmp_path)
    assert max(seen[False]) == max(seen[True]) == most
    assert record.final.n == 40
    assert record.final.environment.batch_size == most


def test_too_few_readable_images_for_the_parts_are_named(tmp_path: Path) -> None:
    """Else an empty part's loss is NaN, and the learning rate would be blamed."""
    root = write_folder(tmp_path / "data", {"train": shapes(6), "val": shapes(3, "val")})
    for file in sorted(root.glob("train/*/*.png"))[:4]:
        file.write_bytes(file.read_bytes()[:60])
    sets = [
        open_dataset(root, split, img_size=32, streaming=True, on_error="skip")
        for split in ("train", "val")
    ]
    data, val = (dataclasses.replace(cast(Any, one), num_workers=0) for one in sets)
    few = recipe(batch_size=6, accumulate=3, epochs=1)
    with pytest.raises(ValueError) as raised:
        train(plain_net(), data, val, few, out_dir=tmp_path / "run")
    assert one_line(raised).startswith(
        "train_data: expected at least 3 readable of a step's 6 images in process 0, one for each "
        "part (accumulate), got 2"
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_prints_the_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    class Numbered(Ranks):
        """Alone in all but its number."""

        @property
        def main(self) -> bool:
            return rank == 0

    written: list[str] = []
    monkeypatch.setattr(tqdm, "write", lambda bar, line: written.append(line))
    real = loop._run_epochs

    def numbered(*args: Any, ranks: Ranks, **options: Any) -> Any:
        return real(*args, ranks=Numbered(), **options)

    monkeypatch.setattr(loop, "_run_epochs", numbered)
    torch.manual_seed(0)
    train(plain_net(), shapes(32), shapes(3, "val"), recipe(), out_dir=tmp_path)
    assert [line.partition(":")[0] for line in written] == ["epoch 1", "epoch 2"] * (rank == 0)
