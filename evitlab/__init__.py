"""Rebuild, measure and extend the findings of EfficientViT (Microsoft, CVPR 2023)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from evitlab.analysis.ablation import ablate_heads
from evitlab.analysis.anchors import place_anchors
from evitlab.analysis.attribution import attribute, completeness_error
from evitlab.analysis.attribution_picture import picture_attributions
from evitlab.analysis.capture import capture_attention
from evitlab.analysis.channels import channel_importance
from evitlab.analysis.cuts import measure_cuts
from evitlab.analysis.detector_speed import measure_detector
from evitlab.analysis.faithfulness import deletion_insertion
from evitlab.analysis.heads import head_similarity
from evitlab.analysis.matching import match_throughput
from evitlab.analysis.operators import profile_operators
from evitlab.analysis.pruning import PruneResult, prune
from evitlab.analysis.recovery import prune_and_recover
from evitlab.analysis.rollout import attention_rollout
from evitlab.analysis.roofline import measure_roofline
from evitlab.analysis.structure import trace_block
from evitlab.analysis.throughput import measure_throughput
from evitlab.datasets import (
    Dataset,
    DetectionDataset,
    Detections,
    default_dataset_name,
    default_detection_name,
    open_dataset,
    open_detection,
    photograph,
)
from evitlab.findings import Finding, conclude
from evitlab.models.cost import count_macs, count_params
from evitlab.models.deploy import deploy
from evitlab.models.detector import RetinaNet, create_detector, load_detector
from evitlab.models.export import export_onnx
from evitlab.models.weights import LoadReport, load_weights
from evitlab.models.zoo import create_model, list_models, load_model
from evitlab.records import (
    Accuracy,
    AttributionPicture,
    BoxAP,
    ChannelImportance,
    ClassificationReport,
    DeployRatios,
    DetectionRecord,
    DetectorSpeed,
    FaithfulnessCurves,
    HeadSimilarity,
    OperatorProfile,
    PruningRecord,
    QuantizationRecord,
    Roofline,
    ThroughputMatch,
    ThroughputRecord,
    ThroughputSweep,
    TrainingRecord,
    environment_card,
)
from evitlab.studies import StudyReport, load_study, run_study, study_frame
from evitlab.training.augment import Augment
from evitlab.training.box_ap import box_ap
from evitlab.training.checkpoint import save_weights
from evitlab.training.classifier import train
from evitlab.training.detecting import evaluate_detector, predict_boxes
from evitlab.training.detection import train_detector
from evitlab.training.evaluation import Predictions, evaluate, predict
from evitlab.training.per_class import classification_report
from evitlab.training.planned_cost import planned_cost
from evitlab.training.protocol import compare_recipe
from evitlab.training.recipe import RECIPES, Recipe

if TYPE_CHECKING:
    from evitlab import figures, paper
    from evitlab.explorer import AttentionExplorer
    from evitlab.report import Report, reproduce

__version__ = "0.1.0"

__all__ = [
    "Accuracy",
    "AttentionExplorer",
    "AttributionPicture",
    "Augment",
    "BoxAP",
    "ChannelImportance",
    "ClassificationReport",
    "Dataset",
    "DeployRatios",
    "DetectionDataset",
    "DetectionRecord",
    "Detections",
    "DetectorSpeed",
    "FaithfulnessCurves",
    "Finding",
    "HeadSimilarity",
    "LoadReport",
    "OperatorProfile",
    "Predictions",
    "PruneResult",
    "PruningRecord",
    "QuantizationRecord",
    "RECIPES",
    "Recipe",
    "Report",
    "RetinaNet",
    "Roofline",
    "StudyReport",
    "ThroughputMatch",
    "ThroughputRecord",
    "ThroughputSweep",
    "TrainingRecord",
    "ablate_heads",
    "attention_rollout",
    "attribute",
    "box_ap",
    "capture_attention",
    "channel_importance",
    "classification_report",
    "compare_recipe",
    "completeness_error",
    "conclude",
    "count_macs",
    "count_params",
    "create_detector",
    "create_model",
    "default_dataset_name",
    "default_detection_name",
    "deletion_insertion",
    "deploy",
    "environment_card",
    "evaluate",
    "evaluate_detector",
    "export_onnx",
    "figures",
    "head_similarity",
    "list_models",
    "load_detector",
    "load_model",
    "load_study",
    "load_weights",
    "match_throughput",
    "measure_cuts",
    "measure_detector",
    "measure_roofline",
    "measure_throughput",
    "open_dataset",
    "open_detection",
    "paper",
    "photograph",
    "picture_attributions",
    "place_anchors",
    "planned_cost",
    "predict",
    "predict_boxes",
    "profile_operators",
    "prune",
    "prune_and_recover",
    "reproduce",
    "run_study",
    "save_weights",
    "study_frame",
    "trace_block",
    "train",
    "train_detector",
]

# Drawing and notebooks bring large libraries along, so they load on first use.
_ON_FIRST_USE = {
    "AttentionExplorer": "explorer",
    "Report": "report",
    "figures": "",
    "paper": "",
    "reproduce": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module 'evitlab' has no attribute {name!r}")
    module = import_module(f"evitlab.{_ON_FIRST_USE[name] or name}")
    return getattr(module, name) if _ON_FIRST_USE[name] else module
