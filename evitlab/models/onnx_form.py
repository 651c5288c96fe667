"""The deployed form arranged for ONNX runtimes: few nodes, few changes of layout.

A runtime keeps convolutions in a blocked layout of its own and pays a copy each time a graph leaves
it, and some microseconds for every node. So here feature maps stay [B, C, H, W], in which an FFN
is two convolutions whose activation and residual sum the runtime fuses, and tokens appear only
inside the attention. There, on top of `deploy`'s algebra:

- A bias of the keys adds the same to all logits of a query, which softmax ignores: it is gone.
- Attention weights sum to 1, so a bias of the values passes through them: it moves on to where the
  output is read, the next head's query and the projection.
- Q K^T = Q (F Wk)^T = (Q Wk^T) F^T: the queries take the keys' weight as one more convolution while
  they are a map, and the features F themselves serve as keys; where that costs little arithmetic.

Shape legend: see `deploy`.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evitlab.models.deploy import DeployedEfficientViT
from evitlab.models.deployed_layers import (
    AttentionHead,
    Convolution,
    DeployedAttention,
    DeployedFFN,
    DeployedMerging,
    Shift,
    fit_width,
)

# Extra multiply-accumulates a token for which features serve as keys, N (c - d): a node fewer is
# worth them at batch 1 and no loss at batch 16.
KEYS_WORTH = 1000


class OnnxForm(nn.Module):
    """[B, in_chans, H, W] images -> [B, num_classes] logits; weights of its own, to be traced."""

    def __init__(self, model: DeployedEfficientViT) -> None:
        super().__init__()
        self.patch_embed = model.patch_embed
        self.stages = _arranged(model.stages)
        self.head = model.head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(self.patch_embed(images)).mean((2, 3)))


def _arranged(module: nn.Module) -> nn.Module:
    """The counterpart of a deployed part, sharing its weights; names stay."""
    if isinstance(module, nn.Sequential):
        parts = ((name, _arranged(part)) for name, part in module.named_children())
        return nn.Sequential(OrderedDict(parts))
    for kind, counterpart in _COUNTERPARTS.items():
        if isinstance(module, kind):
            return counterpart(module)
    raise AssertionError(f"no counterpart of {type(module).__name__}")


class _Convolution(nn.Module):
    """Any convolution of the deployed form on [B, C, H, W]."""

    def __init__(self, part: Convolution) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return Convolution.forward(self.part, x)


class _Conv1x1(nn.Module):
    """A linear layer [C', C] over the channels of [B, C, H, W]."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = _fixed(weight[:, :, None, None])
        self.bias = None if bias is None else _fixed(bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


class _Shift(nn.Module):
    def __init__(self, part: Shift) -> None:
        super().__init__()
        self.shift = _fixed(part.shift.view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class _FFN(nn.Module):
    def __init__(self, part: DeployedFFN) -> None:
        super().__init__()
        self.expand = _Conv1x1(part.expand.weight, part.expand.bias)
        self.act = part.act
        self.project = _Conv1x1(part.project.t())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.act(self.expand(x)))


class _Merging(nn.Module):
    def __init__(self, part: DeployedMerging) -> None:
        super().__init__()
        self.part = part
        self.conv1 = _Conv1x1(part.conv1.weight, part.conv1.bias)
        self.conv3 = _Conv1x1(part.conv3.weight, part.conv3.bias)
        # The gate as convolutions too: the product with the map then stays in the blocked layout.
        self.squeeze = _Conv1x1(part.squeeze_weight, part.squeeze_bias)
        self.excite = _Conv1x1(part.excite_weight, part.excite_bias)

    def forward(self, x: Tensor) -> Tensor:
        part = self.part
        x = part.act(Convolution.forward(part.conv2, part.act(self.conv1(x))))
        gate = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.conv3(x * gate)


class _Head(nn.Module):
    """feature [n, N, c] -> output [n, N, value width], without the values' bias."""

    def __init__(self, head: AttentionHead, shift: Tensor) -> None:
        """`shift` [c]: what the feature lacks, biases of values before it."""
        super().__init__()
        self.head = head
        d = head.key_dim
        key, value = head.key_value_weight[:, :d], head.key_value_weight[:, d:]
        query_bias = head.query_bias[:, 0] + head.query_weight @ shift
        self.query = _Conv1x1(head.query_weight, query_bias)
        rows, columns = head.window
        features_are_keys = rows * columns * (len(key) - d) <= KEYS_WORTH
        self.key = _Conv1x1(key) if features_are_keys else None  # of the queries' maps
        self.key_weight = None if features_are_keys else _fixed(key)  # of the features
        self.value_weight = _fixed(value)  # [c, value width]
        self.value_bias = head.key_value_bias[d:] + shift @ value  # what its outputs lack

    def forward(self, feature: Tensor, padding: Tensor | None) -> Tensor:
        head = self.head
        rows, columns = head.window
        n, N, c = feature.shape
        maps = feature.reshape(-1, rows, columns, c).permute(0, 3, 1, 2)
        query = self.query(maps)
        bias = head.bias
        if padding is not None:
            outside = padding.view(-1, 1, rows, columns)
            query = query.unflatten(0, (-1, len(padding))).masked_fill(outside, 0.0).flatten(0, 1)
            bias = bias.expand(len(padding), N, N).masked_fill(padding[:, None], float("-inf"))
        reach = head.kernel.shape[-1] // 2
        query = F.conv2d(query, head.kernel, head.kernel_bias, 1, reach, 1, head.key_dim)
        query = query if self.key is None else self.key(query)
        query = query.permute(0, 2, 3, 1).reshape(-1, N, query.shape[1])
        key = feature if self.key_weight is None else feature @ self.key_weight
        value = feature @ self.value_weight
        if padding is None and torch.onnx.is_in_onnx_export():
            # One node for the four below; torch's own operator of this name infers a wrong shape
            # where values are wider than keys.
            return torch.onnx.ops.symbolic(
                "Attention",
                (query, key, value, bias),
                {"q_num_heads": 1, "kv_num_heads": 1, "scale": 1.0},
                dtype=value.dtype,
                shape=value.shape,
                version=23,
            )
        logits = query @ key.transpose(1, 2)  # [n, N, N]
        if padding is not None:
            logits = (logits.unflatten(0, (-1, len(padding))) + bias).flatten(0, 1)
            return logits.softmax(-1) @ value
        return (logits + bias).softmax(-1) @ value


class _Attention(nn.Module):
    def __init__(self, part: DeployedAttention) -> None:
        super().__init__()
        self.part = part
        self.heads = nn.ModuleList()
        biases: list[Tensor] = []
        for head in part.heads:
            assert isinstance(head, AttentionHead)
            shift = head.key_value_weight.new_zeros(part.split_dim)
            if part.cascade and biases:
                shift = fit_width(biases[-1], part.split_dim)
            arranged = _Head(head, shift)
            self.heads.append(arranged)
            biases.append(arranged.value_bias)
        self.value_bias = _fixed(torch.cat(biases))
        self.project = _Conv1x1(part.project.t())

    def forward(self, x: Tensor) -> Tensor:
        part = self.part
        _, C, H, W = x.shape
        rows, columns = part.window
        tokens = x.permute(0, 2, 3, 1)
        padding = None
        if (H, W) != part.window:
            tokens, padding, grid = part.partition(tokens)
        outputs: list[Tensor] = []
        splits = tokens.reshape(-1, rows * columns, C).split(part.split_dim, 2)
        for index, head in enumerate(self.heads):
            feature = splits[index % len(splits)]
            if part.cascade and index > 0:
                feature = feature + fit_width(outputs[-1], part.split_dim)
            outputs.append(head(feature, padding))
        out = part.act(torch.cat(outputs, 2) + self.value_bias)
        if (H, W) != part.window:
            out = part.merge(out.flatten(0, 1), grid)[:, :H, :W]
        else:
            out = out.reshape(-1, rows, columns, out.shape[-1])
        return x + self.project(out.permute(0, 3, 1, 2))


_COUNTERPARTS: dict[type[nn.Module], type[nn.Module]] = {
    Convolution: _Convolution,
    Shift: _Shift,
    DeployedFFN: _FFN,
    DeployedMerging: _Merging,
    DeployedAttention: _Attention,
}


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().clone(memory_format=torch.contiguous_format), False)
