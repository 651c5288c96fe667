"""Data sets by name or path; see `open_dataset`."""

from evitlab.datasets.classes import listed, match_classes, without_images
from evitlab.datasets.decoding import OnError, SizesDiffer
from evitlab.datasets.detection import DetectionDataset, Detections, check_boxes
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
from evitlab.datasets.opening_detection import SCENES, default_detection_name, open_detection
from evitlab.datasets.sizes import common_img_size
from evitlab.datasets.streaming import StreamingDataset
from evitlab.datasets.voc import voc_to_coco

__all__ = [
    "EMBEDDED",
    "NAMED_SETS",
    "SCENES",
    "AnyDataset",
    "Dataset",
    "DetectionDataset",
    "Detections",
    "OnError",
    "SizesDiffer",
    "StreamingDataset",
    "check_boxes",
    "common_img_size",
    "data_home",
    "default_dataset_name",
    "default_detection_name",
    "holds_photographs",
    "is_at_hand",
    "listed",
    "match_classes",
    "open_dataset",
    "open_detection",
    "photograph",
    "voc_to_coco",
    "without_images",
]
