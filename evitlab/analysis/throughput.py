"""Images per second of models under engines, over batch sizes, precisions and threads.

A call costs some microseconds per operator whatever the batch, so batch 1 and batch 1000 are
different experiments. Every engine runs in a process of its own with the same number of threads;
within a round all models and engines of one batch size take turns, so that a machine that slows
down slows them all. The speed of a round is that of calls one after the other: on a GPU they are
waited for at the end of the round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product

import torch
from torch import nn
from tqdm.auto import tqdm

from evitlab.analysis.engines import ENGINES, PRECISIONS, check_engine
from evitlab.analysis.turns import Card, Case, Timing, card_of, time_groups
from evitlab.records import ThroughputRecord, quartiles
from evitlab.training.evaluation import checked_device
from evitlab.wording import check_choice

# Models that take turns hold their memory together: fewer at a time, the larger the batch.
_IMAGES_HELD = 512


@dataclass(frozen=True)
class Plan:
    """What a sweep measures: every combination that makes sense.

    Attributes:
        models: names as `subjects.build` takes them.
        img_size: pixels of both sides; None takes each model's own.
        devices: "cpu", "cuda"; an engine runs on those that it can.
        rounds: of each case at most.
        seconds: spent on the rounds of a case at most, once it had MIN_ROUNDS of them.
    """

    models: tuple[str, ...]
    engines: tuple[str, ...] = ("eager",)
    batch_sizes: tuple[int, ...] = (1,)
    precisions: tuple[str, ...] = ("float32",)
    threads: tuple[int, ...] = (1,)
    devices: tuple[str, ...] = ("cpu",)
    img_size: int | None = None
    rounds: int = 15
    seconds: float = 10.0

    def check(self) -> None:
        """Raises ValueError, naming what was expected, where the plan cannot be carried out."""
        for name in ("models", "engines", "batch_sizes", "precisions", "threads", "devices"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one, got none")
        for name, least in (("batch_sizes", 1), ("threads", 1), ("rounds", 1)):
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,)) < least:
                shown = list(value) if isinstance(value, tuple) else value
                raise ValueError(f"{name}: expected at least {least}, got {shown}")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds: expected more than 0, got {self.seconds}")
        for precision in self.precisions:
            check_choice("precision", precision, PRECISIONS)
        for device in self.devices:
            if device not in ("cpu", "cuda"):
                raise ValueError(f"device: expected cpu or cuda, got {device!r}")
            checked_device(device)
        for name in self.engines:
            able = check_engine(name).devices
            if not set(able) & set(self.devices):
                raise ValueError(
                    f"device: {name} runs on {' and '.join(able)}, got {', '.join(self.devices)}"
                )

    def groups(self, sizes: Mapping[str, tuple[int, int]]) -> list[list[Case]]:
        """The cases, in lists of those that take turns.

        Args:
            sizes: height and width of the images of each model.
        """
        groups = []
        conditions = product(self.devices, self.threads, self.precisions, self.batch_sizes)
        for device, threads, precision, batch_size in conditions:
            waiting = iter(dict.fromkeys(self.models))
            engines = [name for name in self.engines if device in ENGINES[name].devices]
            while models := list(islice(waiting, max(1, _IMAGES_HELD // batch_size))):
                groups.append(
                    [
                        Case(model, engine, batch_size, sizes[model], precision, threads, device)
                        for model in models
                        for engine in dict.fromkeys(engines)
                    ]
                )
        return [group for group in groups if group]


def measure_throughput(
    models: Sequence[str | nn.Module],
    *,
    batch_sizes: Sequence[int] = (1,),
    backends: Sequence[str] = ("eager",),
    devices: Sequence[str] | None = None,
    threads: Sequence[int] | int | None = None,
    precision: Sequence[str] = ("float32",),
    rounds: int = 15,
    seconds: float = 10.0,
    img_size: int | None = None,
) -> list[ThroughputRecord]:
    """Images per second, for every combination; a combination that fails has a row saying why.

    Args:
        models: names (`efficientvit_m0`, `timm/NAME`, `torchvision/NAME`), or modules that take
            [B, 3, H, W].
        batch_sizes: images of noise per call.
        backends: engines, see `evitlab.analysis.engines.ENGINES`.
        devices: "cpu", "cuda"; None is a GPU if there is one.
        threads: of the CPU, one number or several; None takes torch's number now.
        precision: "float32", "bfloat16", "float16": of weights and images.
        rounds: of each combination at most; 3 are made in any case.
        seconds: for the rounds of a combination, after which no further round is begun.
        img_size: pixels of both sides; None takes each model's own.

    Raises:
        ValueError: an unknown name, an engine that is not installed, no GPU, a number below one,
            or a module that cannot be pickled.

    Pitfall: a module is rebuilt in another process, so its class must stand in a file that can be
    imported there, not in a notebook.

    Paper: Section 4.1 measures throughput traced and folded, at batch 2048 in float16 on a GPU and
    batch 16 on one CPU thread: presets "paper-gpu" and "paper-cpu" of `evitlab bench`.
    """
    modules = {
        name: model for name, model in _named(models).items() if isinstance(model, nn.Module)
    }
    some_threads = torch.get_num_threads() if threads is None else threads
    if devices is None:
        devices = ("cuda" if torch.cuda.is_available() else "cpu",)
    plan = Plan(
        models=tuple(_named(models)),
        engines=tuple(backends),
        batch_sizes=tuple(batch_sizes),
        precisions=tuple(precision),
        threads=(some_threads,) if isinstance(some_threads, int) else tuple(some_threads),
        devices=tuple(devices),
        img_size=img_size,
        rounds=rounds,
        seconds=seconds,
    )
    return [row for rows in sweep(plan, modules=modules) for row in rows]


def sweep(
    plan: Plan,
    *,
    modules: Mapping[str, nn.Module] | None = None,
    done: Sequence[ThroughputRecord] = (),
) -> Iterator[list[ThroughputRecord]]:
    """Carry a plan out; yields the rows of cases that took turns, as soon as they are there.

    Args:
        plan: checked before anything is measured.
        modules: models of the plan that are no names.
        done: rows of an earlier run that need not be measured again.
    """
    plan.check()
    bar = tqdm(plan.models, desc="models", unit="model", delay=2, leave=False)
    cards = {name: card_of((modules or {}).get(name, name), plan.img_size) for name in bar}
    had = {_key(row) for row in done if row.error is None}
    groups = [
        [case for case in group if _key(case) not in had]
        for group in plan.groups({name: card.img_size for name, card in cards.items()})
    ]
    for timings in time_groups(groups, cards, rounds=plan.rounds, seconds=plan.seconds):
        yield [record_of(case, cards[case.model], timing) for case, timing in timings.items()]


def record_of(case: Case, card: Card, timing: Timing) -> ThroughputRecord:
    """The record of one case: medians and quartiles of the rounds."""
    speeds = [case.batch_size / seconds for seconds in timing.seconds]
    low, middle, high = quartiles(speeds) if speeds else (None, None, None)
    return ThroughputRecord(
        model=case.model,
        engine=case.engine,
        layout=case.layout,
        precision=case.precision,
        batch_size=case.batch_size,
        threads=case.threads,
        img_size=case.img_size,
        params=card.params,
        macs=card.macs,
        rounds=len(speeds),
        img_per_s=middle,
        img_per_s_low=low,
        img_per_s_high=high,
        error=timing.error,
        environment=timing.environment,
    )


def _key(row: Case | ThroughputRecord) -> tuple[object, ...]:
    """What makes two measurements the same."""
    device = row.device if isinstance(row, Case) else row.environment.device.partition(" ")[0]
    names = ("model", "engine", "precision", "batch_size", "threads", "img_size")
    return device, *(getattr(row, name) for name in names)


def _named(models: Sequence[str | nn.Module]) -> dict[str, str | nn.Module]:
    """Names as they are; a module by its class, numbered where there are several."""
    named: dict[str, str | nn.Module] = {}
    for model in models:
        name = model if isinstance(model, str) else type(model).__name__
        count = sum(other.partition(" ")[0] == name for other in named)
        named[f"{name} {count + 1}" if count and not isinstance(model, str) else name] = model
    return named
