"""What a run leaves behind: frozen records that go to JSON and back, with their environment card.

A record is a frozen dataclass that inherits `Record`. Its type hints are its schema: what does not
fit them is refused when it is saved and when it is loaded, in one line that names the field.
"""

from evitlab.records.analysis_cost import AnalysisCost, AnalysisCostRow
from evitlab.records.attribution import (
    AttributionPicture,
    FaithfulnessCurve,
    FaithfulnessCurves,
)
from evitlab.records.base import Record, check_writable, unwritable, write_atomically
from evitlab.records.capture import CaptureRow, CaptureSweep
from evitlab.records.channels import (
    COMPONENTS,
    CRITERIA,
    ChannelCut,
    ChannelCuts,
    ChannelImportance,
    ChannelScores,
)
from evitlab.records.classification import (
    ClassificationReport,
    ClassResult,
    ConfusedPair,
)
from evitlab.records.comparison import (
    DataPathRow,
    DeployRatios,
    PeakRow,
    RatioRow,
    SpeedRecord,
    SpeedRow,
    ThroughputMatch,
    WidthSpeed,
    quartiles,
)
from evitlab.records.detection import (
    DETECTOR_PARTS,
    AnchorLevel,
    AnchorPlan,
    BoxAP,
    DetectionLog,
    DetectionRecord,
    DetectorPart,
    DetectorSpeed,
    DetectorTiming,
)
from evitlab.records.environment import SCALES, Environment, environment_card
from evitlab.records.explorer_cost import ExplorerCost, ExplorerStep
from evitlab.records.heads import (
    BlockHeads,
    HeadSimilarities,
    HeadSimilarity,
    HeadSimilarityRun,
)
from evitlab.records.pruning import (
    WIDTHS,
    ChannelWidths,
    PrunedPeer,
    PruningComparison,
    PruningRecord,
)
from evitlab.records.quantization import QuantizationRecord, QuantizationSpeed
from evitlab.records.speed import (
    CATEGORIES,
    CURVE,
    MEMORY_BOUND,
    PARTS,
    OperatorProfile,
    OperatorProfiles,
    OperatorRow,
    Roofline,
    ThroughputRecord,
    ThroughputSweep,
)
from evitlab.records.structure import BlockNode, BlockTrace
from evitlab.records.studies import AblationRun, AttentionShareRun
from evitlab.records.training import Accuracy, EpochLog, TrainingRecord
from evitlab.records.training_speed import LoopRatio, LoopSpeed, TrainingSpeed
from evitlab.records.view import OVERLAYS, AttentionView

__all__ = [
    "CATEGORIES",
    "COMPONENTS",
    "CRITERIA",
    "CURVE",
    "DETECTOR_PARTS",
    "MEMORY_BOUND",
    "LoopRatio",
    "LoopSpeed",
    "OVERLAYS",
    "PARTS",
    "SCALES",
    "WIDTHS",
    "AblationRun",
    "Accuracy",
    "AnalysisCost",
    "AnalysisCostRow",
    "AnchorLevel",
    "AnchorPlan",
    "AttentionShareRun",
    "AttentionView",
    "AttributionPicture",
    "BlockHeads",
    "BlockNode",
    "BlockTrace",
    "BoxAP",
    "CaptureRow",
    "CaptureSweep",
    "ChannelCut",
    "ChannelCuts",
    "ChannelImportance",
    "ChannelScores",
    "ChannelWidths",
    "ClassResult",
    "ClassificationReport",
    "ConfusedPair",
    "DataPathRow",
    "DeployRatios",
    "DetectionLog",
    "DetectionRecord",
    "DetectorPart",
    "DetectorSpeed",
    "DetectorTiming",
    "Environment",
    "ExplorerCost",
    "ExplorerStep",
    "EpochLog",
    "FaithfulnessCurve",
    "FaithfulnessCurves",
    "HeadSimilarities",
    "HeadSimilarity",
    "HeadSimilarityRun",
    "OperatorProfile",
    "OperatorProfiles",
    "OperatorRow",
    "PeakRow",
    "PrunedPeer",
    "PruningComparison",
    "PruningRecord",
    "QuantizationRecord",
    "QuantizationSpeed",
    "RatioRow",
    "Record",
    "Roofline",
    "SpeedRecord",
    "SpeedRow",
    "ThroughputMatch",
    "ThroughputRecord",
    "ThroughputSweep",
    "TrainingRecord",
    "TrainingSpeed",
    "WidthSpeed",
    "check_writable",
    "environment_card",
    "quartiles",
    "unwritable",
    "write_atomically",
]
