"""What training the family as in the paper would cost: images, steps and hours."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from evitlab import paper
from evitlab.records import SpeedRecord, TrainingSpeed
from evitlab.resources import data_dir

IMAGENET_IMAGES = 1_281_167  # training images of ImageNet-1k
IMG_SIZE = 224  # pixels of both sides
GPU = "one H200"
_TITLES = {
    name: title for name, (title, family) in paper.MODELS.items() if family == "EfficientViT"
}
# What fills the GPU's cells.
COMMAND = (
    f"evitlab bench --train {' '.join(_TITLES)} --img-size {IMG_SIZE} --device cuda --json FILE"
)


def planned_cost(
    measured: Sequence[SpeedRecord | TrainingSpeed] | None = None,
) -> pd.DataFrame:
    """Images, steps and hours of the paper's training, one row per member and machine.

    Columns: model, macs_m, images, steps, machine, how, img_per_s (images per second, NaN where it
    was not measured), hours (NaN likewise, and `how` is then the command that measures it).

    The 8 V100 stand twice, since only M5's hours are published: scaled by multiply-accumulates, as
    if every member used the GPU equally well, and by the published inference speeds, which say how
    well each does. The truth should lie between.

    Args:
        measured: training steps at 224 pixels, of `evitlab bench --preset timm` or `--train`; of
            each model the largest batch counts, and of several records of one machine the last.
            None takes what is recorded in data/results.

    Raises:
        ValueError: a record without training steps of the family, or of another image size.

    Paper: Section 4.1; about 30 hours for M5 on 8 V100 (official README).
    Pitfall: hours of a measured machine are of training steps alone. Decoding 1.3 million JPEGs an
    epoch, and evaluation, come on top where they do not run beside them.
    """
    if measured is None:
        measured = [SpeedRecord.load(data_dir() / "results" / "speed_vs_timm.json")]
    published = paper.recipe("imagenet")
    epochs, batch = published["epochs_trained"], published["batch_total"]
    steps = epochs * (IMAGENET_IMAGES // batch)
    images = steps * batch
    members = _members()
    rows = []

    def add(
        model: str, machine: str, how: str, img_per_s: float | None, hours: float | None
    ) -> None:
        macs_m = members.loc[model, "macs_m"]
        rows.append((model, macs_m, images, steps, machine, how, img_per_s, hours))

    reference, hours = members.loc["EfficientViT-M5"], published["training_h"]
    for column, how in (("macs_m", "MACs"), ("gpu_img_s", "inference speed")):
        for model, member in members.iterrows():
            ratio = member[column] / reference[column]
            scaled = hours * (ratio if column == "macs_m" else 1 / ratio)
            origin = "published" if model == "EfficientViT-M5" else f"M5's, scaled by {how}"
            add(str(model), f"8 V100, by {how}", origin, images / scaled / 3600, scaled)
    speeds: dict[tuple[str, str], float] = {}
    for record in measured:
        machine = record.environment.hardware
        speeds |= {(machine, model): speed for model, speed in _training_speeds(record).items()}
    for (machine, model), speed in speeds.items():
        add(model, machine, "measured", speed, images / speed / 3600)
    machines = {row[4] for row in rows}
    if not any("H200" in machine for machine in machines):
        for model in members.index:
            add(model, GPU, COMMAND, None, None)
    columns = ["model", "macs_m", "images", "steps", "machine", "how", "img_per_s", "hours"]
    return pd.DataFrame(rows, columns=columns).astype({"img_per_s": float, "hours": float})


def _members() -> pd.DataFrame:
    """Published multiply-accumulates and V100 speed, by model."""
    table = paper.wide("imagenet")
    own = table[(table["family"] == "EfficientViT") & table["epochs"].eq(300)]
    return own.set_index("model")[["macs_m", "gpu_img_s"]]


def _training_speeds(record: SpeedRecord | TrainingSpeed) -> dict[str, float]:
    """Images per second of a training step with the largest batch, by published name."""
    if isinstance(record, TrainingSpeed):
        if record.img_size != (IMG_SIZE, IMG_SIZE):
            height, width = record.img_size
            raise ValueError(
                f"measured: expected training steps at {IMG_SIZE}x{IMG_SIZE} pixels, got a record "
                f"of {height}x{width}; `{COMMAND}` measures them"
            )
        found = {row.model: row.img_per_s for row in record.loops if row.loop == "evitlab"}
    else:
        steps = [row for row in record.rows if row.task == "training step"]
        steps.sort(key=lambda row: row.batch_size)
        found = {row.model: 1e3 * row.batch_size / row.ours_ms for row in steps}
    speeds = {_TITLES[name]: speed for name, speed in found.items() if name in _TITLES}
    if not speeds:
        raise ValueError("measured: expected training steps of the family, got a record without")
    return speeds
