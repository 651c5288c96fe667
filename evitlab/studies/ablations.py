"""Table 6 and Fig. 7: what each choice of the design brings, one field of the configuration each.

Runs are named by their row of Table 6 (`row-2`) or their point of Fig. 7 (`key-dim-8`,
`value-ratio-0.8`), second seeds end in `-seed1`. `speeds` times all variants of M4 at 224 pixels.

A row that changes the multiply-accumulates by more than a tenth (another number or width of FFNs)
is brought back to row 1's by the width of all stages, since the paper compares at similar speed and
does not give its widths; the sweeps of Fig. 7 are left as they are, as there.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from evitlab.models.config import EfficientViTConfig
from evitlab.models.cost import count_macs
from evitlab.models.zoo import MODELS, create_model, native_img_size
from evitlab.records import AblationRun, Record, ThroughputSweep
from evitlab.studies.base import SMOKE, Budget, Conditions, Run, Study, Training, lab_budget
from evitlab.studies.speeds import speeds_run

Changes = Mapping[str, Any]
PUBLISHED = "efficientvit_m4"  # what the paper's rows change
SEEDS = (0, 1)
_TOLERANCE = 0.1  # of the multiply-accumulates, beyond which the width is adjusted

_FIXED: dict[str, dict[str, Any]] = {
    "row-1": {},
    "row-2": {"ffns": (0, 1)},  # Swin's order: attention, then one FFN
    "row-3": {"ffns": (2, 2)},
    "row-4": {"ffns": (3, 3)},
    "row-5": {"split": False, "cascade": False},
    "row-6": {"cascade": False},
    "row-8": {"ffn_ratio": 4.0},
    "row-9": {"token_interaction": False},
    "row-10": {"norm": "layer"},
    "row-11": {"activation": "hardswish"},
    **{f"key-dim-{width}": {"key_dim": (width,) * 3} for width in (4, 8, 32, 64)},
    **{f"value-ratio-{ratio}": {"value_ratio": ratio} for ratio in (0.4, 0.6, 0.8, 1.2)},
}
VARIANTS = (*(f"row-{number}" for number in range(1, 12)), *list(_FIXED)[10:])


def changes_of(variant: str, model: str) -> dict[str, Any]:
    """The fields of a model's configuration that a variant changes, its width included.

    Raises KeyError where there is no such variant.
    """
    config = MODELS[model]
    assert isinstance(config, EfficientViTConfig)
    if variant == "row-7":  # Q and K as wide as V, which is the head's split
        dims = zip(config.embed_dim, config.num_heads, strict=True)
        return {"key_dim": tuple(dim // heads for dim, heads in dims)}
    changes = _FIXED[variant]
    return {**changes, **_width(model, config, changes)}


def _width(model: str, config: EfficientViTConfig, changes: Changes) -> dict[str, Any]:
    """The `embed_dim` that brings the multiply-accumulates back, {} where they hardly change."""
    target, excess = _macs(model), _macs(model, **changes) / _macs(model)
    if abs(math.log(excess)) <= _TOLERANCE:
        return {}
    unit = 2 * math.lcm(*config.num_heads)  # channels that all heads can share, and an even number

    def embed_dim(percent: int) -> tuple[int, ...]:
        return tuple(max(unit, round(percent / 100 * d / unit) * unit) for d in config.embed_dim)

    def macs(percent: int) -> int:
        return _macs(model, **{**changes, "embed_dim": embed_dim(percent)})

    guess = round(100 / math.sqrt(excess))  # they grow with about the square of the width
    above = bisect_left(range(200), target, lo=guess - 8, hi=guess + 8, key=macs)
    closest = min((above - 1, above), key=lambda percent: abs(math.log(macs(percent) / target)))
    return {"embed_dim": embed_dim(closest)}


@cache
def _macs(model: str, **changes: Any) -> int:
    return count_macs(create_model(model, img_size=native_img_size(model), **changes))


def run_name(variant: str, seed: int) -> str:
    """ "row-2", or "row-2-seed1" where the seed is not 0."""
    return f"{variant}-seed{seed}" if seed else variant


def _runs(scale: str) -> tuple[Run, ...]:
    variants = VARIANTS if scale != "smoke" else ("row-1", "row-6")
    seeds = SEEDS if scale == "lab" else SEEDS[:1]
    points = [(variant, seed) for seed in seeds for variant in variants]
    trainings = [Run(run_name(*point), partial(_train, *point)) for point in points]
    return (*trainings, speeds_run(partial(_models, variants), img_size=224))


def _models(variants: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: create_model(PUBLISHED, **changes_of(name, PUBLISHED)).eval() for name in variants
    }


def training(conditions: Conditions) -> Training:
    """The budget of each run; on a GPU M4, on a CPU M0, which takes minutes."""
    if conditions.scale == "smoke":
        return Training("efficientvit_m0_p4").within(SMOKE)
    changes = {"batch_size": 64}  # more steps out of a short run
    if conditions.scale == "quick":
        return Training("efficientvit_m0_p4", changes=changes).within(Budget(1, 2_000, 1_000))
    cpu, gpu = Budget(3, 15_000), Budget(50)
    budget = lab_budget(conditions, cpu=cpu, gpu=gpu)
    if budget is gpu:
        return Training("efficientvit_m4_p4").within(gpu)
    return Training("efficientvit_m0_p4", changes=changes).within(cpu)


def _train(variant: str, seed: int, folder: Path, conditions: Conditions) -> Record:
    todo = training(conditions)
    changes = changes_of(variant, todo.model)
    _, record = replace(todo, overrides=changes, seed=seed).run(folder, conditions)
    return AblationRun(variant, seed, changes, record, record.environment)


STUDY = Study(
    "ablations",
    "Table 6 and Fig. 7: what each choice of the design brings",
    (AblationRun, ThroughputSweep),
    _runs,
)
