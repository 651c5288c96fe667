"""The published numbers the project holds its own beside, each with where it comes from."""

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

__all__ = [
    "MODELS",
    "PROVENANCES",
    "PublishedNumber",
    "architecture",
    "load",
    "measured_speed_accuracy",
    "number",
    "recipe",
    "speed_accuracy",
    "speed_ratios",
    "tables",
    "timm_top1",
    "wide",
]
