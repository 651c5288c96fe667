"""How fast a study's models run, all in turns: the run `speeds`, which has the machine alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from evitlab.analysis.roofline import measure_roofline
from evitlab.analysis.throughput import Plan, sweep
from evitlab.records import ThroughputSweep, environment_card
from evitlab.studies.base import Conditions, Run

NAME = "speeds"
_ENGINES = ("traced", "onnxruntime")  # as in the paper: folded


def speeds_run(models: Callable[[], Mapping[str, Any]], *, img_size: int) -> Run:
    """The run that times models of [B, 3, H, W], given by the names that their rows get.

    On the CPU, unless a device is named: speeds on a GPU need other batches.

    Paper: Section 4.1: batch 16 on one CPU thread.
    """
    return Run(NAME, partial(_measure, models, img_size), alone=True)


def _measure(
    models: Callable[[], Mapping[str, Any]], img_size: int, folder: Path, conditions: Conditions
) -> ThroughputSweep:
    modules = models()
    smoke = conditions.scale == "smoke"
    device = conditions.device or "cpu"
    plan = Plan(
        models=tuple(modules),
        engines=_ENGINES[:1] if smoke else _ENGINES,
        batch_sizes=(1,) if smoke else (16,),
        threads=(conditions.threads,),
        devices=(device,),
        img_size=img_size,
        rounds=3 if smoke else 7,
        seconds=1.0 if smoke else 12.0,
    )
    rows = [row for found in sweep(plan, modules=modules) for row in found]
    roofline = measure_roofline(device, threads=conditions.threads)
    card = environment_card(device=device, dataset="noise", scale=conditions.scale)
    return ThroughputSweep(tuple(rows), roofline, conditions.command, card)
