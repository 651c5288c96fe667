"""Weights and checkpoints from anywhere: nothing in them runs, and what is wrong is said."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hostile import NEEDS_FORK, Attempt, Recorder, Room, command, tabled
from small_runs import tiny_vit

from evitlab import load_model, load_weights
from evitlab.training.checkpoint import load_checkpoint

pytestmark = NEEDS_FORK


class Calls:
    """A pickled call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.function, self.arguments


def payloads(canary: Path) -> dict[str, object]:
    """By how they would make the canary."""
    return {
        "os.system": Calls(os.system, f"touch {canary}"),
        "os.mkdir": Calls(os.mkdir, str(canary)),
        "eval": Calls(eval, f"open({str(canary)!r}, 'w')"),
        "exec": Calls(exec, f"open({str(canary)!r}, 'w').close()"),
        "open": Calls(open, str(canary), "w"),
        "torch.load": Calls(torch.load, str(canary), None),
        "subprocess": Calls(subprocess.call, ["touch", str(canary)]),
        "numpy": Calls(np.save, f"{canary}", [1]),
        "path": Calls(Path.touch, canary),
    }


def test_pickles_with_code(tmp_path: Path, record_property: Recorder) -> None:
    room = Room(tmp_path)
    model = tiny_vit()
    attempts: list[Attempt] = []
    for name, payload in payloads(room.canary).items():
        for form, data in pickled_forms({"model": payload}).items():
            path = room.file(f"{name}-{form}.pth", data)
            attempts += [
                Attempt(f"{name}, {form}: load_weights", partial(load_weights, model, path)),
                Attempt(f"{name}, {form}: load_checkpoint", partial(load_checkpoint, path)),
                Attempt(f"{name}, {form}: load_model", partial(load_model, path)),
            ]
    path = room.target / "os.system-zip.pth"
    attempts.append(
        Attempt(
            "evitlab train --weights",
            command("train", "efficientvit_m0", "--data", "embedded", "--limit", 20, "--weights",
                    path, "--out", room.target / "out"),
        )  # fmt: skip
    )
    outcomes = room.attempt(attempts)
    tabled(record_property, "weights: pickles with code", outcomes)
    assert all(one.kind == "refused" for one in outcomes)


def pickled_forms(state: object) -> dict[str, bytes]:
    """torch's zip, torch's form before that, and a bare pickle of each protocol."""
    new, old = io.BytesIO(), io.BytesIO()
    torch.save(state, new)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    plain = {f"pickle {number}": pickle.dumps(state, number) for number in (0, 2, 4, 5)}
    return {"zip": new.getvalue(), "legacy": old.getvalue(), **plain}
