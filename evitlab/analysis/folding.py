"""The form in which a model is deployed: ours by `deploy`, any other by what its library offers."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from timm.layers import BatchNormAct2d
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._pytree import tree_leaves

from evitlab.models.efficientvit import EfficientViT

_TOLERANCE = 1e-3  # of the largest output, in float32: folding in another order rounds otherwise


def deployed(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy of a model for inference alone, with the BatchNorms folded into what precedes them.

    Ours goes through `deploy`. For others timm's own step comes first (`fuse()` of EfficientViT,
    LeViT, RepViT, TinyViT; the re-parameterised branches of FastViT, MobileOne), then each
    BatchNorm that stands behind its convolution is folded. Where the result does not compute the
    same, the model stays as it is: two neighbours in a module need not be called in turn.

    Args:
        model: in evaluation mode, in float32 on the CPU: timm's `fuse()` keeps neither.
        images: [B, C, H, W] to compare the outputs on.
    """
    if isinstance(model, EfficientViT):
        from evitlab.models.deploy import deploy

        return deploy(model)
    folded = fold_batch_norms(reparameterize_model(model)).eval()
    return folded if _same(model, folded, images) else copy.deepcopy(model)


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Fold, in place, each BatchNorm that follows a convolution among a module's children.

    timm's BatchNorm with an activation leaves the activation. Returns the model.
    """
    for parent in model.modules():
        children = [
            (name, child)
            for name, child in parent.named_children()
            if not isinstance(child, nn.Identity)
        ]
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            if conv.out_channels != norm.num_features or norm.running_mean is None:
                continue
            setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
            rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else None
            setattr(parent, norm_name, rest or nn.Identity())
    return model


def draw_statistics(model: nn.Module) -> nn.Module:
    """Draw, in place, statistics and scales of the BatchNorms from a fixed seed.

    A fresh BatchNorm is all but the identity: one that is folded wrongly would not be noticed.
    Returns the model.
    """
    generator = torch.Generator().manual_seed(0)

    def around(value: Tensor, middle: float, spread: float) -> None:
        noise = torch.rand(value.shape, generator=generator)
        value.copy_(middle + spread * (2 * noise - 1))

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                around(module.weight, 1, 0.2)
                around(module.bias, 0, 0.1)
                if module.running_mean is not None and module.running_var is not None:
                    around(module.running_mean, 0, 0.1)
                    around(module.running_var, 1, 0.2)
    return model


def _same(model: nn.Module, folded: nn.Module, images: Tensor) -> bool:
    with torch.inference_mode():
        pairs = zip(tree_leaves(model(images)), tree_leaves(folded(images)), strict=True)
        return all(
            bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())
            for expected, found in pairs
        )
