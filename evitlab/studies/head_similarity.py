"""Fig. 4: how alike the heads of DeiT-T and Swin-T at 1.25 times their speed attend, with and
without head splits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from evitlab.analysis.conditions import cpu_threads
from evitlab.analysis.heads import head_similarity
from evitlab.analysis.subjects import untrained
from evitlab.datasets import default_dataset_name, open_dataset
from evitlab.records import HeadSimilarityRun, ThroughputMatch
from evitlab.studies import attention_share
from evitlab.studies.base import Conditions, Run, Study, Training

LINES = ("DeiT-T-1.25x", "Swin-T-1.25x")
SHARE = 0.5  # of attention layers: the original's


def run_name(line: str, *, split_heads: bool) -> str:
    """ "DeiT-T-1.25x-split" where heads see splits."""
    return f"{line}{'-split' * split_heads}"


def _runs(scale: str) -> tuple[Run, ...]:
    lines = LINES if scale != "smoke" else LINES[:1]
    points = [(line, split) for line in lines for split in (False, True)]
    widths = [attention_share.width_run(line, SHARE, split_heads=s) for line, s in points]
    runs = [
        Run(run_name(line, split_heads=s), partial(_train, line, s, scale), after=(width.name,))
        for (line, s), width in zip(points, widths, strict=True)
    ]
    return (*widths, *runs)


def training(scale: str) -> Training:
    """The budget of each run; the model is put in by the run."""
    if scale == "smoke":
        return Training("", epochs=1, limit=256, val_limit=100)
    if scale == "quick":
        return Training("", epochs=1, limit=5000, val_limit=1000)
    return Training("", epochs=3)


def _train(
    line: str, split_heads: bool, scale: str, folder: Path, conditions: Conditions
) -> HeadSimilarityRun:
    match = attention_share.matched(
        folder, attention_share.run_name(line, SHARE, split_heads=split_heads)
    )
    overrides = {
        "embed_dim": match.embed_dim, "attention_share": SHARE, "split_heads": split_heads,
    }  # fmt: skip
    todo = replace(training(scale), model=attention_share.LINES[line][0], overrides=overrides)
    model, record = todo.run(folder, conditions)
    images = open_dataset(
        conditions.data or default_dataset_name(), "val", img_size=model.config.img_size,
        limit=32 if scale == "smoke" else 512,
    )  # fmt: skip
    name = run_name(line, split_heads=split_heads)
    with cpu_threads(conditions.threads):
        trained, fresh = (
            head_similarity(
                subject, images, batch_size=64, device=conditions.device, name=name, weights=label
            )
            for subject, label in ((model, "trained"), (untrained(model), "untrained"))
        )
    return HeadSimilarityRun(
        line, split_heads, match, record, trained, fresh, record.environment
    )


STUDY = Study(
    "head-similarity",
    "Fig. 4: how alike heads attend, with all channels or each with its own split",
    (HeadSimilarityRun, ThroughputMatch),
    _runs,
)
