"""The published numbers the project holds its own beside, each with where it comes from."""

from evitlab.paper.ablations import fig7, table6
from evitlab.paper.detection import table5
from evitlab.paper.published import (
    PROVENANCES,
    PublishedNumber,
    architecture,
    load,
    number,
    recipe,
    tables,
    wide,
)
from evitlab.paper.speed import (
    MODELS,
    measured_speed_accuracy,
    speed_accuracy,
    speed_ratios,
    timm_top1,
)
from evitlab.paper.transfer import transfer

__all__ = [
    "MODELS",
    "PROVENANCES",
    "PublishedNumber",
    "architecture",
    "fig7",
    "load",
    "measured_speed_accuracy",
    "number",
    "recipe",
    "speed_accuracy",
    "speed_ratios",
    "table5",
    "table6",
    "tables",
    "timm_top1",
    "transfer",
    "wide",
]
