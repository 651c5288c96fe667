"""What one image costs: parameters and multiply–accumulates."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode


def count_params(model: nn.Module) -> int:
    """Number of parameters, buffers not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, img_size: int | tuple[int, int] | None = None) -> int:
    """Multiply–accumulates of convolutions and matrix products for one image.

    Counted while a copy of the model runs on the meta device, so nothing is computed and the
    model keeps its mode and statistics.

    Args:
        model: takes [B, C, H, W]; C and the default size come from its timm-style
            `pretrained_cfg["input_size"]`.
        img_size: int or (height, width).

    Of a detector, all but the selection of boxes is counted.

    Paper: what Tables 1 to 3 call FLOPs are MACs; torch's counter counts 2 for each, and nothing
    for fused attention on a CPU, hence the unfused kernel here.

    Example:
        >>> model = evitlab.create_model("efficientvit_m0")
        >>> evitlab.count_macs(model), evitlab.count_macs(model, img_size=448)  # Table 1: 79 M
        (79193600, 298498880)
    """
    return _counted(model, img_size).get_total_flops() // 2


def count_macs_by_module(
    model: nn.Module, img_size: int | tuple[int, int] | None = None
) -> dict[str, int]:
    """The same for each module by its dotted path, what it calls included; "" is the model."""
    counted = _counted(model, img_size).get_flop_counts()
    root = type(model).__name__
    return {
        name.removeprefix(root).removeprefix("."): sum(operators.values()) // 2
        for name, operators in counted.items()
        if name.startswith(root)
    }


def without_values(model: nn.Module) -> Any:
    """A copy on the meta device, which has shapes and computes nothing; no weight is copied."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        shape = tensor.detach().to("meta")
        trained = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(shape, tensor.requires_grad) if trained else shape
    return copy.deepcopy(model, memo)


def _unchanged(images: Tensor) -> Tensor:
    return images


def _counted(model: nn.Module, img_size: int | tuple[int, int] | None) -> FlopCounterMode:
    channels, *default = (getattr(model, "pretrained_cfg", None) or {}).get(
        "input_size", (3, 224, 224)
    )
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size or default
    ghost = without_values(model).eval()
    if hasattr(ghost, "forward_dense"):  # a detector: what it selects boxes with needs values
        ghost.forward = ghost.forward_dense
    for module in ghost.modules():
        # Half of the time of a count goes to the meta device's norms, which have no MACs.
        if type(module).forward is _BatchNorm.forward:
            module.forward = _unchanged
    dtype = next(iter(ghost.parameters()), torch.empty(0)).dtype
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        ghost(torch.empty(1, channels, height, width, device="meta", dtype=dtype))
    return counter
