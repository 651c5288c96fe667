"""What must not matter does not: threads, precision, memory layout, order and split of a batch.

Each analysis runs on the models and images of `analyses`, and once more under each condition. The
other order, layout and number of threads change the order in which sums are taken, which float64
shows as some 1e-14 of the largest value, and as 1e-11 where differences of such sums are divided by
each other: the tolerance is 1e-9. Pixels are normalised in float32, whose rounding is 5e8 times as
coarse; hence 1e-4 there, and 1e-3 between float32 and float64, where scores are squares of sums.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from analyses import Subject, differences, run

ORDERED = Subject()
CONDITIONS: dict[str, tuple[Subject, int, float]] = {
    "2 threads": (ORDERED, 2, 1e-9),
    "float32": (replace(ORDERED, dtype=torch.float32), 1, 1e-3),
    "channels last": (replace(ORDERED, layout=torch.channels_last), 1, 1e-9),
    "shuffled, 3 and 1 at a time": (replace(ORDERED, order=(2, 0, 3, 1), batch_size=3), 1, 1e-9),
}
# By name: the analysis, its options, and the family of models.
RUNS: dict[str, tuple[str, dict[str, Any], str]] = {
    "logits": ("logits", {}, "efficientvit"),
    "deployed": ("deploy", {}, "efficientvit"),
    "at another size": ("load_weights", {}, "efficientvit"),
    "attention": ("capture_attention", {}, "efficientvit"),
    "attention of Swin": ("capture_attention", {}, "swin"),
    "head similarity": ("head_similarity", {}, "efficientvit"),
    "heads ablated": ("ablate_heads", {}, "efficientvit"),
    "rollout": ("attention_rollout", {}, "efficientvit"),
    "channel importance": ("channel_importance", {}, "efficientvit"),
    "channel importance of DeiT": ("channel_importance", {"criterion": "abs-taylor"}, "deit"),
    "cuts": ("measure_cuts", {}, "deit"),
    "prune": ("prune", {"keep": 0.5}, "deit"),
    "integrated gradients": (
        "attribute", {"method": "integrated_gradients", "steps": 4}, "deit",
    ),
    "grad-cam": ("attribute", {"method": "grad_cam"}, "deit"),
    "occlusion": ("attribute", {"method": "occlusion", "patch": 16}, "deit"),
    "conductance": ("attribute", {"method": "layer_conductance", "steps": 2}, "deit"),
    "head ablation": ("attribute", {"method": "head_ablation"}, "deit"),
    "completeness": ("completeness_error", {}, "deit"),
    "faithfulness": ("deletion_insertion", {}, "deit"),
    "evaluate": ("evaluate", {}, "efficientvit"),
    "detect": ("predict_boxes", {}, "efficientvit"),
}  # fmt: skip
TOLERANCES = {"evaluate": 1e-4, "predict_boxes": 1e-4, "deletion_insertion": 2e-5}
# Nothing to compare: pixels are normalised in float32, and a detector's pictures are their own.
SENSELESS = {
    ("evaluate", "float32"), ("detect", "float32"), ("detect", "channels last"),
}  # fmt: skip


@cache
def ordinary(name: str) -> Any:
    analysis, options, family = RUNS[name]
    return run(analysis, replace(ORDERED, family=family), **options)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", RUNS)
def test_same_result(name: str, condition: str) -> None:
    if (name, condition) in SENSELESS:
        return
    analysis, options, family = RUNS[name]
    subject, threads, tolerance = CONDITIONS[condition]
    found = run(analysis, replace(subject, family=family), threads=threads, **options)
    allowed = max(tolerance, TOLERANCES.get(analysis, 0.0))
    wrong = differences(found, ordinary(name), allowed)
    assert not wrong, "\n".join(wrong[:20])


def test_the_images_differ() -> None:
    """Else no order of them would show."""
    logits = ordinary("logits")["logits"]
    for i in range(len(logits)):
        for j in range(i):
            assert (logits[i] - logits[j]).abs().max() > 0.05 * logits.abs().max()
