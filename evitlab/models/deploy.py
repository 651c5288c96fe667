"""The exact inference form: the same function with fewer operators and fewer bytes moved.

What changes, all of it algebra:

- BatchNorm folds into the convolution or linear layer beside it, the classifier's too; two
  classifiers whose logits are averaged are one.
- A residual depthwise convolution takes its identity in as one more tap.
- x + W h + b becomes one accumulating matrix product: the bias b moves ahead into the bias of the
  depthwise convolution before it, and what reads x in between subtracts it in its own bias.
- The softmax scale goes into the queries' convolution.
- That convolution, whose map is one small window, becomes a matrix per channel: calling a
  convolution costs more than its arithmetic there.
- Attention-bias tables are expanded to [N, N] once.
- Tokens are rows and channels columns throughout, [B, H, W, C], so that no matrix product needs a
  copy of its operands; only windows of a larger map do.

Shape legend: B images, C channels, H x W the feature map, N tokens of a window.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from evitlab.models.config import EfficientViTConfig
from evitlab.models.deployed_layers import (
    Classifier,
    Convolution,
    DeployedAttention,
    DeployedFFN,
    DeployedMerging,
    Depthwise,
    Shift,
    in_place,
)
from evitlab.models.deployed_transformer import DeployedTransformer
from evitlab.models.efficientvit import (
    FFN,
    EfficientViT,
    EfficientViTStage,
    LocalWindowAttention,
    PatchMerging,
    check_images,
)
from evitlab.models.layers import ConvNorm, NormLinear, Residual


def deploy(model: nn.Module) -> Any:
    """Rewrite a model to its exact inference form; the model passed in is untouched.

    Args:
        model: an EfficientViT, a baseline or timm's ViT, DeiT or Swin, pruned or not, in evaluation
            mode; any image size, device and dtype, which the result keeps. Of a detector the
            backbone is rewritten, which has to be one of these.

    Returns:
        A `DeployedEfficientViT` or `DeployedTransformer`: [B, in_chans, H, W] images ->
        [B, num_classes] logits, equal up to rounding (at most 1e-5 of the largest logit in
        float32). It stays in evaluation mode and takes no state dict: load the weights into the
        model and deploy that. A detector stays a `RetinaNet`.

    Raises:
        ValueError: another kind of model, a model in training mode, or an EfficientViT with norms
            other than BatchNorm.

    Paper: Section 3.2 (BatchNorm can be folded); the rest is this library's.

    Example:
        >>> model = evitlab.create_model("efficientvit_m0_p4", img_size=32, num_classes=10).eval()
        >>> fast, images = evitlab.deploy(model), torch.rand(2, 3, 32, 32)
        >>> torch.allclose(fast(images), model(images), atol=1e-5)
        True
    """
    if isinstance(model, DEPLOYED):
        return model
    if isinstance(getattr(getattr(model, "backbone", None), "body", None), nn.Module):
        return _deployed_detector(model)
    if not isinstance(model, (EfficientViT, VisionTransformer, SwinTransformer)):
        raise ValueError(
            "model: expected an EfficientViT, or a ViT, DeiT or Swin of timm, got "
            f"{type(model).__name__}"
        )
    if model.training:
        raise ValueError("model: expected evaluation mode (call model.eval()), got training mode")
    with torch.no_grad():
        if isinstance(model, EfficientViT):
            return DeployedEfficientViT(model)
        return DeployedTransformer(model)


def _deployed_detector(detector: Any) -> Any:
    """A copy with its backbone deployed; boxes and scores are equal up to rounding."""
    body = deploy(detector.backbone.body)
    if body is detector.backbone.body:
        return detector
    whole = detector.backbone.body
    detector.backbone.body = nn.Identity()  # not copied: its place is taken
    try:
        deployed = copy.deepcopy(detector)
    finally:
        detector.backbone.body = whole
    deployed.backbone.body = body
    return deployed.eval()


class DeployedEfficientViT(nn.Module):
    """What `deploy` returns: [B, in_chans, H, W] images -> [B, num_classes] logits."""

    config: EfficientViTConfig
    pretrained_cfg: dict[str, Any]
    class_names: tuple[str, ...]

    def __init__(self, model: EfficientViT) -> None:
        super().__init__()
        self.config = model.config
        self.pretrained_cfg = dict(getattr(model, "pretrained_cfg", {}))
        self.class_names = model.class_names
        self.channel_widths: Any = dict(getattr(model, "channel_widths", {}))
        self.num_features, self.feature_info = model.num_features, model.feature_info
        self.patch_embed = nn.Sequential(
            OrderedDict(
                (name, Convolution(layer) if isinstance(layer, ConvNorm) else layer)
                for name, layer in model.patch_embed.named_children()
            )
        )
        for layer in self.patch_embed:
            if isinstance(layer, Convolution):  # so its output is channels-last, as tokens are
                layer.weight.data = layer.weight.to(memory_format=torch.channels_last)
        self.stages = nn.Sequential(*(_stage(stage) for stage in model.stages))
        heads = [head for head in model.heads if isinstance(head, NormLinear)]
        self.head = Classifier(*heads) if heads else nn.Identity()
        super().train(False)

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] -> [B, C, H', W'], a view of channels-last memory."""
        return self.stages(self._tokens(x)).permute(0, 3, 1, 2)

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """[B, in_chans, H, W] -> the map of each stage, finest first, as `feature_info` says."""
        x, maps = self._tokens(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x.permute(0, 3, 1, 2))
        return maps

    def _tokens(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] -> patches, [B, H', W', C]."""
        check_images(x, self.config)
        for layer in self.patch_embed:
            x = layer(x) if isinstance(layer, Convolution) else in_place(layer, x)
        return x.permute(0, 2, 3, 1).contiguous()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def for_onnx(self) -> nn.Module:
        """The same function arranged for ONNX runtimes."""
        from evitlab.models.onnx_form import OnnxForm

        return OnnxForm(self).eval()

    def train(self, mode: bool = True) -> DeployedEfficientViT:
        if mode:
            raise ValueError("mode: a deployed model only infers; train the model it came from")
        return super().train(False)

    def load_state_dict(self, state_dict: Mapping[str, Any], *_: Any, **__: Any) -> NoReturn:
        raise ValueError(
            "state_dict: a deployed model takes none, its weights are folded; load them into the "
            "model it came from (create_model, load_weights) and deploy that"
        )


DEPLOYED = (DeployedEfficientViT, DeployedTransformer)


def _stage(stage: nn.Module) -> nn.Sequential:
    assert isinstance(stage, EfficientViTStage)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if isinstance(stage.downsample, nn.Sequential):
        down: OrderedDict[str, nn.Module] = OrderedDict()
        for name, part in stage.downsample.named_children():
            if isinstance(part, PatchMerging):
                down[name] = DeployedMerging(part)
            else:
                down[name] = _residuals(part.named_children())
        parts["downsample"] = nn.Sequential(down)
    parts["blocks"] = nn.Sequential(*(_residuals(block.named_children()) for block in stage.blocks))
    return nn.Sequential(parts)


def _residuals(parts: Iterable[tuple[str, nn.Module]]) -> nn.Sequential:
    """Residual layers in order, each bias moved ahead into the convolution before it."""
    deployed: list[tuple[str, nn.Module]] = []
    like: nn.Module
    absorbed: Tensor | None = None  # [C], what the parts behind expect to be in their input
    for name, residual in reversed(list(parts)):
        assert isinstance(residual, Residual)
        layer = residual.m
        if isinstance(layer, ConvNorm):
            deployed.append((name, Depthwise(layer, residual=True, shift=absorbed)))
            absorbed = None
            continue
        assert isinstance(layer, (FFN, LocalWindowAttention))
        if isinstance(layer, FFN):
            shift, like = DeployedFFN.shift(layer), layer
            absorbed = shift if absorbed is None else absorbed + shift
            deployed.append((name, DeployedFFN(layer, absorbed=absorbed)))
        else:
            shift, like = DeployedAttention.shift(layer), layer
            absorbed = shift if absorbed is None else absorbed + shift
            deployed.append((name, DeployedAttention(layer, absorbed=absorbed)))
    if absorbed is not None:
        deployed.append(("shift", Shift(absorbed, like)))
    return nn.Sequential(OrderedDict(reversed(deployed)))
