"""Data sets by name or path; see `open_dataset`."""

from evitlab.datasets.classes import listed, match_classes, without_images
from evitlab.datasets.decoding import OnError, SizesDiffer
from evitlab.datasets.folders import holds_photographs
from evitlab.datasets.hub import NAMED_SETS, data_home, is_at_hand
from evitlab.datasets.memory import Dataset
from evitlab.datasets.opening import (
    EMBEDDED,
    AnyDataset,
    default_dataset_name,
    open_dataset,
    photograph,
)
from evitlab.datasets.sizes import common_img_size
from evitlab.datasets.streaming import StreamingDataset

__all__ = [
    "EMBEDDED",
    "NAMED_SETS",
    "AnyDataset",
    "Dataset",
    "OnError",
    "SizesDiffer",
    "StreamingDataset",
    "common_img_size",
    "data_home",
    "default_dataset_name",
    "holds_photographs",
    "listed",
    "match_classes",
    "is_at_hand",
    "open_dataset",
    "photograph",
    "without_images",
]
