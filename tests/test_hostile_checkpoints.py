"""Weights and checkpoints from anywhere: nothing in them runs, and what is wrong is said."""

from __future__ import annotations

import io
import math
import os
import pickle
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import NEEDS_FORK, NONSENSE, Attempt, Recorder, Room, command, some, tabled
from small_runs import plain_net, tiny_vit

from evitlab import TrainingRecord, load_model, load_weights, save_weights
from evitlab.training.checkpoint import load_checkpoint
from evitlab.training.identity import earlier_run

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


def pickled(state: object) -> dict[str, bytes]:
    """In torch's two forms, and as a bare pickle of each protocol."""
    plain = {f"pickle {number}": pickle.dumps(state, number) for number in (0, 2, 4, 5)}
    return {"zip": saved(state), "legacy": saved(state, legacy=True), **plain}


def test_pickles_with_code(tmp_path: Path, record_property: Recorder) -> None:
    room = Room(tmp_path)
    model = tiny_vit()
    attempts: list[Attempt] = []
    for name, payload in payloads(room.canary).items():
        for form, data in pickled({"model": payload}).items():
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
            train_briefly("--weights", path, "--out", room.target / "out"),
        )
    )
    outcomes = room.attempt(attempts)
    tabled(record_property, "weights: pickles with code", outcomes)
    assert all(one.kind == "refused" for one in outcomes)


def test_code_in_what_a_run_continues(tmp_path: Path, record_property: Recorder) -> None:
    """Deep inside an otherwise good checkpoint, and in each file of a run's folder."""
    room = Room(tmp_path)
    attempts = []
    for number, (name, payload) in enumerate(payloads(room.canary).items()):
        state = {
            "format": 1,
            "identity": {"model": "efficientvit_m0_p4"},
            "optimizer": {"state": {0: {"exp_avg": payload}}},
        }
        out = room.target / f"run {number}"
        path = room.file(f"{out.name}/checkpoints/last.pt", saved(state))
        attempts += [
            Attempt(f"{name}: load_checkpoint", partial(load_checkpoint, path)),
            Attempt(f"{name}: evitlab train", train_briefly("--out", out)),
        ]
    attempts = attempts[:2] + attempts[2::2]  # the command once, it takes its time
    outcomes = room.attempt(attempts)
    tabled(record_property, "checkpoints: code in the optimizer's state", outcomes)
    assert all(one.kind == "refused" and "needs code" in one.text for one in outcomes)


def test_checkpoints_of_another_shape(tmp_path: Path, record_property: Recorder) -> None:
    room = Room(tmp_path)
    attempts = []
    for key in ("format", "identity", "whole"):
        for number, (name, value) in enumerate(NONSENSE.items()):
            state: Any = {"format": 1, "identity": value} if key == "identity" else {key: value}
            out = room.target / f"{key} {number}"
            content = saved(value if key == "whole" else state)
            room.file(f"{out.name}/checkpoints/last.pt", content)
            attempts.append(
                Attempt(f"{key} {name}", partial(earlier_run, plain_net(), {}, out, TrainingRecord))
            )
    outcomes = room.attempt(attempts)
    tabled(record_property, "checkpoints: not of a run", outcomes)
    assert all(one.kind == "refused" for one in outcomes)


def test_damaged_weights(
    tmp_path: Path, record_property: Recorder, pytestconfig: pytest.Config
) -> None:
    """Cut and altered at many places; what still reads may differ from what was saved."""
    room = Room(tmp_path)
    model = tiny_vit()
    good = {
        "model.safetensors": save_weights(model, room.target / "good.safetensors").read_bytes(),
        "zip.pth": saved(model.state_dict()),
        "legacy.pth": saved(model.state_dict(), legacy=True),
    }
    attempts = []
    random = np.random.default_rng(0)
    for name, data in good.items():
        lengths = [*range(0, 40, 4), *random.integers(40, len(data), 20).tolist(), len(data) - 1]
        for length in lengths:
            path = room.file(f"cut {length} {name}", data[:length])
            attempts.append(Attempt(path.name, partial(load_weights, model, path)))
        for number in range(60):
            altered = bytearray(data)
            # Mostly in the first bytes, where what decides about the rest is written.
            last = 2000 if number % 3 else len(data)
            for place in random.integers(0, last, 1 + number % 4):
                altered[place] = random.integers(256)
            path = room.file(f"altered {number} {name}", bytes(altered))
            attempts.append(Attempt(path.name, partial(load_weights, model, path)))
            if name.endswith("safetensors"):
                attempts.append(Attempt(f"{path.name}: load_model", partial(load_model, path)))
    outcomes = room.attempt(some(attempts, pytestconfig, 150))
    tabled(record_property, "weights: cut and altered files", outcomes)
    assert all(one.kind == "refused" for one in outcomes if one.name.startswith("cut"))


def test_tensors_that_do_not_fit(tmp_path: Path, record_property: Recorder) -> None:
    room = Room(tmp_path)
    model = tiny_vit()
    key = "head.linear.weight"
    right = model.state_dict()[key]
    wrong: dict[str, object] = {
        "no tensor": "x", "a list": [[1.0, 2.0]], "none": None,
        "scalar": torch.tensor(1.0), "empty": torch.empty(0), "wider": torch.ones(3, 33),
        "another rank": torch.ones(3, 32, 1, 1, 1), "transposed": right.T.contiguous(),
        "sparse": right.to_sparse(), "meta": right.to("meta"),
        "complex": right.to(torch.complex64), "bool": right.bool(), "int64": right.long(),
        "uint8": right.to(torch.uint8), "float8": right.to(torch.float8_e4m3fn),
        "expanded from one number": torch.ones(1).expand(3, 32),
        "NaN": right * math.nan, "infinite": right / 0,
        "one NaN": torch.where(right == right.max(), math.nan, right),
        "too large for float32": right.double() * 1e300,
    }  # fmt: skip
    attempts = []
    for name, value in wrong.items():
        state: dict[str, Any] = {**model.state_dict(), key: value}
        attempts.append(Attempt(f"{name}: state dict", partial(load_weights, tiny_vit(), state)))
        if name == "meta":  # torch saves none
            continue
        path = room.file(f"{name}.pth", saved(state))
        attempts.append(Attempt(f"{name}: .pth", partial(load_weights, tiny_vit(), path)))
    outcomes = room.attempt(attempts)
    tabled(record_property, "weights: tensors that do not fit", outcomes)
    kinds = {one.name: one.kind for one in outcomes}
    for name in ("NaN", "infinite", "one NaN", "too large for float32", "complex", "wider"):
        assert kinds[f"{name}: .pth"] == kinds[f"{name}: state dict"] == "refused", name


def saved(state: object, *, legacy: bool = False) -> bytes:
    """As torch writes it: a zip, or its form before that."""
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def train_briefly(*options: object) -> Callable[[], None]:
    return command(
        "train", "efficientvit_m0", "--data", "embedded", "--limit", 20, "--recipe", "smoke",
        *options,
    )  # fmt: skip
