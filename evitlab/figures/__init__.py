"""The paper's figures and tables redrawn: a record or a frame in, a matplotlib figure out.

Nothing here computes a result. The returned figures stand outside pyplot: show them as a cell's
last value, or write them with `save_figure`.
"""

from evitlab.figures.ablations import fig7_widths, table6_ablations
from evitlab.figures.anchors import detector_pyramid
from evitlab.figures.architecture import table1_architecture
from evitlab.figures.attention_share import fig3_attention_share
from evitlab.figures.attention_view import ViewCanvas, attention_view, describe
from evitlab.figures.attribution import attribution_grid, faithfulness_curves
from evitlab.figures.block import fig6_block
from evitlab.figures.channels import (
    channel_cuts,
    channel_scores,
    fig5_channels,
    recovery_curve,
)
from evitlab.figures.classification import class_accuracy, confusion_matrix, results_page
from evitlab.figures.deploy import deploy_ratios
from evitlab.figures.detection import boxes_beside_truth, detection_curves, table5_detection
from evitlab.figures.detector_speed import detector_parts
from evitlab.figures.heads import fig4_head_similarity, head_curves, head_maps
from evitlab.figures.images import image_grid
from evitlab.figures.operators import fig2_operators
from evitlab.figures.planned_cost import planned_cost
from evitlab.figures.roofline import roofline
from evitlab.figures.speed_accuracy import fig1_speed_accuracy
from evitlab.figures.speed_map import speed_map
from evitlab.figures.speed_tables import speed_ratios
from evitlab.figures.style import PALETTE, add_caption, house_style, new_figure, save_figure
from evitlab.figures.training import seed_curves, training_curves
from evitlab.figures.transfer import resolution, table4_transfer
from evitlab.figures.view_layout import Hit

__all__ = [
    "Hit",
    "PALETTE",
    "ViewCanvas",
    "add_caption",
    "attention_view",
    "attribution_grid",
    "boxes_beside_truth",
    "channel_cuts",
    "channel_scores",
    "class_accuracy",
    "confusion_matrix",
    "deploy_ratios",
    "describe",
    "detection_curves",
    "detector_parts",
    "detector_pyramid",
    "faithfulness_curves",
    "fig1_speed_accuracy",
    "fig2_operators",
    "fig4_head_similarity",
    "fig5_channels",
    "fig3_attention_share",
    "fig6_block",
    "fig7_widths",
    "head_curves",
    "head_maps",
    "house_style",
    "image_grid",
    "new_figure",
    "planned_cost",
    "recovery_curve",
    "resolution",
    "results_page",
    "roofline",
    "save_figure",
    "seed_curves",
    "speed_map",
    "speed_ratios",
    "table1_architecture",
    "table4_transfer",
    "table5_detection",
    "table6_ablations",
    "training_curves",
]
