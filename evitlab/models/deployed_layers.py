"""The layers of the inference form; `deploy` says what makes them fast.

Shape legend: B images, C channels, H x W the feature map, h heads, n windows of all images,
N tokens of a window, T = n * N tokens, d key width, c width of a head's split of the channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evitlab.models.efficientvit import (
    FFN,
    CascadedGroupAttention,
    LocalWindowAttention,
    PatchMerging,
)
from evitlab.models.folding import fold_conv, fold_linear
from evitlab.models.layers import ConvNorm, NormLinear

TABLE_TOKENS = 64  # largest window whose query convolution becomes a matrix per channel


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
        hidden = in_place(self.act, self.expand(tokens))
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
        return in_place(self.act, torch.cat(outputs, 1))

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
        x = in_place(self.act, self.conv2(in_place(self.act, self.conv1(x))))
        return self.conv3(x.mul_(self.gate(x.mean((1, 2)))[:, None, None]))


class Classifier(nn.Module):
    """The heads' mean as one linear layer, BatchNorms folded in: [B, C] -> [B, num_classes]."""

    def __init__(self, *heads: NormLinear) -> None:
        super().__init__()
        parts = zip(*(fold_linear(head) for head in heads), strict=True)  # weights, biases
        self.weight, self.bias = (_fixed(torch.stack(part).mean(0), heads[0]) for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


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


def in_place(activation: nn.Module, x: Tensor) -> Tensor:
    """Overwrites x: nothing else reads it here, and a fresh tensor would cost its bytes again."""
    return x.relu_() if isinstance(activation, nn.ReLU) else F.hardswish(x, inplace=True)
