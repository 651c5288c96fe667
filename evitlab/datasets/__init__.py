"""Data sets by name or path; see `open_dataset`."""

from evitlab.datasets.decoding import OnError
from evitlab.datasets.hub import NAMED_SETS, data_home, is_at_hand
from evitlab.datasets.memory import Dataset
from evitlab.datasets.opening import (
    EMBEDDED,
    AnyDataset,
    default_dataset_name,
    open_dataset,
    photograph,
)
from evitlab.datasets.streaming import StreamingDataset

__all__ = [
    "EMBEDDED",
    "NAMED_SETS",
    "AnyDataset",
    "Dataset",
    "OnError",
    "StreamingDataset",
    "data_home",
    "default_dataset_name",
    "is_at_hand",
    "open_dataset",
    "photograph",
]
