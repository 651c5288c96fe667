"""Sweeps with a name, as `evitlab bench --preset NAME` runs them."""

from __future__ import annotations

from evitlab.analysis.throughput import Plan
from evitlab.models.zoo import VARIANTS

FAMILY = tuple(VARIANTS)
# Small and fast, with published accuracies; each runs at the image size it was trained for.
PEERS = (
    "timm/mobilenetv2_100",
    "timm/mobilenetv3_small_100",
    "timm/mobilenetv3_large_100",
    "timm/mobilenetv4_conv_small",
    "timm/efficientnet_b0",
    "timm/ghostnet_100",
    "torchvision/shufflenet_v2_x1_0",
    "timm/mobileone_s1",
    "timm/repvit_m0_9",
    "timm/fastvit_t8",
    "timm/convnext_atto",
    "timm/mobilevit_xxs",
    "timm/mobilevitv2_050",
    "timm/edgenext_xx_small",
    "timm/levit_128s",
    "timm/tiny_vit_5m_224",
    "timm/pvt_v2_b0",
    "timm/deit_tiny_patch16_224",
    "timm/swin_tiny_patch4_window7_224",
)
SUBJECTS = (*FAMILY, "timm/deit_tiny_patch16_224", "timm/swin_tiny_patch4_window7_224")
TORCH_ENGINES = ("eager", "channels-last", "deploy", "traced", "compile")

PRESETS = {
    # Section 4.1: one CPU thread, batch 16, in PyTorch and as ONNX; a GPU, batch 2048 in float16;
    # traced, BatchNorm folded.
    "paper-cpu": Plan(
        (*FAMILY, *PEERS),
        engines=("traced", "onnxruntime"),
        batch_sizes=(16,),
        devices=("cpu",),
        seconds=6.0,
    ),
    "paper-gpu": Plan(
        (*FAMILY, *PEERS),
        engines=("traced",),
        batch_sizes=(2048,),
        precisions=("float16",),
        devices=("cuda",),
    ),
    # The map of speed over batch size and engine.
    "sweep": Plan(
        SUBJECTS,
        engines=(*TORCH_ENGINES, "onnxruntime", "openvino"),
        batch_sizes=(1, 4, 16, 64),
        devices=("cpu",),
        rounds=10,
        seconds=5.0,
    ),
    "sweep-gpu": Plan(
        (*SUBJECTS, "timm/efficientvit_m0", "timm/efficientvit_m5", "timm/vit_base_patch16_224"),
        engines=(*TORCH_ENGINES, "cuda-graph"),
        batch_sizes=(1, 4, 16, 64, 256, 1024),
        precisions=("float32", "bfloat16"),
        devices=("cuda",),
        rounds=10,
        seconds=5.0,
    ),
    # What `evitlab bench` does without a preset: half a minute.
    "quick": Plan(
        ("efficientvit_m0", "timm/efficientvit_m0"),
        engines=("eager", "deploy"),
        batch_sizes=(1, 16),
        seconds=3.0,
    ),
}
