"""What makes a run another run, and what the record says of how it was started."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from small_runs import no_training, one_line, plain_net, recipe, shapes, stopped_at

from evitlab import TrainingRecord, train
from evitlab.training.identity import weights_identity
from evitlab.training.launch import launcher


def test_weights_are_told_by_what_the_file_holds(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.pt", "b.pt", "moved.pt")]
    for file, content in zip(files, (b"one", b"two", b"one"), strict=True):
        file.write_bytes(content)
    first, second, moved = map(weights_identity, files)
    assert first == moved != second
    assert (weights_identity(None), weights_identity("timm")) == (None, "timm")
    with pytest.raises(FileNotFoundError, match="expected a weights file"):
        weights_identity(tmp_path / "nothing.pt")


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_from_other_weights_is_refused(tmp_path: Path, finished: bool) -> None:
    """Finished or not; the same weights go on, and are in the record."""
    data = shapes(32), shapes(3, "val"), recipe()

    def run(weights: str | None) -> TrainingRecord:
        return train(plain_net(), *data, out_dir=tmp_path, weights=weights)

    if finished:
        run("sha256 one")
    else:
        with stopped_at(2, step=1):
            run("sha256 one")
    for other in (None, "sha256 two"):
        with no_training(), pytest.raises(ValueError) as raised:
            run(other)
        assert f"weights sha256 one there, {other} asked for" in one_line(raised)
    assert run("sha256 one").weights == "sha256 one"


def test_a_record_from_before_these_fields_is_a_run_from_scratch(tmp_path: Path) -> None:
    data = shapes(32), shapes(3, "val"), recipe()
    record = train(plain_net(), *data, out_dir=tmp_path)
    file = tmp_path / "record.json"
    plain = json.loads(file.read_text())
    for field in ("weights", "processes"):
        del plain[field]
    file.write_text(json.dumps(plain))
    with no_training():
        found = train(plain_net(), *data, out_dir=tmp_path)
        assert dataclasses.asdict(found) == dataclasses.asdict(record)
        assert (found.weights, found.processes) == (None, 1)
        with pytest.raises(ValueError, match="weights None there, timm asked for"):
            train(plain_net(), *data, out_dir=tmp_path, weights="timm")


@pytest.mark.parametrize(
    ("world", "local", "words"),
    [
        (1, 1, ()),
        (2, 2, ("torchrun", "--nproc-per-node=2", "-m")),
        (8, 4, ("torchrun", "--nnodes=2", "--nproc-per-node=4", "-m")),
    ],
)
def test_the_command_says_how_many_processes(
    monkeypatch: pytest.MonkeyPatch, world: int, local: int, words: tuple[str, ...]
) -> None:
    variables = dict(RANK=0, WORLD_SIZE=world, LOCAL_WORLD_SIZE=local, MASTER_ADDR="localhost",
                     MASTER_PORT=1)  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    assert launcher() == words
