"""Rebuild, measure and extend the findings of EfficientViT (Microsoft, CVPR 2023)."""

from importlib import import_module
from typing import Any

from evitlab.version import __version__ as __version__

# The public names by the module that holds each. They load on first use: torch alone takes
# seconds, and drawing and notebooks bring large libraries along. `__init__.pyi` says the same to
# type checkers and editors.
_NAMES = {
    "analysis.ablation": ["ablate_heads"],
    "analysis.anchors": ["place_anchors"],
    "analysis.attribution": ["attribute", "completeness_error"],
    "analysis.attribution_picture": ["picture_attributions"],
    "analysis.capture": ["capture_attention"],
    "analysis.channels": ["channel_importance"],
    "analysis.cuts": ["measure_cuts"],
    "analysis.detector_speed": ["measure_detector"],
    "analysis.faithfulness": ["deletion_insertion"],
    "analysis.heads": ["head_similarity"],
    "analysis.matching": ["match_throughput"],
    "analysis.operators": ["profile_operators"],
    "analysis.pruning": ["PruneResult", "prune"],
    "analysis.recovery": ["prune_and_recover"],
    "analysis.rollout": ["attention_rollout"],
    "analysis.roofline": ["measure_roofline"],
    "analysis.structure": ["trace_block"],
    "analysis.throughput": ["measure_throughput"],
    "datasets": [
        "Dataset",
        "DetectionDataset",
        "Detections",
        "default_dataset_name",
        "default_detection_name",
        "open_dataset",
        "open_detection",
        "photograph",
    ],
    "explorer": ["AttentionExplorer"],
    "findings": ["Finding", "conclude"],
    "models.cost": ["count_macs", "count_params"],
    "models.deploy": ["deploy"],
    "models.detector": ["RetinaNet", "create_detector", "load_detector"],
    "models.export": ["export_onnx"],
    "models.weights": ["LoadReport", "load_weights"],
    "models.zoo": ["create_model", "list_models", "load_model"],
    "records": [
        "Accuracy",
        "AttributionPicture",
        "BoxAP",
        "ChannelImportance",
        "ClassificationReport",
        "DeployRatios",
        "DetectionRecord",
        "DetectorSpeed",
        "FaithfulnessCurves",
        "HeadSimilarity",
        "OperatorProfile",
        "PruningRecord",
        "QuantizationRecord",
        "Roofline",
        "ThroughputMatch",
        "ThroughputRecord",
        "ThroughputSweep",
        "TrainingRecord",
        "environment_card",
    ],
    "report": ["Report", "reproduce"],
    "studies": ["StudyReport", "load_study", "run_study", "study_frame"],
    "training.augment": ["Augment"],
    "training.box_ap": ["box_ap"],
    "training.checkpoint": ["save_weights"],
    "training.classifier": ["train"],
    "training.detecting": ["evaluate_detector", "predict_boxes"],
    "training.detection": ["train_detector"],
    "training.evaluation": ["Predictions", "evaluate", "predict"],
    "training.per_class": ["classification_report"],
    "training.planned_cost": ["planned_cost"],
    "training.protocol": ["compare_recipe"],
    "training.recipe": ["RECIPES", "Recipe"],
}
_MODULES = ["figures", "paper"]  # public as a whole

_WHERE = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted([*_WHERE, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"evitlab.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'evitlab' has no attribute {name!r}")
    found = getattr(import_module(f"evitlab.{_WHERE[name]}"), name)
    globals()[name] = found  # from now on without this detour
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # completion offers what has not been used yet
