"""`evitlab train` at the mercy of its machine: what was done is kept, and the rest is the same."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import faults
import pytest
from small_runs import shapes, tiny_vit, write_folder

from evitlab.training.checkpoint import save_weights

EPOCHS = 4


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Training of seconds: 24 images, a model of 65 thousand weights. Its --out is to be added."""
    root = tmp_path_factory.mktemp("faults")
    data = write_folder(root / "data", {"train": shapes(24), "val": shapes(6, "val")})
    start = save_weights(tiny_vit(), root / "tiny.safetensors")
    return [
        *("train", "efficientvit_m0", "--data", str(data), "--weights", str(start)),
        *("--recipe", "smoke", "--epochs", str(EPOCHS), "--batch-size", "12", "--threads", "1"),
        *("--device=cpu", "--out"),
    ]


@pytest.fixture(scope="module")
def reference(
    command: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, float]:
    """The run that nothing happened to, and its seconds."""
    out = tmp_path_factory.mktemp("reference") / "run"
    faults.run([*command, str(out.with_name("warm"))], out.with_name("log"))  # and the server runs
    began = time.monotonic()
    code, output = faults.run([*command, str(out)], out.with_name("log"))
    assert code == 0, output
    return out, time.monotonic() - began


class Kills:
    """A run that is begun again after each kill, and what it must leave each time."""

    def __init__(self, command: list[str], out: Path, whole: Path) -> None:
        self.argv, self.out, self.whole = [*command, str(out)], out, whole
        self.log = out.with_name(f"{out.name}.log")
        self.killed = 0

    def go(self, after_s: float = faults.LIMIT_S, *given: faults.Fault) -> bool:
        """Go on with the run until the kill; whether it was finished before."""
        before = faults.epochs_done(self.out)
        code = faults.killed(self.argv, self.log, after_s, *given)
        said, done = faults.validated(self.log.read_text()), faults.epochs_done(self.out)
        assert code in (0, -9, -25), self.log.read_text()
        self.killed += code != 0
        assert not faults.unreadable(self.out)
        assert said == list(range(before + 1, before + 1 + len(said))), "an epoch was repeated"
        assert before <= done and before + len(said) - done <= 1, "more than an epoch was lost"
        return code == 0

    def equal(self) -> bool:
        """Let it finish; whether it came to what the undisturbed run did, and nothing else."""
        assert self.go()
        assert not faults.litter(self.out)
        return faults.equal_runs(self.out, self.whole)


def test_kill_9_at_random(
    command: list[str],
    reference: tuple[Path, float],
    tmp_path: Path,
    pytestconfig: pytest.Config,
    record_property: Any,
) -> None:
    whole, seconds = reference
    tries = faults.tries(pytestconfig, quick=4, thorough=20)
    moments, kills = random.Random(8), 0
    equal: list[bool] = []
    while kills < tries:
        run = Kills(command, tmp_path / str(len(equal)), whole)
        while kills + run.killed < tries and not run.go(moments.uniform(0, seconds)):
            pass
        equal.append(run.equal())
        kills += run.killed
    faults.note(
        record_property, "kill -9 at random", "train", lost="at most 1 epoch", equal=equal,
        tries=kills,
    )  # fmt: skip
