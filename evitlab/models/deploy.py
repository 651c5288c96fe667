"""The exact inference form: the same function with fewer operators and fewer bytes moved.

What changes, all of it algebra:

- BatchNorm folds into the convolution or linear layer beside it, the classifier's too.
- A residual depthwise convolution takes its identity in as one more tap.
- x + W h + b becomes one accumulating matrix product: the bias b moves ahead into the bias of the
  depthwise convolution before it, and what reads x in between subtracts it in its own bias.
- The softmax scale goes into the queries' convolution.
- That convolution, whose map is one small window, becomes a matrix per channel: its call costs ten
  times its arithmetic.
- Attention-bias tables are expanded to [N, N] once.
- Tokens are rows and channels columns throughout, [B, H, W, C], so that no matrix product needs a
  copy of its operands; only windows of a larger map do.

Shape legend: B images, C channels, H x W the feature map, h heads, n windows of all images,
N tokens of a window, T = n * N tokens, d key width, c width of a head's split of the channels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evitlab.models.config import EfficientViTConfig
from evitlab.models.efficientvit import (
    FFN,
    CascadedGroupAttention,
    EfficientViT,
    EfficientViTStage,
    LocalWindowAttention,
    PatchMerging,
)
from evitlab.models.folding import fold_conv, fold_linear
from evitlab.models.layers import ConvNorm, NormLinear, Residual

TABLE_TOKENS = 64  # largest window whose query convolution becomes a matrix per channel


def deploy(model: nn.Module) -> DeployedEfficientViT:
    """Rewrite an EfficientViT to its exact inference form; the model passed in is untouched.

    Args:
        model: from `create_model` or `load_model`, in evaluation mode; any image size, device and
            dtype, which the result keeps.

    Returns:
        [B, in_chans, H, W] images -> [B, num_classes] logits, equal up to rounding (relative
        1e-6 in float32). It stays in evaluation mode and takes no state dict: load the weights
        into the model and deploy that.

    Raises:
        ValueError: another kind of model, a model in training mode, or norms other than BatchNorm.

    Paper: Section 3.2 (BatchNorm can be folded); the rest is this library's.
    """
    if isinstance(model, DeployedEfficientViT):
        return model
    if not isinstance(model, EfficientViT):
        raise ValueError(f"model: expected an EfficientViT, got {type(model).__name__}")
    if model.training:
        raise ValueError("model: expected evaluation mode (call model.eval()), got training mode")
    with torch.no_grad():
        return DeployedEfficientViT(model)


class Pointwise(nn.Module):
    """Linear layer over the last axis, its BatchNorm folded in: [..., in] -> [..., out]."""

    def __init__(self, layer: ConvNorm, *, absorbed: Tensor | None = None) -> None:
        """`absorbed` [in]: already added to the input, to be taken out again by the bias."""
        super().__init__()
        weight, bias = fold_conv(layer)
        weight = weight.flatten(1)
        if absorbed is not None:
            bias = bias - weight @ absorbed
        self.weight = _fixed(weight, layer)
        self.bias = _fixed(bias, layer)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Convolution(nn.Module):
    """Convolution with its BatchNorm folded in: [B, C, H, W] -> [B, C', H', W']."""

    def __init__(
        self, layer: ConvNorm, *, residual: bool = False, shift: Tensor | None = None
    ) -> None:
        super().__init__()
        weight, bias = fold_conv(layer)
        kernel = weight.shape[-1]
        if residual:  # x + conv(x): the identity is one more on the middle tap
            weight[:, 0, kernel // 2, kernel // 2] += 1.0
        self.weight = _fixed(weight, layer)
        self.bias = _fixed(bias if shift is None else bias + shift, layer)
        self.stride, self.padding = layer.conv.stride, kernel // 2
        self.groups = layer.conv.groups

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)


class Depthwise(Convolution):
    """The same over tokens: [B, H, W, C] -> [B, H', W', C]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Shift(nn.Module):
    """Adds what the parts behind it absorb, where no convolution stands before them."""

    def __init__(self, shift: Tensor, like: nn.Module) -> None:
        super().__init__()
        self.shift = _fixed(shift, like)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class DeployedFFN(nn.Module):
    """x + W2 act(W1 x + b1) with b2 already in x; [B, H, W, C] -> same."""

    def __init__(self, ffn: FFN, *, absorbed: Tensor) -> None:
        super().__init__()
        self.expand = Pointwise(ffn.pw1, absorbed=absorbed)
        self.act = ffn.act
        self.project = _fixed(fold_conv(ffn.pw2)[0].flatten(1).t(), ffn.pw2)  # [hidden, C]

    @staticmethod
    def shift(ffn: FFN) -> Tensor:
        return fold_conv(ffn.pw2)[1]

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        hidden = _in_place(self.act, self.expand(tokens))
        return torch.addmm(tokens, hidden, self.project).view(x.shape)


class AttentionHead(nn.Module):
    """One head over its split of the channels: feature [T, c] -> output [T, value width]."""

    table: Tensor | None  # [d, N, N], the query convolution as one matrix per channel
    bias: Tensor  # [N, N], the expanded attention biases

    def __init__(self, attention: CascadedGroupAttention, head: int, *, absorbed: Tensor) -> None:
        super().__init__()
        self.key_dim = key_dim = attention.key_dim
        self.window = attention.window
        qkv, dw = attention.qkvs[head], attention.dws[head]
        assert isinstance(qkv, ConvNorm) and isinstance(dw, ConvNorm)
        weight, bias = fold_conv(qkv)
        weight = weight.flatten(1)
        bias = bias - weight @ absorbed
        self.query_weight = _fixed(weight[:key_dim], qkv)  # [d, c]
        self.query_bias = _fixed(bias[:key_dim, None], qkv)  # [d, 1]
        self.key_value_weight = _fixed(weight[key_dim:].t(), qkv)  # [c, d + value width]
        self.key_value_bias = _fixed(bias[key_dim:], qkv)
        kernel, kernel_bias = (part * attention.scale for part in fold_conv(dw))
        self.kernel = _fixed(kernel, dw)  # [d, 1, k, k]
        self.kernel_bias = _fixed(kernel_bias, dw)
        table = None
        if self.window[0] * self.window[1] <= TABLE_TOKENS:
            table = _fixed(_as_matrices(kernel, self.window), dw).data
        self.register_buffer("table", table, persistent=False)
        logits = attention.attention_biases[head][attention.attention_bias_idxs]
        self.register_buffer("bias", logits.detach().clone(), persistent=False)  # [N, N]

    def forward(self, feature: Tensor, padding: Tensor | None = None) -> Tensor:
        """padding [windows of one image, N], True where a token is none."""
        rows, columns = self.window
        N, d = rows * columns, self.key_dim
        n = feature.shape[0] // N
        query = torch.addmm(self.query_bias, self.query_weight, feature.t()).view(d, n, N)
        bias = self.bias
        if padding is not None:
            query = query.unflatten(1, (-1, len(padding))).masked_fill(padding, 0.0).flatten(1, 2)
            bias = bias.expand(len(padding), N, N).masked_fill(padding[:, None], float("-inf"))
            bias = bias.repeat(n // len(padding), 1, 1)
        if self.table is not None:
            query = torch.baddbmm(self.kernel_bias.view(d, 1, 1), query, self.table)
        else:
            maps = query.transpose(0, 1).view(n, d, rows, columns)
            maps = F.conv2d(maps, self.kernel, self.kernel_bias, padding="same", groups=d)
            query = maps.flatten(2).transpose(0, 1)
        key_value = torch.addmm(self.key_value_bias, feature, self.key_value_weight).view(n, N, -1)
        key, value = key_value[..., :d], key_value[..., d:]
        logits = torch.baddbmm(bias, query.permute(1, 2, 0), key.transpose(1, 2))  # [n, N, N]
        return torch.bmm(logits.softmax(-1), value).view(n * N, -1)


class DeployedAttention(nn.Module):
    """x + Wp act(heads(x)) with the projection's bias already in x; [B, H, W, C] -> same."""

    def __init__(self, layer: LocalWindowAttention, *, absorbed: Tensor) -> None:
        super().__init__()
        attention = layer.attn
        self.window, self.mask_padding = layer.window, layer.mask_padding
        self.split_dim, self.cascade = attention.split_dim, attention.cascade
        self.act, proj = attention.proj
        assert isinstance(proj, ConvNorm)
        splits = absorbed.split(self.split_dim)
        self.heads = nn.ModuleList(
            AttentionHead(attention, head, absorbed=splits[head % len(splits)])
            for head in range(attention.num_heads)
        )
        self.project = _fixed(fold_conv(proj)[0].flatten(1).t(), proj)  # [h * value width, C]
        self.absorbed = _fixed(absorbed, proj)

    @staticmethod
    def shift(layer: LocalWindowAttention) -> Tensor:
        proj = layer.attn.proj[1]
        assert isinstance(proj, ConvNorm)
        return fold_conv(proj)[1]

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        if (H, W) == self.window:
            tokens = x.reshape(-1, C)
            return torch.addmm(tokens, self.attend(tokens), self.project).view(x.shape)
        tokens, padding, grid = self.partition(x)
        out = self.attend(tokens, padding) @ self.project
        return x + self.merge(out, grid)[:, :H, :W]

    def attend(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """[T, C] -> the heads' outputs side by side, activated, [T, h * value width]."""
        splits = tokens.split(self.split_dim, 1)
        outputs: list[Tensor] = []
        for head, module in enumerate(self.heads):
            feature = splits[head % len(splits)]
            if self.cascade and head > 0:
                feature = feature + fit_width(outputs[-1], self.split_dim)
            outputs.append(module(feature, padding))
        return _in_place(self.act, torch.cat(outputs, 1))

    def partition(self, x: Tensor) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """[B, H, W, C] -> tokens [T, C] window by window, padding, windows per column and row."""
        (rows, columns), (_, H, W, C) = self.window, x.shape
        below, right = -H % rows, -W % columns
        padding = None
        if below or right:
            # A padded token is 0 before anything was absorbed into it.
            shown = x if self.mask_padding else x - self.absorbed
            x = F.pad(shown, (0, 0, 0, right, 0, below))
            x = x if self.mask_padding else x + self.absorbed
            if self.mask_padding:
                outside = x.new_ones(1, H + below, W + right, 1, dtype=torch.bool)
                outside[:, :H, :W] = False
                padding = self._windows(outside).reshape(-1, rows * columns)
        return self._windows(x).reshape(-1, C), padding, (x.shape[1] // rows, x.shape[2] // columns)

    def _windows(self, x: Tensor) -> Tensor:
        rows, columns = self.window
        x = x.unflatten(2, (-1, columns)).unflatten(1, (-1, rows))  # [B, H/r, r, W/c, c, C]
        return x.transpose(2, 3)

    def merge(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """[T, C] -> [B, H, W, C], the padding still there."""
        x = tokens.view(-1, *grid, *self.window, tokens.shape[-1]).transpose(2, 3)
        return x.flatten(3, 4).flatten(1, 2)


class DeployedMerging(nn.Module):
    """Inverted residual with squeeze-excite; [B, H, W, C] -> [B, H/2, W/2, C']."""

    def __init__(self, merging: PatchMerging) -> None:
        super().__init__()
        self.conv1 = Pointwise(merging.conv1)
        self.conv2 = Depthwise(merging.conv2)
        self.conv3 = Pointwise(merging.conv3)
        self.act = merging.act
        squeeze, excite, like = merging.se.fc1, merging.se.fc2, merging.conv1
        self.squeeze_weight = _fixed(squeeze.weight.flatten(1), like)
        assert squeeze.bias is not None and excite.bias is not None
        self.squeeze_bias = _fixed(squeeze.bias, like)
        self.excite_weight = _fixed(excite.weight.flatten(1), like)
        self.excite_bias = _fixed(excite.bias, like)

    def gate(self, mean: Tensor) -> Tensor:
        """[B, C] -> [B, C], how much of each channel passes."""
        hidden = F.linear(mean, self.squeeze_weight, self.squeeze_bias).relu_()
        return F.linear(hidden, self.excite_weight, self.excite_bias).sigmoid_()

    def forward(self, x: Tensor) -> Tensor:
        x = _in_place(self.act, self.conv2(_in_place(self.act, self.conv1(x))))
        return self.conv3(x.mul_(self.gate(x.mean((1, 2)))[:, None, None]))


class Classifier(nn.Module):
    """Linear layer with the BatchNorm before it folded in: [B, C] -> [B, num_classes]."""

    def __init__(self, head: NormLinear) -> None:
        super().__init__()
        self.weight, self.bias = (_fixed(part, head) for part in fold_linear(head))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


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
        self.head = Classifier(model.head) if isinstance(model.head, NormLinear) else nn.Identity()
        super().train(False)

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] -> [B, C, H', W'], a view of channels-last memory."""
        self._check(x)
        for layer in self.patch_embed:
            x = layer(x) if isinstance(layer, Convolution) else _in_place(layer, x)
        return self.stages(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)

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

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.config.in_chans:
            wanted = f"[B, {self.config.in_chans}, H, W]"
            raise ValueError(f"images: expected {wanted}, got {list(x.shape)}")
        if min(x.shape[2:]) < self.config.patch_size:
            least = self.config.patch_size
            raise ValueError(f"images: expected sides of at least {least}, got {list(x.shape[2:])}")


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


def _fixed(values: Tensor, like: nn.Module) -> nn.Parameter:
    """A weight that does not train, dense, of the dtype and on the device of `like`."""
    reference = next(like.parameters())
    tensor = values.detach().to(reference.device, reference.dtype, copy=True).contiguous()
    return nn.Parameter(tensor, requires_grad=False)


def _as_matrices(kernel: Tensor, window: tuple[int, int]) -> Tensor:
    """A depthwise kernel [d, 1, k, k] over a window as x @ matrix per channel: [d, N, N]."""
    rows, columns = window
    d, N = len(kernel), rows * columns
    units = torch.eye(N, dtype=kernel.dtype, device=kernel.device).view(N, 1, rows, columns)
    maps = F.conv2d(units.expand(N, d, rows, columns), kernel, padding="same", groups=d)
    return maps.flatten(2).transpose(0, 1)


def fit_width(x: Tensor, width: int) -> Tensor:
    """Cut or zero-pad the last axis."""
    surplus = width - x.shape[-1]
    return F.pad(x, (0, surplus)) if surplus else x


def _in_place(activation: nn.Module, x: Tensor) -> Tensor:
    """Overwrites x: nothing else reads it here, and a fresh tensor would cost its bytes again."""
    return x.relu_() if isinstance(activation, nn.ReLU) else F.hardswish(x, inplace=True)
