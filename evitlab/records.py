"""What a run leaves behind: frozen records that go to JSON and back, with their environment card.

A record is a frozen dataclass that inherits `Record`. Its type hints are its schema: what does not
fit them is refused when it is saved and when it is loaded, in one line that names the field.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

import pandas as pd
import timm
import torch

from evitlab.schema import decode, encode

SCALES = ("smoke", "quick", "lab", "paper")


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> Path:
    """Write a file so that a reader, or a killed run, sees the old content or the new, never half.

    Args:
        path: target; missing parent folders are made.
        data: text is written as UTF-8 with the line endings it has.

    Raises:
        OSError: the folder cannot be made or written (with the errno's own subclass, such as
            `PermissionError`); the message names the target.
    """
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write here ({error.strerror})", str(path)) from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass  # the folder is not there or not ours: nothing was left behind
    return path


class Record:
    """Mixin for frozen dataclasses: a tidy frame, and JSON that is checked on both ways.

    Fields may be bool, int, float, str, None, nested dataclasses, tuples, and dicts of such plain
    values (sequences inside a dict come back as tuples).
    """

    def to_frame(self) -> pd.DataFrame:
        """One row: the plain fields, then the environment card's.

        Where both have a column of the same name, the record's own stands.
        """
        return pd.DataFrame([{**_plain_columns(self), **_card_columns(self)}])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the record as JSON, atomically.

        Raises:
            ValueError: a value is NaN, infinite or not of the field's type.
            OSError: the folder cannot be written.
        """
        plain = encode(self, type(self).__name__)
        decode(plain, type(self), type(self).__name__)  # refuse now what `load` would refuse
        content = json.dumps({"record": type(self).__name__, **plain}, indent=1, allow_nan=False)
        return write_atomically(path, content + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: broken JSON, another type of record, a missing or unknown field, or a value
                that is not finite or not of the field's type; one line with file and field.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a JSON record: {error}") from error
        if not isinstance(content, dict) or "record" not in content:
            raise ValueError(f'{path}: not a record: expected an object with the key "record"')
        found = content.pop("record")
        if found != cls.__name__:
            raise ValueError(f"{path}: expected a record of type {cls.__name__}, got {found!r}")
        try:
            return decode(content, cls, cls.__name__)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


@dataclass(frozen=True)
class Environment:
    """Environment card: where and how a number was measured. Names no user, machine or path."""

    device: str  # "cpu", or with the accelerator's name: "cuda (NVIDIA H200)"
    cpu_model: str
    cores: int  # logical cores this process may use
    threads: int  # torch's intra-operator threads
    python: str
    torch: str
    timm: str
    precision: str  # "float32", "bfloat16", ...
    layout: str  # memory format: "contiguous" or "channels_last"
    batch_size: int | None
    seed: int | None
    dataset: str | None  # title as shown to the reader
    scale: str | None  # one of SCALES
    date: str  # ISO 8601, UTC, seconds
    git_commit: str | None  # of evitlab's checkout; "+" at the end: the package had local changes

    @property
    def hardware(self) -> str:
        """What the computation ran on, for captions: the CPU's or the accelerator's name."""
        if self.device == "cpu":
            return f"{self.cpu_model}, {self.threads} thread{'s' if self.threads != 1 else ''}"
        return self.device


def environment_card(
    *,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    layout: str = "contiguous",
    batch_size: int | None = None,
    seed: int | None = None,
    dataset: str | None = None,
    scale: str | None = None,
) -> Environment:
    """The environment card of this process, now.

    Raises:
        ValueError: `scale` is not one of SCALES.
    """
    if scale is not None and scale not in SCALES:
        close = get_close_matches(str(scale), SCALES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {scale!r}{hint}")
    return Environment(
        device=_device_name(torch.device(device)),
        cpu_model=_cpu_model(),
        cores=_usable_cores(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        timm=str(timm.__version__),
        precision=precision,
        layout=layout,
        batch_size=batch_size,
        seed=seed,
        dataset=dataset,
        scale=scale,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit=_git_commit(),
    )


@dataclass(frozen=True)
class Accuracy(Record):
    """Result of one pass over a labelled data set."""

    top1: float  # percent
    top5: float  # percent
    loss: float  # mean cross-entropy, nats
    n: int  # images
    environment: Environment


@dataclass(frozen=True)
class EpochLog:
    """One epoch of training; validation fields are None where the epoch was not validated."""

    epoch: int  # counted from 1
    train_loss: float  # mean over the epoch, with augmentation and soft targets
    learning_rate: float  # at the epoch's last step
    img_per_s: float  # training images per second, validation excluded
    seconds: float  # the epoch's training time, validation excluded
    val_top1: float | None = None  # percent
    val_top5: float | None = None  # percent
    val_loss: float | None = None  # mean cross-entropy, nats


@dataclass(frozen=True)
class TrainingRecord(Record):
    """One training run, from its recipe to its final accuracy."""

    model: str
    img_size: tuple[int, int]  # height, width
    num_classes: int
    params: int
    macs: int  # multiply-accumulates for one image
    dataset: str  # title as shown to the reader
    train_images: int
    recipe: dict[str, Any]
    history: tuple[EpochLog, ...]
    final: Accuracy  # of the final weights
    best_epoch: int  # epoch with the highest val_top1
    seconds: float  # whole run, over all resumed parts
    command: str  # the one command that regenerates this record
    environment: Environment

    def to_frame(self) -> pd.DataFrame:
        """One row per epoch; the model and data set stand in every row."""
        columns = [field.name for field in dataclasses.fields(EpochLog)]
        frame = pd.DataFrame([dataclasses.asdict(log) for log in self.history], columns=columns)
        frame.insert(0, "dataset", self.dataset)
        frame.insert(0, "model", self.model)
        return frame


@dataclass(frozen=True)
class BlockNode:
    """One operation of a model as it really ran, for the drawing of the block.

    Kinds of the model's row: stem, stage, subsample, norm, pool, classifier. Of the block's
    column (`head` is None): dwconv, ffn, attention, and add for a residual sum. Inside the
    attention: split, concat, act, proj, and per head (`head` = j from 0): add for the cascade's
    sum of the previous head's output and this head's split, dwconv (on Q), head.
    """

    name: str  # dotted module path, or a label where no module stands behind the operation
    kind: str
    in_shape: tuple[int, ...]  # without the batch: (C, H, W) or (N, C)
    out_shape: tuple[int, ...]
    params: int
    macs: int  # multiply-accumulates for one image
    detail: str = ""  # what the box says below its name: "3x3, stride 2", "Q 16, K 16, V 64"
    head: int | None = None


@dataclass(frozen=True)
class BlockTrace(Record):
    """A model's row, one of its sandwich blocks and that block's attention, in execution order."""

    nodes: tuple[BlockNode, ...]
    model: str = ""
    block: str = ""  # dotted path of the block that is drawn in full

    def to_frame(self) -> pd.DataFrame:
        """One row per node; shapes as text ("64x14x14")."""
        frame = pd.DataFrame(
            [dataclasses.asdict(node) for node in self.nodes],
            columns=[field.name for field in dataclasses.fields(BlockNode)],
        )
        for column in ("in_shape", "out_shape"):
            frame[column] = ["x".join(map(str, shape)) for shape in frame[column]]
        frame["head"] = frame["head"].astype("Int64")
        return frame


def _plain_columns(record: Any) -> dict[str, Any]:
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {
        name: value
        for name, value in values.items()
        if value is None or isinstance(value, (bool, int, float, str))
    }


def _card_columns(record: Any) -> dict[str, Any]:
    card = getattr(record, "environment", None)
    if not isinstance(card, Environment):
        return {}
    own = _plain_columns(record)
    return {name: value for name, value in dataclasses.asdict(card).items() if name not in own}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: a container may hold fewer than the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    """The processor's own name; where the system has none to give, the architecture's."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    if platform.system() == "Darwin":  # platform.processor() only says "arm" there
        name = _output_of("sysctl", "-n", "machdep.cpu.brand_string")
        if name:
            return name
    return platform.processor() or platform.machine() or "unknown"


def _git_commit() -> str | None:
    """Commit of evitlab's own checkout, "+" added where the package has uncommitted changes.

    None without git or outside a checkout: an installed copy may lie inside another project's
    repository, whose commit says nothing about it.
    """
    package = Path(__file__).resolve().parent
    root = _output_of("git", "-C", str(package), "rev-parse", "--show-toplevel")
    if not root or Path(root).resolve() != package.parent:
        return None
    commit = _output_of("git", "-C", str(package), "rev-parse", "--short=12", "HEAD")
    if not commit:
        return None
    changes = _output_of(
        "git", "-C", str(package), "status", "--porcelain", "--untracked-files=no", "--", "."
    )
    return f"{commit}+" if changes else commit


def _output_of(*command: str) -> str | None:
    """What a command prints, or None where it is not installed or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
